"""What every op knows of tensors and devices, and tells its kernels: dtypes as numbers, rows."""

import torch

# As DType in csrc/dtype.h.
DTYPE = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}

WITHOUT_FLOAT64 = {"mps"}  # types of devices


def widest(device):
    """float64, or float32 on a device that has none. There class_medoids sums in float32: the cost of the row that it
    chooses is the smallest up to a relative 1e-5; the reference's loss, float32 too, is the same."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def rows_of(tensor):
    """The tensor [R, W] itself if each of its rows is contiguous, whatever lies between them; else a copy. A copy too
    where the memory holds the negative of its values (x.conj().imag), which an address does not tell."""
    tensor = tensor.resolve_neg()
    return tensor if tensor.stride(1) == 1 or tensor.shape[1] == 1 else tensor.contiguous()
