"""The tables of what compilers made of the GPU kernels, in the ops' pages between <!-- table NAME --> and <!-- end -->.

python tests/compile_report.py [triton] [cuda]       prints them; --write puts them into the READMEs
"""

import argparse
import os
import re
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import cuda_kernels
import torch
from blended_kl_cases import name
from compile_cases import BYTES, CASES, Medoids, main
from compile_only import CHIPS, EXP, REGISTER_GRANULE, compile_all, count

from toast_kernels import backends
from toast_kernels.native import DTYPE

PACKAGE = Path(__file__).parent.parent / "toast_kernels"
HEADER = [
    "case", "kernel", "warps", *(f"{chip}: registers, blocks" for chip in CHIPS), "shared", "loads, bits",
    "exps a logit", "instructions a logit", "in flight", "tensor cores", "bounds on an H200",
]  # fmt: skip


def rows(cases, compiled):
    """A row for each case's main kernel, then one for each other kernel; of sm_90 where no chip is named."""
    others = {}
    for case in cases:
        launches = [compiled[chip, case] for chip in CHIPS]
        of_case = [main(case, kernels) for kernels in launches]
        kernel = of_case[list(CHIPS).index("sm_90")]
        exps, instructions, in_flight = "", "", ""
        if not isinstance(case, Medoids):
            exps = f"{sum(count(opcodes, EXP) / logits for opcodes, logits in case.passes(kernel)):.2f}"
            instructions = f"{case.instructions(kernel):.0f}"
            in_flight = f"{case.in_flight(kernel) / 1024:.0f} KB"
        bounds = case.bounds(compiled["sm_90", case]).items()
        yield [case.name, *row(of_case), exps, instructions, in_flight, ", ".join(kernel.matrix),
               ", ".join(f"{what} {1e6 * seconds:.3g} us" for what, seconds in bounds)]  # fmt: skip
        for kernels in zip(*launches, strict=True):
            if kernels[0].name not in case.kernels:
                others.setdefault(kernels[0].name, [case.name, *row(kernels), "", "", "", "", ""])
    yield from others.values()


def row(kernels):
    """Cells of one kernel on all chips."""
    kernel = kernels[list(CHIPS).index("sm_90")]
    return [
        kernel.name, str(kernel.num_warps),
        *(f"{k.registers}, {k.blocks}" + f" ({k.spilled} spilled)" * (k.spilled > 0) for k in kernels),
        f"{kernel.shared_bytes / 1024:.1f} KB",
        ", ".join(f"{times} x {8 * width}" for width, times in sorted(kernel.loads.items(), reverse=True)),
    ]  # fmt: skip


def markdown(header, rows):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def triton_tables():
    """(op, table's name, table)"""
    compiled = compile_all([(chip, case) for case in CASES for chip in CHIPS])
    for (chip, case), result in compiled.items():
        if isinstance(result, str):
            sys.exit(f"{case.op}, {case.name}, {chip}:\n{result}")
    for op in ("blended_kl", "medoids", "softmax_statistics"):
        yield op, "compiled", markdown(HEADER, rows([case for case in CASES if case.op == op], compiled))


MOST_BLOCKS = 16  # of a cluster
LONG, ROWS = (32_768, 65_536, 131_072, 262_144, 360_000), 1024
LABELS, TARGET, _ = cuda_kernels.TARGETS.values()


def cuda_tables():
    """(op, table's name, table)"""
    used = {(chip, cuda_kernels.of_rows(name)): resources for chip, name, resources in cuda_kernels.resources()}
    chips = sorted({chip for chip, _ in used}, key=lambda chip: int(chip.removeprefix("sm_")))
    dtypes = cuda_kernels.DTYPES.values()
    header = ["target", *(f"{chip}: registers for {', '.join(dtypes)}" for chip in chips)]
    kernels = (
        [target, *(", ".join(str(used[chip, (dtype, target)]["REG"]) for dtype in dtypes) for chip in chips)]
        for target in cuda_kernels.TARGETS.values()
    )
    yield "blended_kl", "cuda kernels", markdown(header, kernels)

    header = ["C", "dtype", f"{LABELS}: cluster x slice", "plain", f"{TARGET}: cluster x slice", "top-k", "dense"]
    plans = (
        [f"{classes:,}", name(dtype), *plan_cells(classes, dtype, used)]
        for classes in LONG
        for dtype in (torch.bfloat16, torch.float32)
    )
    yield "blended_kl", "cuda plans", markdown(header, plans)


def plan_cells(classes, dtype, used):
    """How an H200 spreads rows, and how long their bytes take: S of the logits' type, half of the rows with a past."""
    for target, reads in ((LABELS, [1]), (TARGET, [1, 2.5])):
        chip, kernel = CHIPS["sm_90"], used["sm_90", (name(dtype), target)]
        plan = backends._cuda.plan(
            DTYPE[dtype], classes, target == LABELS, chip.shared_bytes, chip.shared_total, MOST_BLOCKS
        )
        shared = plan["shared"] + kernel["SHARED"] + chip.shared_reserved
        registers = -(-kernel["REG"] // REGISTER_GRANULE) * REGISTER_GRANULE
        blocks = min(chip.shared_total // shared, cuda_kernels.REGISTERS // (registers * cuda_kernels.THREADS))
        counts = {"block": blocks, "stage": plan["stages"]} | ({"piece": plan["pieces"]} if plan["pieces"] > 1 else {})
        counted = ", ".join(f"{count} {what}{'s' * (count > 1)}" for what, count in counts.items())
        yield f"{plan['cluster']} x {plan['slice']}, {counted}"
        for read in reads:
            moved = (2 - 1 / plan["pieces"]) * read + 1  # for each byte of a logit
            yield f"{1e6 * ROWS * classes * dtype.itemsize * moved / BYTES:.0f} us"


def write(op, title, table):
    readme = PACKAGE / op / "README.md"
    text, found = re.subn(
        rf"(<!-- table {title} -->\n).*?(<!-- end -->)", rf"\g<1>{table}\n\g<2>", readme.read_text(), flags=re.S
    )
    assert found == 1, f"{readme} must have one place for the table {title}, has {found}"
    readme.write_text(text)


def report():
    tables = {"triton": triton_tables, "cuda": cuda_tables}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", choices=[*tables, []], help="whose tables; without any, all")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    for kernels in arguments.kernels or tables:
        for op, title, table in tables[kernels]():
            print(table, end="\n\n")
            if arguments.write:
                write(op, title, table)


if __name__ == "__main__":
    report()
