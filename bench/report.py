"""Makes the READMEs' tables and the plots from bench/results/*.csv, so that no number there is typed by hand.

    python bench/report.py                 (make bench and make gpu run it)

Of each case on each device the last RUNS runs count: times and ratios are the medians of theirs, brackets go from the
lowest 20th to the highest 80th percentile of any. Tables stand in README.md and bench/README.md between
<!-- table NAME --> and <!-- end -->. Devices whose name starts with NVIDIA or AMD Instinct are GPUs.
"""

import csv
import math
import re
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from harness import COPY, METHOD, OURS, RESULTS

BENCH = Path(__file__).parent
GPUS = ("NVIDIA", "AMD Instinct")
BACKWARD = "forward + backward"
RUNS = 5
COLOURS = {OURS: "#e4572e", "eager": "#8a8f98", "torch.compile": "#5b8def", COPY: "#3aa17e"}  # on white and on black


def last_runs(suite, on_gpu=False):
    """{(work, size, dtype): {peer: its rows in the last runs}} of RESULTS/SUITE.csv, on CPUs or on GPUs; the peers are
    those of the very last run."""
    path = RESULTS / f"{suite}.csv"
    cases = {}
    if path.exists():
        with path.open(newline="") as lines:
            for row in csv.DictReader(lines):
                if row["device"].startswith(GPUS) == on_gpu and row["method"] == str(METHOD):
                    runs = cases.setdefault((row["work"], row["size"], row["dtype"]), [])
                    if row["peer"] == OURS:  # the first row of a run
                        runs.append({})
                    runs[-1][row["peer"]] = row
    return {
        case: {peer: [run[peer] for run in runs[-RUNS:] if peer in run] for peer in runs[-1]}
        for case, runs in cases.items()
    }


def faster(rows):
    """How many times as fast ours is, and between what bounds."""
    bounds = [float(row[key]) for row in rows for key in ("ours_faster_p20", "ours_faster_p80")]
    digits = 0 if min(bounds) >= 100 else 1 if min(bounds) >= 10 else 2
    middle = median(float(row["ours_faster"]) for row in rows)
    return f"{middle:.{digits}f}x ({min(bounds):.{digits}f} - {max(bounds):.{digits}f})"


def slower(rows):
    """What ours costs, in times of the peer's time."""
    bounds = [1 / float(row[key]) for row in rows for key in ("ours_faster_p20", "ours_faster_p80")]
    middle = 1 / median(float(row["ours_faster"]) for row in rows)
    return f"{middle:.3f}x ({min(bounds):.3f} - {max(bounds):.3f})"


def in_milliseconds(rows):
    return median(float(row["p50_ms"]) for row in rows)


def milliseconds(rows):
    return f"{in_milliseconds(rows):.3g} ms"


def of_copy(rows):
    percents = [float(row["percent_of_copy"]) for row in rows if row["percent_of_copy"]]
    return f"{median(percents):.0f}%" if percents else ""


def memory(rows):
    return f"{float(rows[-1]['peak_mb']):.1f} MB"


def markdown(header, rows):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def against(cases, peers, works=(BACKWARD,)):
    """A row for each case: our time, percent of a copy, peak memory, and each peer's ratio."""
    rows = []
    for (work, size, dtype), case in cases.items():
        if work in works and OURS in case:
            ours = case[OURS]
            cells = [size, dtype, work, milliseconds(ours), of_copy(ours), memory(ours)]
            rows.append([*cells, *(faster(case[peer]) if peer in case else "" for peer in peers)])
    header = ["N x C", "dtype", "work", "toast_loss", "of a copy's speed", "extra memory at its peak"]
    return markdown([*header, *(f"faster than {peer}" for peer in peers)], rows)


def medoids(cases):
    rows = []
    for (metric, size, dtype), case in cases.items():
        peers = ", ".join(f"{peer} {faster(row)}" for peer, row in case.items() if peer not in (OURS, COPY))
        ours = case[OURS]
        rows.append([size, dtype, metric, milliseconds(ours), memory(ours), peers])
    return markdown(["N x D", "dtype", "metric", "class_medoids", "extra memory at its peak", "faster than"], rows)


