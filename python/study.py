"""Does self-distillation help? Methods under regimes, with seeds: results row by row in study/, and a page of them.

python python/study.py                                    the core, as much as is not there yet; then the page
python python/study.py run --hours 2 --regimes base mixup --methods ce toast --seeds 0 1 2 3 4
python python/study.py repeat --out again                 every run of study/ anew: some 19 hours of one core
python python/study.py cost                               time and memory of a step of every method
python python/study.py report                             the page and the pictures anew

A run that is killed is done again, those that ended are not.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing import connection, get_context
from pathlib import Path

import extras  # noqa: F401 (before all that imports those packages, or torch, which takes seconds)

# isort: split
import backbones
import torch
from image_data import DataError
from options import REPOSITORY, number
from study_cost import COST_COLUMNS, measure
from study_methods import METHODS
from study_plan import CORE_METHODS, CORE_REGIMES, SAME, Plan, Repeat, known, work_of
from study_regimes import REGIMES
from study_run import COLUMNS, CURVE_COLUMNS, Run, Spec, load
from study_table import append, read

STUDY = REPOSITORY / "study"


def run(plan: Plan | Repeat, folder: Path, data_dir: Path, workers: int, hours: float | None) -> None:
    """Everything of the plan that is not in folder/results.csv, each in one thread of a worker, until time is up."""
    results, curves = folder / "results.csv", folder / "curves.csv"
    done = known(read(results))
    began, worked = time.monotonic(), 0.0
    deadline = None if hours is None else began + 3600 * hours
    total, finished = plan.work(), sum(work_of(spec.regime, spec.method) for spec in plan.runs(done) if spec in done)
    pool = Workers(workers, data_dir)
    try:
        while True:
            for spec in plan.runs(done):
                if not pool.idle or (deadline and time.monotonic() > deadline):
                    break
                if spec not in done and spec not in pool.busy.values():
                    pool.start(spec)
            if not pool.busy:
                break
            for spec, (row, curve) in pool.wait():
                append(curves, CURVE_COLUMNS, curve)  # first: a run counts as done once its row is there
                append(results, COLUMNS, [row])
                done[spec] = row
                work = work_of(spec.regime, spec.method)
                worked, finished = worked + work, finished + work
                left = (total - finished) * (time.monotonic() - began) / worked
                print(
                    f"{finished / total:4.0%}  {spec}: validation {row['val_top1']:.2%}, NLL {row['val_nll']:.3f}, "
                    f"{row['seconds']:.0f} s; {left / 60:.0f} min left",
                    flush=True,
                )
    finally:
        pool.close()


class Workers:
    """Processes of one thread that run specs. They end with this one, at the latest after the run they are in."""

    def __init__(self, count: int, data_dir: Path) -> None:
        self.context, self.data_dir = get_context("spawn"), data_dir
        self.processes, self.idle, self.busy = [], [], {}
        for _ in range(count):
            ours, theirs = self.context.Pipe()
            process = self.context.Process(target=_work, args=(theirs, data_dir), daemon=True)
            process.start()
            theirs.close()  # so that an end of the process is the end of the pipe
            self.processes.append(process)
            self.idle.append(ours)

    def start(self, spec: Spec) -> None:
        pipe = self.idle.pop(0)
        pipe.send(spec)
        self.busy[pipe] = spec

    def wait(self) -> Iterator[tuple[Spec, tuple[dict, list[dict]]]]:
        for pipe in connection.wait(list(self.busy)):
            spec = self.busy.pop(pipe)
            try:
                answer = pipe.recv()
            except EOFError:
                raise RuntimeError(f"the worker that ran {spec} died") from None
            if isinstance(answer, Exception):
                raise answer
            self.idle.append(pipe)
            yield spec, answer

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
            process.join()


def _work(pipe: connection.Connection, data_dir: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who reads the pipe ends this process
    torch.set_num_threads(1)
    loaded = {}
    try:
        while True:
            spec = pipe.recv()
            source = spec.data, spec.classes, spec.image_size
            try:
                if source not in loaded:
                    loaded = {source: load(spec, data_dir)}
                answer = Run(spec, loaded[source], torch.device("cpu")).run()
            except (DataError, backbones.BackboneError) as error:
                answer = error
            pipe.send(answer)
    except (EOFError, BrokenPipeError):
        pass


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", nargs="?", choices=("run", "repeat", "cost", "report"), default="run", help="default: run"
    )
    add = parser.add_argument_group("the grid", "defaults: the core").add_argument
    add("--data", default="glyphs", help="glyphs, all-glyphs, fashion-mnist, digits or folder:PATH")
    add("--classes", type=number(2, kind=int), default=400, help="the first so many")
    add("--image-size", type=number(16, 1024, int), default=24, help="side of the images that the network sees")
    add("--backbone", choices=backbones.NAMES, default="cnn")
    add("--epochs", type=number(1, kind=int), default=16, help="of the base regime")
    add("--batch-size", type=number(2, kind=int), default=128)
    add("--regimes", nargs="+", choices=REGIMES, default=CORE_REGIMES, metavar="REGIME", help=", ".join(REGIMES))
    add("--methods", nargs="+", choices=METHODS, default=CORE_METHODS, metavar="METHOD", help=", ".join(METHODS))
    add("--seeds", nargs="+", type=number(0, 2**31, int), default=(0, 1, 2), metavar="SEED")
    add = parser.add_argument_group("how it runs").add_argument
    add("--hours", type=number(0), help="begin no run after so long")
    add("--workers", type=number(1, kind=int), default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
        else os.cpu_count(), help="runs side by side, of one thread each (default: one a processor)")  # fmt: skip
    add("--data-dir", type=Path, default=REPOSITORY / "data")
    add("--out", type=Path, default=STUDY, help="folder of the results, and of the page (study/'s is docs/study.md)")
    options = parser.parse_args(argv)
    if options.image_size % 4:
        parser.error(f"--image-size must be a multiple of 4, got {options.image_size}")
    options.out = options.out.resolve()
    if options.what == "repeat" and options.out == STUDY:
        parser.error("repeat needs --out, the folder for the new results")
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    same = {name: getattr(options, name) for name in SAME}
    plan = Plan(same, tuple(options.regimes), tuple(options.methods), tuple(sorted(set(options.seeds))))
    page = REPOSITORY / "docs" / "study.md" if options.out == STUDY else options.out / "study.md"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # through finally: the workers end too
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in background jobs
    try:
        if options.what == "run":
            run(plan, options.out, options.data_dir, options.workers, options.hours)
        elif options.what == "repeat":
            repeat = Repeat(tuple(known(read(STUDY / "results.csv"))))
            run(repeat, options.out, options.data_dir, options.workers, options.hours)
        elif options.what == "cost":
            append(options.out / "cost.csv", COST_COLUMNS, measure(plan.same, options.data_dir))
        import study_report  # not before it is needed: matplotlib takes a second to load, in every worker

        study_report.write(options.out, page)
    except (DataError, backbones.BackboneError) as error:
        print(f"study.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
