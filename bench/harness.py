"""Timing for the microbenchmarks: everything that is compared runs interleaved, in one process, on the same data."""

import csv
import datetime
import os
import platform
import subprocess
import time
from pathlib import Path
from statistics import median

import torch

RESULTS = Path(__file__).parent / "results"


def interleave(cases, rounds=15, seconds=20.0):
    """Times {name: callable} round by round: each round runs every case in a burst, in a new order, so that a busy
    moment of the machine falls on all alike. A burst is one call that is not timed, which finds its data where the
    others left them, then 20 ms of calls (20 at most), which find the caches as in a loop of their own. Stops early
    after `seconds`. Returns {name: [seconds a call, the mean of a burst]}."""
    names = list(cases)
    times = {name: [] for name in names}
    start = time.perf_counter()
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            case = cases[name]
            before = time.perf_counter()
            case()
            calls = min(20, max(1, int(0.02 / (time.perf_counter() - before))))
            before = time.perf_counter()
            for _ in range(calls):
                case()
            times[name].append((time.perf_counter() - before) / calls)
        if time.perf_counter() - start > seconds and i >= 2:
            break
    return times


def quantile(values, q):
    """The q-quantile, between order statistics where it falls there."""
    values = sorted(values)
    position = q * (len(values) - 1)
    below = int(position)
    above = min(below + 1, len(values) - 1)
    return values[below] + (position - below) * (values[above] - values[below])


def spread(values):
    """(median, p20, p80)"""
    return median(values), quantile(values, 0.2), quantile(values, 0.8)


def ratio(times, name, baseline):
    """(median, p20, p80) of how many times faster `name` is than `baseline`, from the rounds' pairs."""
    return spread([b / a for a, b in zip(times[name], times[baseline], strict=True)])


def report(times, ours, file=None, **conditions):
    """Prints a line a case, ours first, and appends them to bench/results/<file>.csv with what ran where."""
    rows = []
    for name in [ours, *(name for name in times if name != ours)]:
        (mid, low, high), (times_ours, slowest, fastest) = spread(times[name]), ratio(times, ours, name)
        print(
            f"  {name:28} {mid * 1e3:9.3f} ms [{low * 1e3:.3f}, {high * 1e3:.3f}]"
            f"   ours is {times_ours:.2f}x as fast [{slowest:.2f}, {fastest:.2f}]"
        )
        rows.append({
            "date": datetime.date.today().isoformat(), "commit": commit(), "cpu": cpu_name(),
            "load": f"{os.getloadavg()[0]:.1f}", "threads": torch.get_num_threads(), "torch": torch.__version__,
            **conditions, "case": name,
            "rounds": len(times[name]), "ms": f"{mid * 1e3:.4g}", "ms_p20": f"{low * 1e3:.4g}",
            "ms_p80": f"{high * 1e3:.4g}", "ours_faster": f"{times_ours:.3g}", "ours_faster_p20": f"{slowest:.3g}",
            "ours_faster_p80": f"{fastest:.3g}",
        })  # fmt: skip
    if file:
        append(RESULTS / f"{file}.csv", rows)


def append(path, rows):
    path.parent.mkdir(exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as out:
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def commit():
    """Short commit of the working tree, with + where a tracked file has changed since."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=RESULTS.parent, capture_output=True, text=True
    )
    return described.stdout.strip() or "unknown"


def cpu_name():
    """The processor's name, its cores, and the widest vectors torch uses on it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name} ({os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()})"
