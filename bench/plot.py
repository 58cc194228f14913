"""The plot: time a row against the number of classes, ours and the peers'; a copy of the same bytes is the floor."""

import matplotlib
from loss_peers import PLAIN, TUNED
from results import COPY, OURS
from tables import BACKWARD, in_milliseconds

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LINES = {
    "eager": ("eager PyTorch", "#6b7280", "-", 1.6),
    "torch.compile": ("torch.compile", "#3b73d9", "-", 1.6),
    TUNED: ("tuned torch.compile", "#8b5cd6", "-", 1.6),
    PLAIN: ("F.cross_entropy alone", "#b8860b", ":", 1.6),
    OURS: ("toast_kernels", "#e4572e", "-", 3.0),
    COPY: ("a copy of the bytes", "#2f8f6b", "--", 1.6),
}
FEWEST = 1000  # classes
APART = 0.05  # of the axis: labels stand at least so far apart, one line's height


def draw(cases, path):
    points, rows, ks = {}, set(), set()
    for (work, size, _), case in cases.items():
        if work == BACKWARD:
            n, classes = (int(word) for word in size.split(",")[0].split(" x "))
            if classes < FEWEST:
                continue
            rows.add(n)
            ks.add(size.split(", k = ")[1])
            for peer in LINES.keys() & case.keys():
                points.setdefault(peer, []).append((classes, 1e3 * in_milliseconds(case[peer]) / n))
    figure, axes = plt.subplots(figsize=(8, 4.4), dpi=150)
    axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="µs a row, forward + backward (lower is better)")
    ends = {}
    for peer, (_, colour, style, width) in LINES.items():
        if peer in points:
            classes, microseconds = zip(*sorted(points[peer]), strict=True)
            axes.plot(classes, microseconds, color=colour, linestyle=style, linewidth=width)
            ends[peer] = microseconds[-1]
    widest = max(c for values in points.values() for c, _ in values)
    lowest, highest = axes.get_ylim()
    for peer, height in spread_out(ends, (highest / lowest) ** APART).items():
        label, colour, _, _ = LINES[peer]
        weight = "bold" if peer == OURS else "normal"
        axes.text(1.12 * widest, height, label, color=colour, va="center", fontsize=10, fontweight=weight)
    axes.set_title(
        f"TOAST loss: soft targets of {min(ks)} listed classes, a past for half of {min(rows)} rows (CPU, float32)",
        fontsize=10, loc="left",
    )  # fmt: skip
    ticks = sorted({c for values in points.values() for c, _ in values})
    axes.set_xticks(ticks, [f"{c:,}" for c in ticks])
    axes.set_yticks([y for y in (0.1, 1, 10, 100, 1000) if axes.get_ylim()[0] <= y <= axes.get_ylim()[1]])
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, facecolor="white", bbox_inches="tight")  # a white card, legible on a dark page too
    plt.close(figure)


def spread_out(ends, apart):
    """Where each line's label stands: at its end, or `apart` times as high as the label below it."""
    heights, below = {}, 0.0
    for peer, height in sorted(ends.items(), key=lambda end: end[1]):
        below = heights[peer] = max(height, apart * below)
    return heights
