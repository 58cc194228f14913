"""The study's two pictures: where each method helps, and how it learns."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from pictures import plt, save
from study_methods import METHODS
from study_regimes import REGIMES
from study_run import KEY, write_settings

if TYPE_CHECKING:
    from study_results import Results

DPI = 110
OWN = {
    "ce": "#555555",
    "ce-1.5": "#888888",
    "ce-2": "#bbbbbb",
    "stage2": "#1b4d3e",
    "toast": "#c8501e",
    "stage2-half": "#000000",
}
PANELS = (  # score, its factor, whether against cross-entropy of as many forward rows, title
    ("top1", 100, False, "top-1, points: right is better"),
    ("nll", 1, False, "NLL: left is better"),
    ("top1", 100, True, "top-1 at as many forward rows, points"),
)


def benefit(results: Results, path: Path) -> None:
    """Test scores less cross-entropy's, with t intervals: a line a method, grouped by regime."""
    regimes = [regime for regime in results.regimes if len(results.methods(regime)) > 1]
    lines = [(regime, method) for regime in regimes for method in results.methods(regime) if method != "ce"]
    place = {line: -index - regimes.index(line[0]) for index, line in enumerate(lines)}  # with a gap between regimes
    colours = _colours(results.plan.methods)
    height = 1.6 + 0.16 * (len(lines) + len(regimes))
    figure, panels = plt.subplots(1, len(PANELS), figsize=(14, height), sharey=True, layout="constrained")
    for panel, (score, scale, as_many_rows, title) in zip(panels, PANELS, strict=True):
        for regime, method in lines:
            other = results.of_as_many_rows(method) if as_many_rows else "ce"
            difference = other and results.difference(regime, method, score, other)
            if not difference:
                continue
            panel.errorbar(
                scale * difference.mean,
                place[regime, method],
                xerr=None if difference.half is None else scale * difference.half,
                fmt="o" if difference.half is not None else "x",
                color=colours[method],
                markersize=4,
                capsize=2,
                linewidth=1.3,
                label=METHODS[method].title,
            )
        panel.axvline(0, color="#555555", linewidth=1)
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.25, axis="x")
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    of_regimes = [[y for line, y in place.items() if line[0] == regime] for regime in regimes]
    panels[0].set_yticks(list(map(statistics.fmean, of_regimes)), [REGIMES[regime].title for regime in regimes])
    by_title = {title: handle for handle, title in zip(*panels[0].get_legend_handles_labels(), strict=True)}
    figure.legend(by_title.values(), by_title, frameon=False, loc="outside lower center", ncols=4, fontsize=9)
    same = results.same
    figure.suptitle(
        f"{same['data']}, {same['classes']} classes: test scores less cross-entropy's with the same seed, "
        "mean and 95% t interval (x: one seed)",
        fontsize=11,
    )
    save(figure, path, DPI)


def curves(results: Results, rows: list[dict], path: Path) -> None:
    """Validation top-1 and NLL by share of the training, a line a method, a column a regime."""
    by_run: dict[tuple, dict[int, dict]] = defaultdict(dict)
    for row in rows:
        by_run[tuple(row[name] for name in KEY)][row["epoch"]] = row
    colours = _colours(results.plan.methods)
    columns = len(results.regimes)
    figure, panels = plt.subplots(2, columns, figsize=(3.2 * columns + 1, 6), squeeze=False, layout="constrained")
    for column, regime in enumerate(results.regimes):
        for method in results.methods(regime):
            settings = write_settings(results.settings[regime, method])
            of_seeds = [
                by_run[(*results.same.values(), regime, method, settings, seed)]
                for seed in results.cells[regime, method]
            ]
            epochs = sorted(set.intersection(*(set(run) for run in of_seeds)))
            for panel, score, scale in ((panels[0, column], "val_top1", 100), (panels[1, column], "val_nll", 1)):
                panel.plot(
                    [epoch / epochs[-1] for epoch in epochs],
                    [scale * statistics.fmean(run[epoch][score] for run in of_seeds) for epoch in epochs],
                    color=colours[method],
                    linewidth=1.2,
                    label=METHODS[method].title,
                )
        panels[0, column].set_title(REGIMES[regime].title, fontsize=9)
        panels[1, column].set_xlabel("share of the training", fontsize=9)
    panels[0, 0].set_ylabel("validation top-1 %")
    panels[1, 0].set_ylabel("validation NLL")
    for panel in panels.flat:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4)
    save(figure, path, DPI)


def _colours(methods) -> dict[str, str | tuple]:
    """The same for a method in every picture."""
    others = [method for method in METHODS if method not in OWN]
    return {method: OWN[method] if method in OWN else plt.cm.tab10(others.index(method)) for method in methods}