def steps(cases):
    rows = []
    for (work, size, dtype), case in cases.items():
        peers = [f"{slower(peer_rows)} {peer}" for peer, peer_rows in case.items() if peer != OURS]
        rows.append([work, size, dtype, milliseconds(case[OURS]), ", ".join(peers)])
    return markdown(["work", "size", "dtype", "with TOAST", "TOAST costs, in times of"], rows)


def epochs(cases):
    rows = []
    for (work, size, dtype), case in cases.items():
        batches = int(size.split(" rows")[0]) / int(size.split(" by ")[1])
        once = in_milliseconds(case[OURS])
        rows.append([work, size, dtype, f"{once:.3g} ms", f"{once / batches:.3g} ms"])
    return markdown(["work", "size", "dtype", "once an epoch", "shared out among its steps"], rows)


def heads(cases):
    rows = []
    for (_, size, dtype), case in cases.items():
        peers = ", ".join(f"{peer} {faster(row)}" for peer, row in case.items() if peer != OURS)
        rows.append([size, dtype, milliseconds(case[OURS]), memory(case[OURS]), peers])
    return markdown(["N x width x C", "dtype", "toast_loss", "extra memory at its peak", "faster than"], rows)


def scaling(cases):
    """The exponent b of time = a size^b, by least squares in the logarithms, over each sweep's sizes."""
    sweeps = {}
    for (sweep, size, _), case in cases.items():
        sweeps.setdefault(sweep, []).append((float(size), in_milliseconds(case[OURS])))
    rows = []
    for sweep, points in sweeps.items():
        points.sort()
        x, y = zip(*((math.log(size), math.log(ms)) for size, ms in points), strict=True)
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
        rows.append([sweep, ", ".join(f"{size:g}: {ms:.3g}" for size, ms in points), f"{slope:.2f}"])
    return markdown(["what grows", "size: ms", "exponent"], rows)


def threads(cases):
    rows = []
    for (op, size, _), case in cases.items():
        fewer = ", ".join(f"{peer} {faster(row)}" for peer, row in case.items() if peer != OURS)
        rows.append([op, size, milliseconds(case[OURS]), fewer])
    return markdown(["op", "threads", "time", "faster than with"], rows)


