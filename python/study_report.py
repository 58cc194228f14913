"""The study's page and pictures, made of its tables: no number in them is typed by hand."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import study_pictures
from checkpoint import save_text
from seeds import CONFIDENCE, FEW_SEEDS, spread
from study_methods import METHODS, TRIALS
from study_plan import SAME
from study_regimes import REGIMES
from study_results import Results, all_results
from study_table import read

SCORES = {"top1": ("top-1 %", 100, 2), "top5": ("top-5 %", 100, 2), "nll": ("NLL", 1, 3), "ece": ("ECE %", 100, 2)}
DATA = {
    "glyphs": "A class is a character, an image is the character in one face of a font. Twelve faces are trained on, "
    "one is for validation and three for testing (`python/README.md` names them). The classes are the first by code "
    "point: Latin letters with and without accents, digits and signs.",
}
NOT_REPEATED = (
    "The paper's own data sets (photographs that must be downloaded), its five backbones at their size and its time "
    "beside a recent method need GPUs and days. This study is of small images, a small network and short trainings on "
    "CPUs: it can say what happens there, and nothing of networks that are trained for hundreds of epochs."
)


COST_OF = tuple(name for name in SAME if name != "epochs")


def write(folder: Path, page: Path) -> None:
    """`page`, and the pictures in `folder`, from the tables in `folder`."""
    results = all_results(folder)
    if results and results[0].regimes:
        study_pictures.benefit(results[0], folder / "benefit.png")
        study_pictures.curves(results[0], read(folder / "curves.csv"), folder / "curves.png")
    save_text(text(folder, page), page)


def text(folder: Path, page: Path) -> str:
    results, where = all_results(folder), os.path.relpath(folder, page.parent)
    costs = {(*(row[name] for name in COST_OF), row["method"]): row for row in read(folder / "cost.csv")}  # the last
    parts = [
        "# Does it help?",
        "Cross-entropy beside TOAST and its relatives, all with this library's loss, on images, under conditions that "
        "differ in one factor each. `make study` makes those of its core's runs that are missing, "
        f'`make study ARGS="repeat --out again"` makes all of them anew, `ARGS="--help"` says how to make others; this '
        f"page is made of `{folder.name}/results.csv`.",
    ]
    for result in results[:1]:
        parts += _of_plan(result, where, costs)
    parts += _others(results[1:])
    parts += _cost(list(costs.values()))
    parts += [*_methods(), "## What was not repeated", NOT_REPEATED]
    return "\n\n".join(parts) + "\n"


def _of_plan(result: Results, pictures: str, costs: dict[tuple, dict]) -> list[str]:
    same = result.same
    parts = [
        f"## {same['data']}, {same['classes']} classes, {same['backbone']}",
        f"{same['classes']} classes, images of {same['image_size']} x {same['image_size']}, batches of "
        f"{same['batch_size']} new images, {same['epochs']} epochs under the base regime; the others see as many "
        f"images (of less data, in more epochs), but for those with more epochs. {result.runs} runs so far, trials "
        "included.",
        *filter(None, [DATA.get(same["data"])]),
    ]
    if not result.regimes:
        return [*parts, _coverage(result)]
    return [
        *parts,
        "### In short",
        *_in_short(result, costs),
        f"![differences from cross-entropy by regime and method]({pictures}/benefit.png)",
        _coverage(result),
        "### Scores",
        *_scores(result),
        *_equal_forward_rows(result),
        "### Learning curves",
        f"Validation images, mean of the seeds.\n\n![learning curves by regime]({pictures}/curves.png)",
        "### Settings that were chosen",
        *_settings(result),
    ]


def _others(results: list[Results]) -> list[str]:
    """One table of all plans but the first."""
    rows = []
    for result in results:
        same = result.same
        task = f"{same['data']}, {same['classes']} classes", same["backbone"], same["epochs"]
        for regime in result.regimes:
            for method in result.methods(regime):
                cell = result.cells[regime, method]
                top1, nll = (spread([SCORES[s][1] * run[f"test_{s}"] for run in cell.values()], SCORES[s][2])
                    for s in ("top1", "nll"))  # fmt: skip
                rows.append(
                    (*task, REGIMES[regime].title, METHODS[method].title, _own(result, regime, method), len(cell), top1,
                     nll, *(_from(result, regime, method, score, other)
                            for other in ("ce", result.of_as_many_rows(method)) for score in ("top1", "nll")))
                )  # fmt: skip
    if not rows:
        return []
    return [
        "## Other networks and data",
        "Settings chosen in the same way, under each row's own conditions; test images, and the differences from "
        "cross-entropy at as many new images and at as many forward rows, as above.",
        _table(
            ("data", "network", "epochs", "regime", "method", "settings", "seeds", "top-1 %", "NLL", "top-1 from ce",
             "NLL from ce", "top-1 at as many forward rows", "NLL at as many forward rows"),
            rows,
        ),
    ]  # fmt: skip


def _coverage(result: Results) -> str:
    missing = [regime for regime in REGIMES if regime not in result.regimes]
    rows = [
        (REGIMES[regime].title, *(_seeds(result, regime, method) for method in result.plan.methods))
        for regime in result.regimes
    ]
    parts = [_table(("seeds that are there", *result.plan.methods), rows)] if rows else []
    return "\n\n".join(parts + [f"Not there yet: {'; '.join(REGIMES[m].title for m in missing)}."] * bool(missing))


def _seeds(result: Results, regime: str, method: str) -> str:
    return str(len(result.cells.get((regime, method), {})) or "-")


def _in_short(result: Results, costs: dict[tuple, dict]) -> Iterable[str]:
    """Who wins at as many forward rows; TOAST and the best of the others there, in words; then all in a table."""
    yield from _at_as_many_rows(result)
    average = {m: result.over_regimes(m, "top1") for m in result.plan.methods if result.of_as_many_rows(m)}
    others = [m for m in average if m != "toast" and average[m]]
    best = max(others, key=lambda m: (average[m][1], average[m][0].mean), default=None)
    if words := [f"- {_in_words(result, m, costs)}" for m in ("toast", best) if average.get(m)]:
        yield (
            "TOAST, and of the other methods that send more rows through the network and have all seeds under the most "
            "regimes the best on average:\n\n" + "\n".join(words)
        )
    yield (
        f"Differences from cross-entropy with the same seed, mean ± half of the {CONFIDENCE:.0%} t interval over "
        f"seeds, not over images. Where {FEW_SEEDS} seeds or more exclude 0 they are bold and counted; there is no "
        "correction for looking at many differences, of which some are bold by chance. The runs were made in this "
        "order: the core with three seeds; its relatives under two regimes; the core with five; more seeds and regimes "
        "for the reading of stage 2 that had done best; 20% wrong labels; Mixup and CutMix; half of the "
        "data; eight times the epochs."
    )
    rows = [
        (METHODS[m].title, *_tallies(result, m), *_price(result, m, costs)) for m in result.plan.methods if m != "ce"
    ]
    if rows:
        yield (
            f"In each cell: better / worse than cross-entropy in so many of the regimes that have {FEW_SEEDS} seeds "
            "or more; the mean difference over those that have all seeds."
        )
        yield _table(
            ("", "top-1, points", "NLL", "top-1 at as many forward rows", "NLL at as many forward rows",
             "forward rows / ce's", "time of a step / ce's"),
            rows,
        )  # fmt: skip


def _at_as_many_rows(result: Results) -> Iterable[str]:
    """How often a method that sends more rows through the network is worth them."""
    differences = {
        (method, regime): difference
        for method, regime in product(result.plan.methods, result.regimes)
        if (other := result.of_as_many_rows(method))
        and (difference := result.difference(regime, method, "top1", other))
        and difference.pairs >= FEW_SEEDS
    }
    if differences:
        signs = [difference.sign for difference in differences.values()]
        better = [
            f"{METHODS[method].title}, under {REGIMES[regime].title} ({difference.shown(*SCORES['top1'][1:])})"
            for (method, regime), difference in differences.items()
            if difference.sign > 0
        ]
        yield (
            "Is it worth its cost? As many forward rows spent on longer training with cross-entropy gave a better "
            f"top-1 in {signs.count(-1)} of {len(signs)} comparisons (a method under a regime), one that cannot be "
            f"told apart in {signs.count(0)}, a worse one in {len(better)}{': ' * bool(better)}{'; '.join(better)}."
        )


def _in_words(result: Results, method: str, costs: dict[tuple, dict]) -> str:
    forward_rows, time = _price(result, method, costs)
    tallies = _tallies(result, method)
    words = [
        f"at as many {rows} top-1 {top1.mean} points and NLL {nll.mean} on average over {top1.averaged} regimes, top-1 "
        f"better / worse in {top1.counts}"
        for rows, top1, nll in (("new images", *tallies[:2]), ("forward rows", *tallies[2:]))
    ]
    return (
        f"**{METHODS[method].title}**, for {forward_rows} times the forward rows and {time} times the time of a step: "
        f"{'; '.join(words)}."
    )


def _price(result: Results, method: str, costs: dict[tuple, dict]) -> tuple[str, str]:
    """Forward rows and the time of a step, in cross-entropy's."""
    cost = costs.get((*(result.same[name] for name in COST_OF), method))
    return f"{METHODS[method].rows * METHODS[method].budget:g}", f"{cost['ratio']:.2f}" if cost else "-"


