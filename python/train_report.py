"""What a run has shown: the table, the verdict on TOAST, and the same numbers as JSON."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

from checkpoint import save_text
from record import Record
from rich import box
from rich.console import Console
from rich.table import Table
from seeds import CONFIDENCE, FEW_SEEDS, Difference, spread

PARTS = ("data", "forward", "loss", "backward", "optimiser", "replay")


def print_tables(console: Console, records: list[Record], test_images: int) -> None:
    methods = by_method(records)
    seeds = len(next(iter(methods.values())))
    scores = _table(
        f"{test_images:,} test images, " + (f"mean ± sd of {seeds} seeds" if seeds > 1 else "one seed"),
        ("top-1 %", "top-5 %", "NLL", "ECE %", "seconds", "peak memory"),
    )
    times = _table("ms a step by part; rows a step; medoids in s an epoch", (*PARTS, "all", "rows", "medoids"))
    for method, runs in methods.items():
        scores.add_row(
            method,
            spread([100 * run.test["top1"] for run in runs], 2),
            spread([100 * run.test["top5"] for run in runs], 2),
            spread([run.test["nll"] for run in runs], 4),
            spread([100 * run.test["ece"] for run in runs], 2),
            spread([run.wall_seconds for run in runs], 1),
            spread([run.peak_bytes / 1e6 for run in runs], 0) + " MB",
        )
        steps = sum(run.steps for run in runs)
        ms = [1000 * sum(run.part_seconds.get(part, 0.0) for run in runs) / steps for part in PARTS]
        medoids = sum(run.part_seconds["medoids"] / len(run.history) for run in runs) / len(runs)
        times.add_row(
            method,
            *(f"{value:.2f}" for value in ms),
            f"{sum(ms):.2f}",
            f"{sum(run.fresh_rows + run.replayed_rows for run in runs) / steps:.0f}",
            f"{medoids:.2f}" if runs[0].medoids else "-",
        )
    console.print(scores)
    console.print(times)


def by_method(records: list[Record]) -> dict[str, list[Record]]:
    methods: dict[str, list[Record]] = {}
    for record in records:
        methods.setdefault(record.method, []).append(record)
    return methods


def verdict(records: list[Record]) -> list[str]:
    """For each method beside cross-entropy a sentence: did it win, by how much, at what cost."""
    methods = by_method(records)
    plain = methods.pop("ce", None)
    return [_compare(method, runs, plain) for method, runs in methods.items()] if plain else []


def _compare(method: str, ours: list[Record], plain: list[Record]) -> str:
    name = "TOAST" if method == "toast" else f"TOAST's {method}"
    points = [100 * (a.test["top1"] - b.test["top1"]) for a, b in zip(ours, plain, strict=True)]
    if len(points) > 1:
        difference = Difference.of(points)
        mean, margin, sign = difference.mean, difference.half, difference.sign
        basis = f"the {CONFIDENCE:.0%} t interval over {len(points)} seeds"
    else:
        gains = 100 * (ours[0].test_hits.double() - plain[0].test_hits.double())
        mean, margin = points[0], 2 * gains.std().item() / math.sqrt(len(gains))
        sign = (mean > margin) - (mean < -margin)
        basis = "two standard errors over the test images; seeds vary beyond that"
    outcome = {
        1: f"{name} beat cross-entropy",
        -1: f"{name} lost to cross-entropy",
        0: f"{name} and cross-entropy cannot be told apart",
    }[sign]
    if 1 < len(points) < FEW_SEEDS:
        outcome = f"{name} beside cross-entropy, too few seeds for a verdict"
    nll = statistics.fmean(a.test["nll"] - b.test["nll"] for a, b in zip(ours, plain, strict=True))
    longer = sum(run.wall_seconds for run in ours) / sum(run.wall_seconds for run in plain)
    replayed = f", {name} {ours[0].replayed_rows:,} replayed rows on top" if ours[0].replayed_rows else ""
    return (
        f"{outcome}: top-1 {mean:+.2f} points ± {margin:.2f} ({basis}), NLL {nll:+.4f}. "
        f"Both saw {ours[0].fresh_rows:,} new rows in {ours[0].steps:,} steps{replayed}; "
        f"{name} took {longer:.2f} times as long."
    )


def save_results(records: list[Record], verdicts: list[str], path: Path) -> None:
    trainings = {
        record.name: {
            name: value for name, value in record.state_dict().items() if name not in ("test_hits", "medoids")
        }
        for record in records
    }
    save_text(json.dumps({"trainings": trainings, "verdict": verdicts}, indent=2) + "\n", path)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table
