"""Makes the tables of README.md and docs/benchmarks.md, and the plot, from bench/results/*.csv.

    python bench/report.py                 (make bench and make gpu run it)

The tables are of one configuration, the last row's: device, threads, malloc, version of torch. Of its runs at the
commit that a suite was last run at the last RUNS count: times and ratios are the medians of theirs, brackets go from
the lowest 20th to the highest 80th percentile of any. Tables stand in a page between <!-- table NAME --> and
<!-- end -->. Devices whose name starts with NVIDIA or AMD Instinct are GPUs. tables.py makes each kind of table.
"""

import re
import sys
from pathlib import Path

import results
import tables
from loss_peers import PLAIN, TUNED
from plot import draw
from results import OURS

BENCH = Path(__file__).parent
GPUS = ("NVIDIA", "AMD Instinct")
RUNS = 5
NOTHING = "Not measured yet."
BENCHMARKS = BENCH.parent / "docs" / "benchmarks.md"
PLOT = "bench/results/time_per_row.png"


def on_kind(suite, on_gpu):
    return [row for row in results.read(suite) if row["device"].startswith(GPUS) == on_gpu]


def configuration(row):
    return tuple(row[key] for key in results.CONFIGURATION)


def newest(on_gpu):
    """The configuration of the latest run of any suite."""
    rows = [row for path in results.FOLDER.glob("*.csv") for row in on_kind(path.stem, on_gpu)]
    return configuration(max(rows, key=lambda row: row["run"])) if rows else None


def last_runs(suite, on_gpu=False):
    """{(work, size, dtype): {peer: its rows in the last runs}} of the newest configuration, on CPUs or on GPUs, and of
    the commit that the suite was last run at; a case's peers are those of the last run that has the case."""
    wanted = newest(on_gpu)
    rows = [row for row in on_kind(suite, on_gpu) if configuration(row) == wanted]
    if rows:
        commit = max(rows, key=lambda row: row["run"])["commit"]
        rows = [row for row in rows if row["commit"] == commit]
    runs = sorted({row["run"] for row in rows})[-RUNS:]
    cases = {}
    for row in rows:
        if row["run"] in runs:
            of_case = cases.setdefault((row["work"], row["size"], row["dtype"]), {})
            of_case.setdefault(row["run"], {})[row["peer"]] = row
    return {
        case: {peer: [run[peer] for run in of_case.values() if peer in run] for peer in of_case[max(of_case)]}
        for case, of_case in cases.items()
    }


def everything(on_gpu):
    """The cases of all suites."""
    suites = sorted(path.stem for path in results.FOLDER.glob("*.csv"))
    return {(suite, *case): peers for suite in suites for case, peers in last_runs(suite, on_gpu).items()}


