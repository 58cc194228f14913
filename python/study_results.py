"""The study's results: the runs with the chosen settings, and their differences."""

from __future__ import annotations

import statistics
from pathlib import Path

from seeds import Difference
from study_methods import METHODS
from study_plan import SAME, Plan, known
from study_regimes import REGIMES
from study_table import read


class Results:
    """The runs of one plan: those with the chosen settings, by regime, method and seed."""

    def __init__(self, same: dict, rows: list[dict]) -> None:
        rows = [row for row in rows if all(row[name] == same[name] for name in SAME)]
        done = known(rows)
        present = {name: {row[name] for row in rows} for name in ("regime", "method", "seed")}
        self.plan = Plan(
            same,
            tuple(regime for regime in REGIMES if regime in present["regime"]),
            tuple(method for method in METHODS if method in present["method"]),
            tuple(sorted(present["seed"])),
        )
        self.same, self.runs = same, len(rows)
        self.settings, self.cells = {}, {}
        for regime in self.plan.regimes:
            for method in self.plan.methods_under(regime):
                chosen = self.plan.chosen(regime, method, done)
                if chosen is None:
                    continue
                specs = {seed: self.plan.spec(regime, method, chosen, seed) for seed in self.plan.seeds}
                cell = {seed: done[spec] for seed, spec in specs.items() if spec in done}
                if cell:
                    self.settings[regime, method], self.cells[regime, method] = chosen, cell
        self.regimes = [regime for regime in self.plan.regimes if (regime, "ce") in self.cells]

    def methods(self, regime: str) -> list[str]:
        return [method for method in self.plan.methods if (regime, method) in self.cells]

    def difference(self, regime: str, method: str, score: str, other: str | None = "ce") -> Difference | None:
        """Of the test scores with the same seed; None where no seed has both."""
        ours, theirs = (self.cells.get((regime, name), {}) for name in (method, other))
        pairs = [ours[seed][f"test_{score}"] - theirs[seed][f"test_{score}"] for seed in ours if seed in theirs]
        return Difference.of(pairs) if pairs else None

    def of_as_many_rows(self, method: str) -> str | None:
        """Cross-entropy trained for so much longer that as many rows go through the network as with this method."""
        longer = {METHODS[name].budget: name for name in self.plan.methods if METHODS[name].budget > 1}
        return longer.get(METHODS[method].rows)

    def over_regimes(self, method: str, score: str, other: str | None = "ce") -> tuple[Difference, int] | None:
        """Of each seed's mean over the regimes in which both have all seeds, and the number of these regimes."""
        seeds = self.plan.seeds
        whole = [
            regime
            for regime in self.regimes
            if all(len(self.cells.get((regime, name), {})) == len(seeds) for name in (method, other))
        ]
        if not whole:
            return None
        name = f"test_{score}"
        means = [
            statistics.fmean(self.cells[r, method][seed][name] - self.cells[r, other][seed][name] for r in whole)
            for seed in seeds
        ]
        return Difference.of(means), len(whole)


def all_results(folder: Path) -> list[Results]:
    """One for each plan in folder/results.csv, that with the most runs first."""
    rows = read(folder / "results.csv")
    plans = {tuple(row[name] for name in SAME): None for row in rows}
    results = [Results(dict(zip(SAME, plan, strict=True)), rows) for plan in plans]
    return sorted(results, key=lambda result: -result.runs)
