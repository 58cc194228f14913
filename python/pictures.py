"""The two pictures of a run: its learning curves, and what the class medoids found to be alike."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import matplotlib
import torch
from checkpoint import save_bytes
from image_data import ImageData
from record import LEANINGS, Record
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

COLOURS = {"ce": "#555555", "toast": "#c8501e", "stage1": "#1f77b4", "stage2": "#2a8f4f"}
NAMES = {"ce": "cross-entropy", "toast": "TOAST", "stage1": "stage 1 (medoids)", "stage2": "stage 2 (replay)"}
SHOWN_CLASSES = 12


def learning_curves(records: list[Record], data: ImageData, backbone: str, path: Path) -> None:
    """Training cross-entropy, validation NLL and validation accuracy by epoch, one line a training."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    titles = {
        "train_ce": "training cross-entropy\n(new rows, augmented, before their step)",
        "nll": "validation NLL",
        "top1": "validation top-1, %",
    }
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for record in records:
            values = [100 * epoch[key] if key == "top1" else epoch[key] for epoch in record.history]
            panel.plot(
                range(1, len(values) + 1),
                values,
                color=COLOURS[record.method],
                label=NAMES[record.method] if record.seed == records[0].seed else None,
                marker="o",
                markersize=3,
                linewidth=1.4,
            )
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        if key != "top1":
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_locator(NullLocator())
    panels[-1].legend(frameon=False, loc="lower right")
    seeds = len({record.seed for record in records})
    figure.suptitle(
        f"{data.name}: {len(data.classes):,} classes, {len(data.train):,} training images, {backbone}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}"
    )
    save(figure, path)


def medoid_targets(record: Record, data: ImageData, path: Path) -> None:
    """A dozen classes from the surest soft target to the least sure: the medoid, and where its target leans."""
    medoids = record.medoids
    known = torch.nonzero(medoids.image >= 0).flatten()
    by_sureness = known[medoids.own[known].argsort(descending=True, stable=True)]
    shown = by_sureness[torch.linspace(0, len(by_sureness) - 1, min(SHOWN_CLASSES, len(by_sureness))).long()].tolist()

    rows = -(-len(shown) // 2)
    figure = plt.figure(figsize=(14, 1.6 * rows + 1.3), layout="constrained")
    figure.suptitle(
        f"Class medoids of the last epoch on {data.name}, {NAMES[record.method]}: {len(shown)} of {len(known):,} "
        "classes, evenly spaced from the surest soft target to the least sure"
    )
    for half, labels in zip(figure.subfigures(1, 2, wspace=0.05), (shown[:rows], shown[rows:]), strict=True):
        half.suptitle(
            "class, its medoid and its own share, then the five other classes its soft target leans to", size=10
        )
        panels = half.subplots(rows, 1 + LEANINGS, squeeze=False, width_ratios=[1.6] + [1] * LEANINGS)
        for panel in panels.flat:
            panel.axis("off")
        for row, label in zip(panels, labels, strict=False):
            title = f"{_wrapped(data.classes[label])}\n{_percent(medoids.own[label].item())}"
            _show_image(row[0], data, medoids.image[label], title, "bold")
            leanings = zip(medoids.share[label].tolist(), medoids.leaning[label].tolist(), strict=True)
            for panel, (share, other) in zip(row[1:], leanings, strict=False):
                _show_image(panel, data, medoids.image[other], _percent(share))
    save(figure, path)


def _show_image(panel: plt.Axes, data: ImageData, row: Tensor, title: str, weight: str = "normal") -> None:
    """The training image in this row, as it is stored; an empty frame for -1, a class without a medoid."""
    if row >= 0:
        image = data.train.images[row].permute(1, 2, 0).cpu().numpy()
        panel.imshow(image, cmap="gray_r", vmin=0, vmax=255)
    panel.set_title(title, fontsize=8, weight=weight, pad=3)
    panel.set(xticks=[], yticks=[])
    panel.axis("on")
    for spine in panel.spines.values():
        spine.set_color("#bbbbbb")


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "< 0.05%"


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, 22, max_lines=2, placeholder=" ..."))


def save(figure: Figure, path: Path, dpi: int = 130) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    plt.close(figure)
    save_bytes(content.getvalue(), path)
