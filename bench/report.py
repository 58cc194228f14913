"""Makes the README's tables and plot from bench/results/*.csv, so that no number there is typed by hand.

    python bench/report.py                 (make bench runs it)

Of each case the newest rows count. Tables stand in README.md between <!-- table NAME --> and <!-- end -->.
"""

import csv
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
OURS = "toast_kernels"
FLOOR = "moving the bytes"


def newest(name):
    """{condition: {case: row}} of bench/results/NAME.csv, a condition being what was measured on what."""
    path = RESULTS / f"{name}.csv"
    cases = {}
    if path.exists():
        with path.open(newline="") as lines:
            for row in csv.DictReader(lines):
                condition = tuple(row.get(key, "") for key in ("loss", "shape", "metric", "N", "C", "dtype"))
                cases.setdefault(condition, {})[row["case"]] = row
    return cases


def times(row):
    """How many times as fast ours is, with the spread of the rounds."""
    return (
        f"{float(row['ours_faster']):.1f}x ({float(row['ours_faster_p20']):.1f} - {float(row['ours_faster_p80']):.1f})"
    )


def milliseconds(row):
    return f"{float(row['ms']) / float(row.get('calls') or 1):.3g} ms"


def markdown(header, rows):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def blended_table(cases):
    rows = []
    for (loss, _, _, n, c, dtype), case in cases.items():
        if loss != "blended":
            continue
        slower = 1 / float(case[FLOOR]["ours_faster"])
        rows.append(
            [f"{n} x {c}", dtype, milliseconds(case[OURS]), times(case["eager"]), times(case["torch.compile"]),
             times(case["cross_entropy alone"]), f"{slower:.1f}x"]
        )  # fmt: skip
    return markdown(
        ["N x C", "dtype", "toast_loss", "faster than eager", "than torch.compile", "than F.cross_entropy alone",
         "time of moving the bytes"], rows,
    )  # fmt: skip


def cross_entropy_table(cases):
    rows = []
    for (loss, _, _, n, c, dtype), case in cases.items():
        if loss == "cross-entropy":
            rows.append([f"{n} x {c}", dtype, milliseconds(case[OURS]), times(case["F.cross_entropy"])])
        if loss == "top-k 64":
            plain = f"{1 / float(case['toast_kernels without soft targets']['ours_faster']):.2f}x its own plain loss"
            rows.append([f"{n} x {c}, top-k 64", dtype, milliseconds(case[OURS]), times(case["eager"]) + ", " + plain])
    return markdown(["N x C", "dtype", "toast_loss", "faster than F.cross_entropy (top-k: than eager)"], rows)


def medoids_table(cases):
    rows = []
    for (_, shape, metric, *_), case in cases.items():
        peers = ", ".join(f"{name} {times(row)}" for name, row in case.items() if name not in (OURS, "reading x"))
        rows.append([shape, metric, milliseconds(case[OURS]), peers])
    return markdown(["N x D", "metric", "class_medoids", "faster than"], rows)


def plot_blended(cases, path):
    """Time of a forward and backward pass, ours and the peers', a group of bars a shape."""
    groups = [(f"{n} x {c}", case) for (loss, _, _, n, c, dtype), case in cases.items()
              if loss == "blended" and dtype == "float32"]  # fmt: skip
    colours = {"eager": "#8a8f98", "torch.compile": "#5b8def", OURS: "#e4572e", FLOOR: "#3aa17e"}
    figure, axes = plt.subplots(figsize=(8, 3.6), dpi=150)
    for k, (name, colour) in enumerate(colours.items()):
        heights = [float(case[name]["ms"]) for _, case in groups]
        positions = [i + 0.2 * k for i in range(len(groups))]
        axes.bar(positions, heights, 0.19, color=colour, label=name)
        for x, height in zip(positions, heights, strict=True):
            axes.annotate(f"{height:.2g}", (x, height), ha="center", va="bottom", fontsize=7)
    axes.set_yscale("log")
    axes.set_xticks([i + 0.3 for i in range(len(groups))], [name for name, _ in groups])
    axes.set_xlabel("N x C, float32, soft targets, a past for half of the rows, 2 threads")
    axes.set_ylabel("ms, forward + backward")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.tight_layout()
    figure.savefig(path, facecolor="white")


def main():
    losses, medoids = newest("blended_kl"), newest("medoids")
    tables = {
        "blended": blended_table(losses),
        "cross-entropy": cross_entropy_table(losses),
        "medoids": medoids_table(medoids),
    }
    text = README.read_text()
    for name, table in tables.items():
        text, found = re.subn(
            rf"(<!-- table {name} -->\n).*?(<!-- end -->)", lambda m, t=table: m[1] + t + "\n" + m[2], text, flags=re.S
        )
        assert found == 1, f"README.md must have one place for the table {name}, has {found}"
    README.write_text(text)
    plot_blended(losses, RESULTS / "blended_kl.png")


if __name__ == "__main__":
    main()
