"""softmax_statistics on the CPU: hands addresses, sizes and strides to the C++ kernel."""

import torch

from ..backends import _C
from ..native import DTYPE, rows_of


def softmax_statistics(
    logits,  # [R, C]
    temperature,
):
    logits = rows_of(logits)
    logsumexp = logits.new_empty(len(logits), dtype=torch.float64)
    entropy = logits.new_empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32))
    _C.softmax_statistics(
        DTYPE[logits.dtype], logits.data_ptr(), *logits.shape, logits.stride(0), temperature,
        logsumexp.data_ptr(), entropy.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return logsumexp, entropy
