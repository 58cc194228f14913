"""Every Triton kernel in docs/compiled.md compiles for every GPU it is for, to what compile_cases.py promises; those of
kept_rows are in tests/kept_rows/test_kept_rows_compile.py.

That takes many minutes, so an ordinary run compiles EVERY_RUN for sm_90; `-m ""` (make check-more) all cases for all
chips.
"""

import re
from collections import Counter

import pytest
import torch

pytest.importorskip("triton")

from compile_cases import CASES, EVERY_RUN, READS_ALL, Loss, Medoids, Statistics, main, product_loops
from compile_only import CHIPS, EXP, GLOBAL_LOAD, compile_all, count, widths

JOBS = [
    pytest.param(
        chip,
        case,
        id=f"{case.op}-{case.name}-{chip}".replace(" ", "-"),
        marks=() if chip == "sm_90" and case in EVERY_RUN else pytest.mark.more,
    )
    for case in CASES
    for chip in CHIPS
]
TENSOR_CORES = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
EXCHANGE = re.compile(r"SHFL|BAR|LDS|STS|ds_|s_barrier|v_\w+_dpp")
SPILLS_ELSEWHERE = 34  # at most (float16 on sm_100, others 16): the limits of registers were chosen for sm_90
FEW = 16  # loads of at most 8 bytes, or exponentials, of a thread for what belongs to the row: its label, its past, ...


@pytest.fixture(scope="module")
def compiled(request):
    """The jobs whose tests were asked for."""
    mine = [item.callspec.params for item in request.session.items if item.path == request.path]
    return compile_all([(parameters["chip"], parameters["case"]) for parameters in mine])


@pytest.mark.parametrize(("chip", "case"), JOBS)
def test_compiles_to_what_was_promised(compiled, chip, case):
    kernels = compiled[chip, case]
    assert not isinstance(kernels, str), kernels
    kernel = main(case, kernels)
    of_the_op = {Loss: broken_by_loss, Medoids: broken_by_medoids, Statistics: broken_by_statistics}[type(case)]
    spills = getattr(case, "spills", 0)
    if isinstance(case, Loss) and chip != "sm_90":
        spills = max(spills, SPILLS_ELSEWHERE)
    broken = [line for any_kernel in kernels for line in broken_by_any(any_kernel, spills)]
    broken += of_the_op(case, kernels if isinstance(case, Medoids) else kernel)
    warps = case.warps if chip == "sm_90" else min(case.warps, 8)
    if kernel.blocks * kernel.num_warps < warps:
        broken.append(f"{kernel.blocks} blocks of {kernel.num_warps} warps on a multiprocessor, not {warps} warps")
    assert not broken, "\n".join(broken)


def broken_by_any(kernel, spills=0):
    chip = CHIPS[kernel.chip]
    if kernel.spilled > spills or (kernel.local_bytes and not spills):
        yield f"{kernel.name} spills: {kernel.spilled} times, {kernel.local_bytes} bytes of local memory"
    if kernel.registers > chip.registers_a_thread or kernel.shared_bytes > chip.shared_bytes or kernel.blocks < 1:
        yield f"{kernel.name} does not fit: {kernel.registers} registers, {kernel.shared_bytes} bytes of shared memory"


def broken_by_loss(case, kernel):
    passes = case.passes(kernel)
    needed, read, exps = case.needed(kernel)
    if len(passes) != needed:
        yield f"{len(passes)} passes over the row, not {needed}"
    few = FEW * needed * (2 if case.logits(kernel) < 32 or "ROWS" in kernel.constants else 1)
    opcodes = sum((opcodes for opcodes, _ in passes), Counter())
    loads = widths(opcodes, GLOBAL_LOAD)
    widest = min(16, case.logits(kernel) * case.dtype.itemsize)
    wide = sum(size * times for size, times in loads.items() if size >= widest)
    if case.wide and (wide < read or (widest == 16 and wide != read)):
        yield f"{wide} bytes in wide loads, not {read}: {loads}"
    total = sum(size * times for size, times in loads.items())
    if not read <= total <= read + 8 * few:
        yield f"{total} bytes, not {read} and a few a row: {loads}"
    if not exps <= count(opcodes, EXP) <= exps + few:
        yield f"{count(opcodes, EXP)} exponentials, not {exps} and a few a row"
    if kernel.chip == "sm_90" and case.instructions(kernel) > case.instructions_at_most:
        yield f"{case.instructions(kernel):.1f} instructions a logit, not {case.instructions_at_most}"


def broken_by_medoids(case, kernels):
    kernel = main(case, kernels)
    if set(kernel.matrix) != ({TENSOR_CORES[kernel.chip]} if case.products else set()):
        yield f"tensor cores: {kernel.matrix}"
    if case.products and kernel.spilled:
        yield f"tiles of products spill {kernel.spilled} times"
    for turn in product_loops(kernel):
        loads = widths(turn, GLOBAL_LOAD)
        if kernel.chip in ("sm_90", "sm_100"):  # the loop may have the loads of |y|^2 in it
            if max(loads, default=0) > torch.float32.itemsize:
                yield f"packed rows are not read by descriptors: {loads}"
        elif set(loads) != {16}:
            yield f"packed rows are not read in 128 bits: {loads}"
    for reader in kernels:
        if reader.name in READS_ALL:
            wide = sum(size * times for size, times in reader.loads.items() if size >= 16) * reader.threads
            tile = reader.constants["ROWS"] * reader.constants["COLUMNS"] * case.dtype.itemsize
            if case.wide and wide < tile:
                yield f"{reader.name} reads x in narrow loads: {reader.loads}"


def broken_by_statistics(case, kernel):
    (turn,) = kernel.loops
    logits = case.logits(kernel)
    if widths(turn, GLOBAL_LOAD) != {16: logits * case.dtype.itemsize // 16}:
        yield f"not every logit is read in 128 bits, once: {widths(turn, GLOBAL_LOAD)}"
    if count(turn, EXP) != logits + 1:
        yield f"{count(turn, EXP)} exponentials for {logits} logits and the new maximum"
    if waits := [opcode for opcode in turn if EXCHANGE.match(opcode)]:
        yield f"lanes meet in the loop: {waits}"
