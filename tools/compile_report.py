"""What compilers made of the GPU kernels: the tables of docs/compiled.md, between <!-- table NAME --> and <!-- end -->.

python tools/compile_report.py [triton] [cuda]       prints them; --write puts them into the page
"""

import argparse
import os
import re
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import cuda_kernels
import torch
from compile_cases import CASES, Medoids, main
from compile_only import CHIPS, EXP, compile_all, count

from toast_kernels import backends
from toast_kernels.native import DTYPE

PAGE = Path(__file__).parent.parent / "docs" / "compiled.md"
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
    """(the table's name, table)"""
    compiled = compile_all([(chip, case) for case in CASES for chip in CHIPS])
    for (chip, case), result in compiled.items():
        if isinstance(result, str):
            sys.exit(f"{case.op}, {case.name}, {chip}:\n{result}")
    for op in ("blended_kl", "medoids", "softmax_statistics"):
        yield op, markdown(HEADER, rows([case for case in CASES if case.op == op], compiled))


LONG = (1000, 32_768, 65_536, 131_072, 262_144, 360_000)


def cuda_tables():
    """(the table's name, table)"""
    used = {(chip, cuda_kernels.of_rows(name)): resources for chip, name, resources in cuda_kernels.resources()}
    chips = sorted({chip for chip, _ in used}, key=lambda chip: int(chip.removeprefix("sm_")))
    dtypes = cuda_kernels.DTYPES.values()
    header = ["kind of rows", *(f"{chip}: registers for {', '.join(dtypes)}" for chip in chips)]
    kernels = (
        [kind, *(", ".join(str(used[chip, (dtype, kind)]["REG"]) for dtype in dtypes) for chip in chips)]
        for kind in cuda_kernels.KINDS
    )
    yield "cuda kernels", markdown(header, kernels)

    held = cuda_kernels.KINDS[:-1]
    kinds = range(len(held))
    plans = (
        [f"{classes:,}", str(dtype).removeprefix("torch."), *(plan_cell(kind, dtype, classes) for kind in kinds)]
        for classes in LONG
        for dtype in (torch.bfloat16, torch.float32)
    )
    yield "cuda plans", markdown(["C", "dtype", *held], plans)


def plan_cell(kind, dtype, classes):
    """Blocks of a cluster x threads of a block, for rows that are held."""
    planned, threads, cluster = backends._cuda.plan(kind, DTYPE[dtype], classes)
    return f"{cluster} x {threads}" if planned == kind else "not held"


def write(title, table):
    place = re.compile(rf"(<!-- table {title} -->\n).*?(<!-- end -->)", re.S)
    text, found = place.subn(lambda m: m[1] + table + "\n" + m[2], PAGE.read_text())
    assert found == 1, f"{PAGE} must have one place for the table {title}, has {found}"
    PAGE.write_text(text)


def report():
    tables = {"triton": triton_tables, "cuda": cuda_tables}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", choices=[*tables, []], help="whose tables; without any, all")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    for kernels in arguments.kernels or tables:
        for title, table in tables[kernels]():
            print(table, end="\n\n")
            if arguments.write:
                write(title, table)


if __name__ == "__main__":
    report()
