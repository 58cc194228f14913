"""How everything is measured, on a CPU and on a GPU; README.md says the same in words.

What is compared runs interleaved, in one process, on the same data: each round times every case, in a new order, so
that a busy moment of the machine falls on all alike. Ratios are taken round by round.
"""

import csv
import datetime
import functools
import os
import platform
import resource
import subprocess
import time
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

OURS, COPY = "toast_kernels", "copying the bytes"
METHOD = 2  # one higher when something is measured in another way: report.py compares nothing across it
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RESULTS = Path(os.environ.get("TOAST_BENCH_RESULTS") or Path(__file__).parent / "results")
FLUSH_BYTES = 1 << 30  # written before each call that is timed on a GPU: it empties the caches, and takes longer than
# the host needs to launch the call, so that launches are not what is timed


def measure(suite, cases, *, size, dtype, work, num_bytes=None, others=(), rounds=25, seconds=20.0, calls=1):
    """Times {peer: callable}, prints a line for each and appends a row for each to RESULTS/<suite>.csv.

    work: what a call does. num_bytes: what it must move at least; a copy of as many bytes is timed beside it. others:
    peers that do something else, to which these bytes do not apply. calls: how many a callable makes, for calls too
    short to be timed alone. Returns {peer: [seconds a call, a round each]}.
    """
    if num_bytes:
        cases = {**cases, COPY: copy_of(num_bytes)}
    memory = {peer: peak_bytes(case) for peer, case in cases.items()}
    timed = on_gpu if DEVICE.type == "cuda" else on_cpu
    times = {
        peer: [t / (1 if peer == COPY else calls) for t in values]
        for peer, values in timed(cases, rounds, seconds).items()
    }
    print(f"\n{suite}: {work}, {size}, {dtype}")
    rows = []
    for peer, values in times.items():
        mid, low, high = spread(values)
        faster, slowest, fastest = ratio(times, OURS, peer)
        row = conditions() | {
            "load": f"{os.getloadavg()[0]:.1f}", "work": work, "size": size, "dtype": dtype, "peer": peer,
            "rounds": len(values),
            "p20_ms": f"{1e3 * low:.4g}", "p50_ms": f"{1e3 * mid:.4g}", "p80_ms": f"{1e3 * high:.4g}",
            "bytes": "", "gb_s": "", "percent_of_copy": "", "peak_mb": f"{memory[peer] / 2**20:.4g}",
            "ours_faster": f"{faster:.3g}", "ours_faster_p20": f"{slowest:.3g}", "ours_faster_p80": f"{fastest:.3g}",
        }  # fmt: skip
        line = f"  {peer:34} {1e3 * mid:9.4f} ms [{1e3 * low:.4f}, {1e3 * high:.4f}]  ours is {faster:6.2f}x as fast"
        line += f" [{slowest:.2f}, {fastest:.2f}]  peak {memory[peer] / 2**20:8.1f} MB"
        if num_bytes and peer not in others:
            percent = 100 * ratio(times, peer, COPY)[0]
            row |= {
                "bytes": int(num_bytes),
                "gb_s": f"{num_bytes / mid / 1e9:.4g}",
                "percent_of_copy": f"{percent:.3g}",
            }
            line += f"  {percent:5.1f}% of a copy"
        print(line, flush=True)
        rows.append(row)
    append(RESULTS / f"{suite}.csv", rows)
    return times


def on_cpu(cases, rounds, seconds):
    """By the clock, a burst of each case a round. Stops early after `seconds`."""
    times = {name: [] for name in cases}
    start = time.perf_counter()
    for i in range(rounds):
        for name in rotated(cases, i):
            times[name].append(burst(cases[name]))
        if time.perf_counter() - start > seconds and i >= 2:
            break
    return times


def burst(case):
    """Seconds a call: one call that is not timed, which finds its data where the others left them, then 20 ms of calls
    (20 at most), which find the caches as in a loop of their own. Where another process took a core from it meanwhile
    it is repeated, twice at most: threads that wait for each other would make the loss of one a loss of all."""
    for _ in range(3):
        before = time.perf_counter()
        case()
        calls = min(20, max(1, int(0.02 / (time.perf_counter() - before))))
        lost_cores, before = preemptions(), time.perf_counter()
        for _ in range(calls):
            case()
        seconds = (time.perf_counter() - before) / calls
        if preemptions() == lost_cores:
            break
    return seconds


def preemptions():
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def on_gpu(cases, rounds, seconds):
    """By CUDA events around each call, with the caches emptied before it; three calls of each are not timed."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=DEVICE)
    times = {name: [] for name in cases}
    for name in cases:
        for _ in range(3):
            cases[name]()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for i in range(rounds):
        events = {}
        for name in rotated(cases, i):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            flush.view(torch.int64).sum()  # what was written leaves the caches too
            before.record()
            cases[name]()
            after.record()
            events[name] = before, after
        torch.cuda.synchronize()
        for name, (before, after) in events.items():
            times[name].append(before.elapsed_time(after) / 1e3)
        if time.perf_counter() - start > seconds and i >= 2:
            break
    return times


def rotated(cases, i):
    names = list(cases)
    return names[i % len(names) :] + names[: i % len(names)]


def peak_bytes(function):
    """The most that torch's allocator holds at once during a call, beyond what it held before."""
    function()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def copy_of(num_bytes):
    """A copy that moves num_bytes, half read and half written, always the same: it finds them in a cache where they fit
    one, as what it is compared with does."""
    source, destination = torch.ones(2, max(1, int(num_bytes) // 8), device=DEVICE)
    return lambda: destination.copy_(source)


def spread(values):
    """(median, p20, p80)"""
    return median(values), quantile(values, 0.2), quantile(values, 0.8)


def quantile(values, q):
    """The q-quantile, between order statistics where it falls there."""
    values = sorted(values)
    position = q * (len(values) - 1)
    below = int(position)
    above = min(below + 1, len(values) - 1)
    return values[below] + (position - below) * (values[above] - values[below])


def ratio(times, name, baseline):
    """(median, p20, p80) of how many times faster `name` is than `baseline`, from the rounds' pairs."""
    return spread([b / a for a, b in zip(times[name], times[baseline], strict=True)])


@functools.cache
def conditions():
    """What was measured where: the first columns of every row."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = ""
    return {
        "date": datetime.date.today().isoformat(), "commit": commit(), "device": device_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": torch.__version__, "triton": triton_version,
        "malloc": "keeps" if os.environ.get("MALLOC_TRIM_THRESHOLD_") else "default", "method": METHOD,
    }  # fmt: skip


def device_name():
    """The GPU's name, or the processor's with its cores and the widest vectors that torch uses on it."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name} ({os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()})"


def commit():
    """Short commit of the working tree, with + where a tracked file has changed since, other than results and pages."""
    git = ["git", "-c", "safe.directory=*"]
    asked = (
        ["rev-parse", "--short", "HEAD"],
        ["status", "--porcelain", "-uno", "--", ":/", ":!/bench/results", ":!/*.md"],
    )
    try:
        head, changed = (
            subprocess.run([*git, *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
            for words in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("TOAST_BENCH_COMMIT", "unknown")
    return head.strip() + "+" * bool(changed.strip())


def append(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as out:
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
