"""What every op tells its kernels in C++ and CUDA of tensors: dtypes as numbers, rows."""

import torch

# As DType in csrc/dtype.h.
DTYPE = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def rows_of(tensor):
    """The tensor [R, W] itself if each of its rows is contiguous, whatever lies between them; else a copy."""
    return tensor if tensor.stride(1) == 1 or tensor.shape[1] == 1 else tensor.contiguous()
