"""What nvcc made of the CUDA kernels: rows are held in registers, nothing is spilled, accesses are wide."""

from collections import Counter

import cuda_kernels
import pytest
import torch

from toast_kernels import backends
from toast_kernels.native import DTYPE

THREADS = {"labels": 1024}  # of a block, which has a multiprocessor's registers; of other kinds
FEWER_THREADS = 512
# What a thread of each kind holds: vectors of 16 bytes of the logits, and how many of them lie beside each other.
HELD = {"labels": (8, 1), "lists": (16, 1), "past": (8, 2), "dense": (4, 3), "any": (0, 0)}

pytestmark = [
    pytest.mark.skipif(not cuda_kernels.compiled(), reason="the CUDA kernels are not built"),
    pytest.mark.skipif(cuda_kernels.CUOBJDUMP is None, reason="needs cuobjdump, of CUDA's toolkit or Triton"),
]


def test_every_architecture_has_every_kernel():
    kernels = {}
    for architecture, name, _ in cuda_kernels.resources():
        kernels.setdefault(architecture, set()).add(name)
    assert len(set(map(frozenset, kernels.values()))) == 1
    of_rows = [name for name in next(iter(kernels.values())) if cuda_kernels.of_rows(name)]
    assert sorted(map(cuda_kernels.of_rows, of_rows)) == sorted(
        (dtype, kind) for dtype in cuda_kernels.DTYPES.values() for kind in cuda_kernels.KINDS
    )


def test_nothing_is_spilled():
    for architecture, kernel, used in cuda_kernels.resources():
        assert used["LOCAL"] == used["STACK"] == 0, (architecture, kernel, used)
        if made_of := cuda_kernels.of_rows(kernel):
            assert used["REG"] * THREADS.get(made_of[1], FEWER_THREADS) <= 65536, (architecture, kernel, used)


def wide(opcodes, access):
    return sum(times for opcode, times in opcodes.items() if opcode.startswith(access + ".") and "128" in opcode)


def test_memory_is_accessed_16_bytes_at_a_time():
    """A held row is loaded at the start of the kernel, after a forward pass alone, and beside each of the sweeps that
    write a gradient (with or without a past), which store as many vectors."""
    found = set()
    for architecture, kernel, opcodes in cuda_kernels.memory_accesses():
        found.add((architecture, kernel))
        loads, stores = wide(opcodes, "LDG"), wide(opcodes, "STG")
        if made_of := cuda_kernels.of_rows(kernel):
            vectors, beside = HELD[made_of[1]]
            sweeps = 1 if made_of[1] == "labels" else 2
            assert (loads, stores) == ((2 + sweeps) * vectors * beside, sweeps * vectors), (architecture, kernel)
            narrow = Counter({opcode: times for opcode, times in opcodes.items() if opcode.startswith(("LDL", "STL"))})
            assert not narrow, (architecture, kernel, narrow)
        elif "scale_kernel" in kernel:
            assert min(loads, stores) >= 1, (architecture, kernel)
    assert found == {(architecture, kernel) for architecture, kernel, _ in cuda_kernels.resources()}


def test_rows_of_360000_classes_are_held_by_the_smallest_cluster():
    kinds = {kind: number for number, kind in enumerate(cuda_kernels.KINDS)}
    for kind in ("labels", "lists", "past"):
        vectors, _ = HELD[kind]
        for dtype in (torch.bfloat16, torch.float16):
            held, threads, cluster = backends._cuda.plan(kinds[kind], DTYPE[dtype], 360_000)
            assert held == kinds[kind]
            assert cluster == -(-360_000 // (8 * vectors * THREADS.get(kind, FEWER_THREADS)))
            assert threads * cluster * vectors * 8 >= 360_000
    assert backends._cuda.plan(kinds["labels"], DTYPE[torch.float32], 360_000)[0] == kinds["labels"]
    assert backends._cuda.plan(kinds["past"], DTYPE[torch.float32], 360_000)[0] == kinds["any"]
