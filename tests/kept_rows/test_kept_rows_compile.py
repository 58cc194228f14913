"""The kernels of kept_rows compile for every GPU the library is for, and spill nothing."""

import pytest

pytest.importorskip("triton")

import torch
from compile_only import CHIPS, compile_all

from toast_kernels.kept_rows.op import PoolMemory, Slots


def every_kind():
    """Labels, pairs and class probabilities; float64 scores; ages; places counted and given."""
    from toast_kernels.kept_rows import triton  # not at the top: in a process without the interpreter

    rows, new, slots, classes = 384, 256, 128, 1001
    labels, score = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows)
    numbers, real = torch.zeros(slots, dtype=torch.int64), torch.zeros(slots)
    pool = PoolMemory(
        torch.zeros(rows, classes, dtype=torch.float16), labels, labels, torch.zeros(3, dtype=torch.int64)
    )

    def logits(dtype):
        return torch.zeros(rows, classes, dtype=dtype)

    def memory(dtype):
        distilled, kept = torch.zeros(slots + 1, dtype=torch.int64), logits(dtype)[:slots]
        entropy, filled = real.clone(), real > 0
        return Slots(distilled, numbers, numbers, real, kept, real.double(), entropy, filled, numbers, numbers, numbers)

    triton.pool_rows(logits(torch.bfloat16), labels, pool, classes, -100, None)
    triton.pool_rows(logits(torch.float32), labels, pool, classes, -100, labels)
    triple = memory(torch.bfloat16)
    triton.carry_rows(logits(torch.bfloat16), labels, labels, score, score, new, labels[new:], triple, 2, -100, 3.0)
    plain = memory(torch.float32)._replace(labels_b=None, lam=None)
    triton.carry_rows(logits(torch.float32), labels, None, None, score.double(), new, None, plain, 1, -100, 3.0)
    top_k = memory(torch.float16)._replace(labels=None, labels_b=None, lam=None, logsumexp=None, entropy=None)
    triton.carry_rows(logits(torch.float16), None, None, None, score.half(), new, labels[new:], top_k, 3, -100, 3.0)


@pytest.mark.parametrize(
    "chip", [pytest.param(chip, marks=() if chip == "sm_90" else pytest.mark.more) for chip in CHIPS]
)
def test_compiles_without_spills(chip):
    kernels = compile_all([(chip, every_kind)])[chip, every_kind]
    assert not isinstance(kernels, str), kernels
    assert {kernel.name for kernel in kernels} == {"pool_rows_kernel", "carry_rows_kernel"}
    for kernel in kernels:
        assert kernel.spilled == kernel.local_bytes == 0, kernel.name
        assert kernel.blocks * kernel.num_warps >= 32, kernel.registers
