"""What a step of each method costs beside one of cross-entropy: time, forward rows, memory.

Times are taken in one process, in blocks of steps by all methods in turn, so that what else the machine does falls on
all of them; a method's ratio is the median over the rounds of its block's time to cross-entropy's in the same round.
Memory is the resident peak of a process of its own, over an epoch and the start of the next.
"""

from __future__ import annotations

import statistics
import time
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch
from image_data import ImageData
from stopwatch import PeakMemory
from study_methods import METHODS
from study_run import Run, Spec, load, write_settings

METHODS_TIMED = [name for name, method in METHODS.items() if method.trials]
ROUNDS, BLOCK = 15, 5  # blocks of each method, steps of a block
COST_COLUMNS = (
    "data", "classes", "image_size", "backbone", "batch_size", "method", "ms", "least_ms", "ratio", "forward_rows",
    "peak_mb", "rounds",
)  # fmt: skip


def measure(same: dict, data_dir: Path) -> list[dict]:
    """Rows of COST_COLUMNS, with each method's published settings. `same`: see study_plan.Plan."""
    torch.set_num_threads(1)
    specs = {method: _spec(same, method) for method in METHODS_TIMED}
    data = load(specs["ce"], data_dir)
    blocks = {method: _blocks(spec, data) for method, spec in specs.items()}
    times: dict[str, list[float]] = {method: [] for method in specs}
    forward_rows = {}
    for round_ in range(-1, ROUNDS):  # the first, -1, warms up
        for method in Random(round_).sample(METHODS_TIMED, len(METHODS_TIMED)):
            seconds, forward_rows[method] = next(blocks[method])
            if round_ >= 0:
                times[method].append(seconds)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = dict(zip(specs, pool.starmap(_peak, [(spec, data_dir) for spec in specs.values()], 1), strict=True))
    return [
        {
            **{name: same[name] for name in ("data", "classes", "image_size", "backbone", "batch_size")},
            "method": method,
            "ms": 1000 * statistics.median(seconds),
            "least_ms": 1000 * min(seconds),
            "ratio": statistics.median(a / b for a, b in zip(seconds, times["ce"], strict=True)),
            "forward_rows": forward_rows[method],
            "peak_mb": peaks[method] / 1e6,
            "rounds": ROUNDS,
        }
        for method, seconds in times.items()
    ]


def _spec(same: dict, method: str) -> Spec:
    settings = {**METHODS["ce"].trials[0], **METHODS[method].trials[0]}
    long_enough = {**same, "epochs": ROUNDS * BLOCK}
    return Spec(**long_enough, regime="base", method=method, settings=write_settings(settings), seed=0)


def _blocks(spec: Spec, data: ImageData):
    """Seconds a step, and forward rows a new row, of one block of steps after another, from the second epoch on."""
    run = Run(spec, data, torch.device("cpu"))
    for rows in run.epoch_batches():
        run.train_step(rows)
    run.end_epoch()
    batches = cycle(run.epoch_batches())
    while True:
        before, new_rows, began = run.forward_rows, 0, time.perf_counter()
        for _ in range(BLOCK):
            rows = next(batches)
            run.train_step(rows)
            new_rows += len(rows)
        yield (time.perf_counter() - began) / BLOCK, (run.forward_rows - before) / new_rows


def _peak(spec: Spec, data_dir: Path) -> int:
    torch.set_num_threads(1)
    run = Run(spec, load(spec, data_dir), torch.device("cpu"))
    memory = PeakMemory(torch.device("cpu"))
    for rows in run.epoch_batches():
        run.train_step(rows)
    run.end_epoch()
    for rows in run.epoch_batches()[:2]:
        run.train_step(rows)
    return memory.bytes()
