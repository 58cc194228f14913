"""The tables of what the compile gate sees, in the ops' READMEs between <!-- table compiled --> and <!-- end -->.

python tests/compile_report.py           prints them; --write puts them into the READMEs
"""

import os
import re
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

from compile_cases import CASES, Loss, main
from compile_only import CHIPS, EXP, compile_all, count

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
        if isinstance(case, Loss):
            exps = f"{sum(count(opcodes, EXP) / logits for opcodes, logits in case.passes(kernel)):.2f}"
            instructions = f"{case.instructions(kernel):.0f}"
            in_flight = f"{case.in_flight(kernel) / 1024:.0f} KB"
        bounds = case.bounds(compiled["sm_90", case]).items()
        yield [case.name, *row(of_case), exps, instructions, in_flight, ", ".join(kernel.matrix),
               ", ".join(f"{what} {1e6 * seconds:.3g} us" for what, seconds in bounds)]  # fmt: skip
        for kernels in zip(*launches, strict=True):
            if kernels[0].name != case.kernel:
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


def write_tables():
    compiled = compile_all([(chip, case) for case in CASES for chip in CHIPS])
    for (chip, case), result in compiled.items():
        if isinstance(result, str):
            sys.exit(f"{case.op}, {case.name}, {chip}:\n{result}")
    for op in ("blended_kl", "medoids"):
        table = markdown(HEADER, rows([case for case in CASES if case.op == op], compiled))
        print(table, end="\n\n")
        if "--write" in sys.argv:
            readme = PACKAGE / op / "README.md"
            text, found = re.subn(
                r"(<!-- table compiled -->\n).*?(<!-- end -->)", rf"\g<1>{table}\n\g<2>", readme.read_text(), flags=re.S
            )
            assert found == 1, f"{readme} must have one place for the table compiled, has {found}"
            readme.write_text(text)


if __name__ == "__main__":
    write_tables()
