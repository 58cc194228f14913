"""Which runs a study consists of, in which order, and how settings are chosen: by validation accuracy alone.

Under each regime every method has as many trials, which are the runs of the smallest seed; the other seeds take the
setting that did best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from study_methods import METHODS
from study_regimes import REGIMES
from study_run import KEY, Spec, write_settings

CORE_REGIMES = ("base", "noise-40", "quarter", "no-augmentation", "imbalance", "epochs-x4")
CORE_METHODS = ("ce", "smoothing", "ps-kd", "dlb", "toast", "ce-1.5", "ce-2")
SAME = tuple(name for name in KEY if name not in ("regime", "method", "settings", "seed"))


@dataclass(frozen=True)
class Plan:
    """A grid of runs. `same` is what all of them share: the values of SAME."""

    same: dict
    regimes: tuple[str, ...] = CORE_REGIMES
    methods: tuple[str, ...] = CORE_METHODS
    seeds: tuple[int, ...] = (0, 1, 2)  # ascending

    def methods_under(self, regime: str) -> list[str]:
        mixed = REGIMES[regime].mix != "none"
        return [method for method in self.methods if METHODS[method].mixes or not mixed]

    def spec(self, regime: str, method: str, settings: dict[str, float], seed: int) -> Spec:
        return Spec(**self.same, regime=regime, method=method, settings=write_settings(settings), seed=seed)

    def trials(self, regime: str, method: str, base: dict[str, float]) -> list[Spec]:
        return [self.spec(regime, method, {**base, **trial}, self.seeds[0]) for trial in METHODS[method].trials]

    def chosen(self, regime: str, method: str, done: dict[Spec, dict]) -> dict[str, float] | None:
        """The settings of the trial with the best validation top-1, then the lowest NLL; None until all are done.

        All but cross-entropy's own are tried with the learning rate and weight decay chosen for cross-entropy.
        """
        base = {} if method == "ce" else self.chosen(regime, "ce", done)
        if base is None or not METHODS[method].trials:
            return base
        trials = self.trials(regime, method, base)
        if not all(trial in done for trial in trials):
            return None
        best = max(range(len(trials)), key=lambda i: (done[trials[i]]["val_top1"], -done[trials[i]]["val_nll"]))
        return {**base, **METHODS[method].trials[best]}

    def runs(self, done: dict[Spec, dict]) -> Iterator[Spec]:
        """What can be run or is done, in order: regime by regime, the trials, then seed by seed all methods."""
        for regime in self.regimes:
            yield from self.trials(regime, "ce", {})
            base = self.chosen(regime, "ce", done)
            if base is None:
                continue
            methods = self.methods_under(regime)
            tried = [self.trials(regime, method, base) for method in methods if method != "ce"]
            for trial in range(max(map(len, tried), default=0)):
                yield from (trials[trial] for trials in tried if trials)
            for seed in self.seeds:
                for method in methods:
                    if (seed != self.seeds[0] or not METHODS[method].trials) and (
                        settings := self.chosen(regime, method, done)
                    ) is not None:
                        yield self.spec(regime, method, settings, seed)

    def work(self) -> float:
        """Of all the runs, in that of a run of cross-entropy under the base regime."""
        work = 0.0
        for regime in self.regimes:
            methods = self.methods_under(regime)
            for method in methods:
                trials = len(METHODS[method].trials)
                work += work_of(regime, method) * (trials + len(self.seeds) - 1 if trials else len(self.seeds))
            if "ce" not in methods:  # whose learning rate all take
                work += work_of(regime, "ce") * len(METHODS["ce"].trials)
        return work


@dataclass(frozen=True)
class Repeat:
    """Runs that are known, in their order."""

    specs: tuple[Spec, ...]

    def runs(self, done: dict[Spec, dict]) -> Iterator[Spec]:
        return iter(self.specs)

    def work(self) -> float:
        return sum(work_of(spec.regime, spec.method) for spec in self.specs)


def work_of(regime: str, method: str) -> float:
    return REGIMES[regime].epochs * METHODS[method].rows * METHODS[method].budget


def known(rows: list[dict]) -> dict[Spec, dict]:
    return {Spec(**{name: row[name] for name in KEY}): row for row in rows}