def plot(cases, path, dtype, what):
    """Time of a forward and backward pass against C, ours and the peers', and a copy of the same bytes."""
    largest, points = {}, {}  # of the batches of one C
    for work, size, case_dtype in cases:
        if work == BACKWARD and case_dtype == dtype:
            rows, classes = (int(n) for n in size.split(" x "))
            largest[classes] = max(largest.get(classes, (0, None)), (rows, size))
    for classes, (rows, size) in largest.items():
        for peer, of_peer in cases[BACKWARD, size, dtype].items():
            points.setdefault(peer, []).append((classes, 1e3 * in_milliseconds(of_peer) / rows))
    figure, axes = plt.subplots(figsize=(7, 3.8), dpi=150)
    for peer, colour in COLOURS.items():
        if peer in points:
            classes, times = zip(*sorted(points[peer]), strict=True)
            axes.plot(
                classes, times, color=colour, label=peer, marker=None if peer == COPY else "o",
                linestyle="--" if peer == COPY else "-", linewidth=2.5 if peer == OURS else 1.5,
            )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="us a row, forward + backward", title=what)
    ticks = sorted({c for values in points.values() for c, _ in values})
    axes.set_xticks(ticks, [f"{c:,}" for c in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, facecolor="white")  # a white card, so that it is legible on a dark page too
    plt.close(figure)


def measured_on(cases):
    """What the tables were measured on, in a sentence."""
    rows = [row for case in cases.values() for of_peer in case.values() for row in of_peer]
    runs = max(len(case[OURS]) for case in cases.values())
    device, threads, torch, malloc = (
        sorted({row[key] for row in rows}) for key in ("device", "threads", "torch", "malloc")
    )
    dates, commits = ([row[key] for row in rows] for key in ("date", "commit"))
    days = " to ".join(sorted({min(dates), max(dates)}))
    return (
        f"{', '.join(device)}; {' or '.join(threads)} threads; torch {', '.join(torch)}; {runs} runs ({days},"
        f" commits {', '.join(dict.fromkeys(commits))}); malloc: {', '.join(malloc)} what was freed."
    )


def write_tables(path, tables):
    """Puts the tables into their places in a page; of what was not measured the old table stays."""
    text = path.read_text()
    for name, table in tables.items():
        text, found = re.subn(
            rf"(<!-- table {name} -->\n).*?(<!-- end -->)", lambda m, t=table: m[1] + t + "\n" + m[2], text, flags=re.S
        )
        assert found == 1, f"{path} must have one place for the table {name}, has {found}"
    path.write_text(text)


def tables():
    """{page: {name: table}} of what was measured."""
    losses = ["eager", "torch.compile", "F.cross_entropy alone"]
    plain, both = ["F.cross_entropy", "torch.compile"], ("forward", BACKWARD)
    top_k = ["eager", "torch.compile", "toast_kernels without soft targets"]
    pages = {
        BENCH.parent / "README.md": {
            "blended": (against, last_runs("loss_blended"), losses),
            "cross-entropy": (against, last_runs("loss_plain"), plain),
            "top-k": (against, last_runs("loss_top_k"), top_k),
            "medoids": (medoids, last_runs("medoids")),
            "training step": (steps, last_runs("training_step")),
            "set_epoch": (epochs, last_runs("set_epoch")),
            "machine": (measured_on, last_runs("loss_blended")),
        },
        BENCH / "README.md": {
            "forward": (against, last_runs("loss_blended"), losses, ["forward"]),
            "cross-entropy forward": (against, last_runs("loss_plain"), plain, ["forward"]),
            "long rows": (against, last_runs("loss_long_rows"), losses),
            "head": (heads, last_runs("head")),
            "scaling": (scaling, last_runs("scaling")),
            "threads": (threads, last_runs("threads")),
            "gpu blended": (against, last_runs("loss_blended", True), losses, both),
            "gpu cross-entropy": (against, last_runs("loss_plain", True), [*plain, "Liger"], both),
            "gpu top-k": (against, last_runs("loss_top_k", True), top_k),
            "gpu long rows": (against, last_runs("loss_long_rows", True), ["backend triton", "backend cuda", *losses]),
            "gpu graph": (heads, last_runs("loss_graph", True)),
            "gpu medoids": (medoids, last_runs("medoids", True)),
            "gpu training step": (steps, last_runs("training_step", True)),
            "gpu set_epoch": (epochs, last_runs("set_epoch", True)),
            "gpu machine": (measured_on, last_runs("loss_blended", True)),
            "gpu head": (heads, last_runs("head", True)),
        },
    }
    return {
        page: {name: make(cases, *rest) for name, (make, cases, *rest) in of_page.items() if cases}
        for page, of_page in pages.items()
    }


def main():
    """Into the READMEs if the results are the repository's; else into tables.md beside them."""
    if RESULTS.resolve() == (BENCH / "results").resolve():
        for page, of_page in tables().items():
            write_tables(page, of_page)
    else:
        text = "\n\n".join(f"## {name}\n\n{table}" for page in tables().values() for name, table in page.items())
        (RESULTS / "tables.md").write_text(text + "\n")
    for name, on_gpu, dtype in (("blended_kl", False, "float32"), ("blended_kl_gpu", True, "bfloat16")):
        if cases := last_runs("loss_blended", on_gpu):
            where = "GPU" if on_gpu else "CPU"
            plot(cases, RESULTS / f"{name}.png", dtype, f"soft targets, a past for half of the rows; {where}, {dtype}")


if __name__ == "__main__":
    main()
