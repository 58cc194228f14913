"""softmax_statistics on a GPU: hands tensors to the Triton kernel, and then only addresses."""

import math

import torch
import triton

from ..blended_kl.native import rows_of
from ..triton_launch import Launch
from .triton_kernels import statistics_kernel

BYTES = 16  # of a vector
SHARE = 2048  # logits that are worth a warp
MOST_LANES = 512
MOST_LAUNCHES = 1024

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
    address, stride, scale = logits.data_ptr(), logits.stride(0), math.log2(math.e) / temperature
    with torch.cuda.device_of(logits):
        layout = (rows, classes, stride, logits.dtype, logits.device, address % BYTES == 0)
        if launch := _launches.get(layout):
            launch(address, logsumexp.data_ptr(), entropy.data_ptr(), scale, temperature)
            return logsumexp, entropy
        if len(_launches) >= MOST_LAUNCHES:
            _launches.clear()
        warp = 64 if torch.version.hip else 32
        lanes = max(warp, min(32 * triton.next_power_of_2(triton.cdiv(classes, SHARE)), MOST_LANES))
        _launches[layout] = Launch(
            statistics_kernel, (rows,),
            logits, stride, logsumexp, entropy, classes, scale, temperature,
            LANES=lanes, WIDTH=BYTES // logits.element_size(), num_warps=lanes // warp, enable_fp_fusion=True,
        )  # fmt: skip
    return logsumexp, entropy
