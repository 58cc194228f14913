"""softmax_statistics on a GPU: hands tensors to the Triton kernel, and then only addresses."""

import math

import torch
import triton

from ..native import rows_of
from ..triton_launch import Launch, keep
from .triton_kernels import statistics_kernel

BYTES = 16  # of a vector
SHARE = 2048  # logits that are worth a warp
MOST_LANES = 512

_launches = {}


def softmax_statistics(
    logits,  # [R, C] float32, bfloat16 or float16
    temperature,
):
    logits = rows_of(logits)
    rows, classes = logits.shape
    logsumexp = logits.new_empty(rows, dtype=torch.float64)
    entropy = logits.new_empty(rows, dtype=torch.float32)
    if rows == 0:
        return logsumexp, entropy
    size, stride, scale = logits.element_size(), logits.stride(0), math.log2(math.e) / temperature
    # The kernel gets a multiple of a vector's bytes for an address, and how far behind it the logits begin.
    shift = logits.data_ptr() % BYTES // size
    if shift > logits.storage_offset():  # memory that torch did not allocate
        shift = 0
    with torch.cuda.device_of(logits):
        layout = (rows, classes, stride, shift, logits.dtype, logits.device)
        if launch := _launches.get(layout):
            begin = logits.data_ptr() - shift * size
            launch(begin, logsumexp.data_ptr(), entropy.data_ptr(), scale, temperature)
            return logsumexp, entropy
        begin = logits.as_strided((1,), (1,), logits.storage_offset() - shift)
        warp = 64 if torch.version.hip else 32
        lanes = max(warp, min(32 * triton.next_power_of_2(triton.cdiv(classes, SHARE)), MOST_LANES))
        launch = Launch(
            statistics_kernel, (rows,), begin, stride, shift, logsumexp, entropy, classes, scale, temperature,
            LANES=lanes, WIDTH=BYTES // size, num_warps=lanes // warp, enable_fp_fusion=True,
        )  # fmt: skip
        keep(_launches, layout, launch)
    return logsumexp, entropy