def _tallies(result: Results, method: str) -> list[Tally]:
    """Of top-1 and NLL at as many new images, then at as many forward rows."""
    pairs = product(("ce", result.of_as_many_rows(method)), ("top1", "nll"))
    return [Tally.of(result, method, score, other) for other, score in pairs]


@dataclass(frozen=True)
class Tally:
    """Over the regimes: in how many a method is better and worse, and its mean difference."""

    counts: str
    mean: str
    averaged: int

    @classmethod
    def of(cls, result: Results, method: str, score: str, other: str | None) -> Tally:
        differences = [result.difference(regime, method, score, other) for regime in result.regimes]
        signs = [each.sign for each in differences if each and each.pairs >= FEW_SEEDS]
        better = 1 if score == "top1" else -1
        counts = f"{signs.count(better)} / {signs.count(-better)} of {len(signs)}" if signs else "-"
        mean, averaged = result.over_regimes(method, score, other) or (None, 0)
        return cls(counts, mean.shown(*SCORES[score][1:]) if mean else "-", averaged)

    def __str__(self) -> str:
        return f"{self.counts}; {self.mean} over {self.averaged}" if self.averaged else self.counts


def _scores(result: Results) -> Iterable[str]:
    yield "Test images; mean ± standard deviation over seeds, and the differences from cross-entropy."
    for regime in result.regimes:
        rows = []
        for method in result.methods(regime):
            cell = result.cells[regime, method]
            row = [METHODS[method].title, len(cell)]
            for score, (_, scale, digits) in SCORES.items():
                row.append(spread([scale * run[f"test_{score}"] for run in cell.values()], digits))
            row += [_from(result, regime, method, score) for score in ("top1", "nll")]
            plain = result.cells[regime, "ce"]
            both = [seed for seed in cell if seed in plain]
            rows_each = [cell[seed]["forward_rows"] / plain[seed]["forward_rows"] for seed in both]
            row.append(f"{statistics.fmean(rows_each):.2f}" if both else "")
            # Of mixed images the older rows of the table have the hits of the first label alone.
            mixed = REGIMES[regime].mix != "none"
            row.append("-" if mixed else spread([100 * run["train_top1"] for run in cell.values()], 1))
            rows.append(row)
        columns = ("", "seeds", *(name for name, *_ in SCORES.values()), "top-1 from ce", "NLL from ce",
            "forward rows / ce's", "training top-1 %")  # fmt: skip
        yield f"**{REGIMES[regime].title[0].upper()}{REGIMES[regime].title[1:]}**\n\n{_table(columns, rows)}"


