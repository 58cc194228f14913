"""What nvcc made of the CUDA kernels: nothing is spilled, several blocks share a multiprocessor, accesses are wide."""

import cuda_kernels
import pytest
import torch
from cuda_kernels import REGISTERS, THREADS

from toast_kernels import backends
from toast_kernels.native import DTYPE

# That find registers on a multiprocessor.
BLOCKS = dict(zip(cuda_kernels.TARGETS.values(), (3, 2, 2), strict=True))

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
        (dtype, target) for dtype in cuda_kernels.DTYPES.values() for target in cuda_kernels.TARGETS.values()
    )


def test_nothing_is_spilled_and_several_blocks_fit():
    for architecture, kernel, used in cuda_kernels.resources():
        assert used["LOCAL"] == 0, (architecture, kernel, used)
        if made_of := cuda_kernels.of_rows(kernel):
            assert used["REG"] * THREADS * BLOCKS[made_of[1]] <= REGISTERS, (architecture, kernel, used)


# What a kernel does with 16 bytes at once, at least: all three sweeps read shared memory, one writes the gradient.
WIDE = {"blended_kl_kernel": {"LDGSTS": 1, "LDS": 3, "STG": 1}, "scale_kernel": {"LDG": 1, "STG": 1}}


def test_memory_is_accessed_16_bytes_at_a_time():
    found = set()
    for architecture, kernel, opcodes in cuda_kernels.opcodes():
        found.add((architecture, kernel))
        for promised in (WIDE[name] for name in WIDE if name in kernel):
            for access, times in promised.items():
                wide = [opcode for opcode in opcodes.elements() if opcode.startswith(access + ".") and "128" in opcode]
                assert len(wide) >= times, (architecture, kernel, access, opcodes)
    assert found == {(architecture, kernel) for architecture, kernel, _ in cuda_kernels.resources()}


def test_an_h200_reads_rows_of_360000_classes_once():
    plan = backends._cuda.plan
    for dtype, number in DTYPE.items():
        if dtype == torch.float64:
            continue
        for only_labels in (True, False):
            whole = plan(number, 360_000, only_labels, 227 << 10, 228 << 10, 16)
            assert whole["pieces"] == 1
            assert whole["cluster"] * whole["slice"] >= 360_000
            assert plan(number, 360_000, only_labels, 163 << 10, 164 << 10, 1)["pieces"] > 1  # an A100