def all_tables():
    """{page: {name: table}}"""
    losses = ["eager", "torch.compile", TUNED, PLAIN]
    plain, both = ["F.cross_entropy", "torch.compile", TUNED], ("forward", tables.BACKWARD)
    top_k = ["eager", "torch.compile", TUNED, "toast_kernels without soft targets"]
    pages = {
        BENCH.parent / "README.md": {
            "proof": (tables.proof, last_runs("loss_blended"), last_runs("loss_plain")),
            "plot": (picture, last_runs("loss_by_classes")),
            "headline": (tables.headline, last_runs("loss_blended") | last_runs("loss_top_k")),
        },
        BENCHMARKS: {
            "machine": (tables.measured_on, everything(False)),
            "blended": (tables.losses, last_runs("loss_blended"), losses),
            "cross-entropy": (tables.losses, last_runs("loss_plain"), plain),
            "top-k": (tables.losses, last_runs("loss_top_k"), top_k),
            "medoids": (tables.medoids, last_runs("medoids")),
            "medoids in chunks": (tables.compared, last_runs("medoids_in_chunks"), "N x D", "in chunks"),
            "training step": (tables.steps, last_runs("training_step")),
            "set_epoch": (tables.epochs, last_runs("set_epoch")),
            "forward": (tables.losses, last_runs("loss_blended"), losses, ["forward"]),
            "cross-entropy forward": (tables.losses, last_runs("loss_plain"), plain, ["forward"]),
            "long rows": (tables.losses, last_runs("loss_long_rows"), losses),
            "classes": (tables.losses, last_runs("loss_by_classes"), losses),
            "head": (tables.compared, last_runs("head"), "N x width x C", "toast_loss"),
            "linear plain": (tables.linear, last_runs("linear_plain")),
            "linear blended": (tables.linear, last_runs("linear_blended")),
            "statistics": (tables.compared, last_runs("softmax_statistics"), "R x C", "softmax_statistics"),
            "small step": (tables.steps, last_runs("small_step")),
            "scaling": (tables.scaling, last_runs("scaling")),
            "threads": (tables.threads, last_runs("threads")),
            "gpu machine": (tables.measured_on, everything(True)),
            "gpu blended": (tables.losses, last_runs("loss_blended", True), losses, both),
            "gpu cross-entropy": (tables.losses, last_runs("loss_plain", True), [*plain, "Liger"], both),
            "gpu top-k": (tables.losses, last_runs("loss_top_k", True), top_k),
            "gpu long rows": (
                tables.losses, last_runs("loss_long_rows", True), ["backend triton", "backend cuda", *losses],
            ),
            "gpu graph": (tables.compared, last_runs("loss_graph", True), "N x C", "as a CUDA graph"),
            "gpu host": (tables.host, last_runs("loss_host", True)),
            "gpu medoids": (tables.medoids, last_runs("medoids", True)),
            "gpu training step": (tables.steps, last_runs("training_step", True)),
            "gpu step graph": (tables.steps, last_runs("step_graph", True)),
            "gpu set_epoch": (tables.epochs, last_runs("set_epoch", True)),
            "gpu statistics": (
                tables.compared, last_runs("softmax_statistics", True), "R x C", "softmax_statistics",
            ),
            "gpu head": (tables.compared, last_runs("head", True), "N x width x C", "toast_loss"),
            "gpu linear plain": (tables.linear, last_runs("linear_plain", True)),
            "gpu linear blended": (tables.linear, last_runs("linear_blended", True)),
        },
    }  # fmt: skip
    return {
        page: {name: make(cases, *rest) if cases else NOTHING for name, (make, cases, *rest) in of_page.items()}
        for page, of_page in pages.items()
    }


def picture(cases):
    peers = next(iter(cases.values()))
    names = ", ".join(peer for peer in peers if peer != OURS)
    what = "time a row of a forward and backward pass against the number of classes"
    return f"![{what}: toast_kernels beside {names}]({PLOT})"


def write_tables(path, of_page):
    """Puts the tables into their places in a page."""
    text = path.read_text()
    for name, table in of_page.items():
        text, found = re.subn(
            rf"(<!-- table {name} -->\n).*?(<!-- end -->)", lambda m, t=table: m[1] + t + "\n" + m[2], text, flags=re.S
        )
        assert found == 1, f"{path} must have one place for the table {name}, has {found}"
    path.write_text(text)


def main():
    """Into the pages if the results are the repository's; else into tables.md beside them."""
    if not results.FOLDER.is_dir():
        sys.exit(f"there are no results in {results.FOLDER}")
    if results.FOLDER.resolve() == (BENCH / "results").resolve():
        for page, of_page in all_tables().items():
            write_tables(page, of_page)
    else:
        text = "\n\n".join(f"## {name}\n\n{table}" for page in all_tables().values() for name, table in page.items())
        (results.FOLDER / "tables.md").write_text(text.replace(PLOT, Path(PLOT).name) + "\n")
    if cases := last_runs("loss_by_classes"):
        draw(cases, results.FOLDER / "time_per_row.png")


if __name__ == "__main__":
    main()