def _from(result: Results, regime: str, method: str, score: str, other: str | None = "ce") -> str:
    difference = result.difference(regime, method, score, other)
    return "" if method == other or difference is None else difference.shown(*SCORES[score][1:])


def _own(result: Results, regime: str, method: str) -> str:
    """The settings chosen among the method's own trials."""
    own = {name for trial in METHODS[method].trials for name in trial}
    settings = result.settings.get((regime, method), {})
    return ", ".join(f"{name} {value:g}" for name, value in settings.items() if name in own) or "-"


def _equal_forward_rows(result: Results) -> list[str]:
    """Each method that replays, against cross-entropy trained on as many forward rows."""
    rows = []
    for method in result.plan.methods:
        other = result.of_as_many_rows(method)
        for regime in result.regimes if other else ():
            difference = {score: result.difference(regime, method, score, other) for score in ("top1", "nll")}
            if difference["top1"]:
                shown = [difference[score].shown(*SCORES[score][1:]) for score in difference]
                rows.append((METHODS[method].title, REGIMES[regime].title, f"{METHODS[method].rows:g}", *shown))
    if not rows:
        return []
    return [
        "### At equal forward rows",
        "Methods with more forward rows than new ones, less cross-entropy trained for so much longer that as many rows "
        "go through the network.",
        _table(("", "regime", "times the epochs", "top-1, points", "NLL"), rows),
    ]


def _settings(result: Results) -> Iterable[str]:
    yield (
        f"By validation top-1 (then NLL) of {TRIALS} trials a method, cross-entropy included, with seed "
        f"{result.plan.seeds[0]}, under each regime; learning rate and weight decay are cross-entropy's choice for all."
    )
    methods = [method for method in result.plan.methods if METHODS[method].trials]
    rows = [(REGIMES[regime].title, *(_own(result, regime, method) for method in methods)) for regime in result.regimes]
    yield _table(("", *methods), rows)


def _cost(rows: list[dict]) -> list[str]:
    if not rows:
        return []
    lines = [
        (METHODS[row["method"]].title, f"{row['classes']:,}", f"{row['ms']:.1f}", f"{row['ratio']:.2f}",
         f"{row['forward_rows']:.2f}", f"{row['peak_mb']:.0f}")
        for row in rows
    ]  # fmt: skip
    return [
        "## What a step costs",
        "One thread; blocks of steps by all methods in turn in one process. The ratio is the median over "
        f"{rows[-1]['rounds']} rounds of a method's time to cross-entropy's in the same round. Forward rows: for each "
        "new row. Memory: the resident peak of a process of its own over an epoch and the start of the next. Medoids, "
        "once an epoch, are not in a step's time.",
        _table(("", "classes", "ms a step", "time / ce's", "forward rows", "peak MB"), lines),
    ]


def _methods() -> list[str]:
    rows = [
        (f"`{name}`", method.title, method.source, method.published,
         "; ".join(", ".join(f"{key} {value:g}" for key, value in trial.items()) for trial in method.trials))
        for name, method in METHODS.items()
    ]  # fmt: skip
    return [
        "## Methods",
        "Each is a setting of `ToastLoss` or `toast_loss`, with `HardReplay` or `PredictionMemory`; "
        "[the recipes](recipes/self-distillation.md) show them in code.",
        _table(("", "", "source", "published settings", "tried"), rows),
    ]


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
