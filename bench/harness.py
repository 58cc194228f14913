"""How everything is measured, on a CPU and on a GPU; README.md says the same in words.

What is compared runs interleaved, in one process, on the same data: each round times every case, in an order of its
own, so that a busy moment of the machine falls on all alike. Ratios are taken round by round.
"""

import random
import resource
import time
from statistics import median

import results
import torch
from results import COPY, DEVICE, OURS, PRODUCTS
from torch.profiler import ProfilerActivity, profile

from toast_kernels import backends

FLUSH_BYTES = 1 << 30  # written before each call that is timed on a GPU: it empties the caches, and takes longer than
# the host needs to launch the call, so that launches are not what is timed


def measure(
    suite, cases, *, op, size, dtype, work, classes=None, num_bytes=None, flops=None, products=None, others=(),
    before=None, rounds=25, seconds=20.0, calls=1, held=False,
):  # fmt: skip
    """Times {peer: callable}, prints a line for each and appends a row for each to the results of the suite.

    op, dtype, classes, held: as of backend_of_ours. work: what a call does. num_bytes: what a call must move at least;
    a copy of as many bytes is timed beside it. flops: what a call computes. products: (a callable of matrix products,
    their flops), timed beside it too. others: peers that do something else, to which bytes and flops do not apply.
    before: {peer: what is done before each of its calls on a GPU, and not timed}. calls: how many a callable makes, for
    calls too short to be timed alone. Returns {peer: [seconds a call, a round each]}.
    """
    same = {"work": work, "size": size, "dtype": dtype, "backend": before_timing(suite, op, dtype, classes, held)}
    if num_bytes:
        cases = {**cases, COPY: copy_of(num_bytes)}
    if products:
        cases = {**cases, PRODUCTS: products[0]}
    memory = {peer: peak_bytes(case) for peer, case in cases.items()}
    times = {
        peer: [t / (1 if peer == COPY else calls) for t in values]
        for peer, values in interleaved(cases, rounds, seconds, before or {}).items()
    }
    rows = {peer: row(times, peer) for peer in times}
    for peer in rows.keys() - set(others) - {PRODUCTS}:
        middle = median(times[peer])
        if num_bytes:
            rows[peer] |= {"bytes": int(num_bytes), "gb_s": f"{num_bytes / middle / 1e9:.4g}"}
            rows[peer] |= three("of_copy", ratio(times, COPY, peer))
        if flops and peer != COPY:
            rows[peer] |= {"flops": int(flops), "gflop_s": f"{flops / middle / 1e9:.4g}"}
        if products:
            of_mm = [100 * flops * b / products[1] / a for a, b in zip(times[peer], times[PRODUCTS], strict=True)]
            rows[peer] |= {"percent_of_mm": f"{median(of_mm):.3g}"} if peer != COPY else {}
    for peer, bytes_held in memory.items():
        rows[peer]["peak_mb"] = f"{bytes_held / 2**20:.4g}"
    record(suite, [same | columns for columns in rows.values()])
    return times


def sweep(suite, cases, *, op, dtype, work, rounds=15, seconds=12.0):
    """Times {size: callable of ours}, interleaved as peers are, and appends a row for each size."""
    same = {"work": work, "dtype": dtype, "peer": OURS, "backend": before_timing(suite, op, dtype)}
    times = interleaved(cases, rounds, seconds)
    record(suite, [row(times, size) | same | {"size": size} for size in times])


def interleaved(cases, rounds, seconds, before=None):
    """{name: [seconds a call, a round each]}; stops early after `seconds`, but not before five rounds."""
    times = {name: [] for name in cases}
    one_round = on_gpu(before or {}) if DEVICE.type == "cuda" else on_cpu
    if DEVICE.type == "cuda":
        for name, case in cases.items():
            for _ in range(3):
                (before or {}).get(name, nothing)()
                case()
    start = time.perf_counter()
    for i in range(rounds):
        names = list(cases)
        random.Random(i).shuffle(names)
        for name, seconds_a_call in one_round({name: cases[name] for name in names}).items():
            times[name].append(seconds_a_call)
        if time.perf_counter() - start > seconds and i >= 4:
            break
    return times


def on_cpu(cases):
    """One round by the clock: a burst of each case."""
    return {name: burst(case) for name, case in cases.items()}


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


def on_gpu(before):
    """A round by CUDA events around each call, with the caches emptied before it."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=DEVICE)

    def one_round(cases):
        events = {}
        for name, case in cases.items():
            start, end = events[name] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            before.get(name, nothing)()
            flush.zero_()
            flush.view(torch.int64).sum()  # what was written leaves the caches too
            start.record()
            case()
            end.record()
        torch.cuda.synchronize()
        return {name: start.elapsed_time(end) / 1e3 for name, (start, end) in events.items()}

    return one_round


def nothing():
    pass


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


def before_timing(suite, *of_ours):
    """The backend of ours; stops here, and not after minutes, where rows could not be added or ours not be measured."""
    results.conditions()  # now: a case may change the number of threads
    results.check(suite)
    return backend_of_ours(*of_ours)


def backend_of_ours(op, dtype, classes=None, held=False):
    """What "auto" takes here for an op's rows of so many classes, which "cuda" would hold or not. It must not be the
    reference: the results are of the kernels."""
    backend = backends.choose(op, "auto", DEVICE, getattr(torch, dtype), classes, held=held)
    expected = ("cpu",) if DEVICE.type == "cpu" else ("triton", "cuda")
    assert backend in expected, f"ours would run on {backend!r}: python -m toast_kernels says why"
    return backend


def row(times, peer):
    """The columns that come from the clock. Without ours among the times, as in a sweep, nothing is compared."""
    middle, low, high = spread(times[peer])
    columns = {"peer": peer, "rounds": len(times[peer])}
    columns |= {"p20_ms": f"{1e3 * low:.4g}", "p50_ms": f"{1e3 * middle:.4g}", "p80_ms": f"{1e3 * high:.4g}"}
    return columns | (three("ours_faster", ratio(times, OURS, peer)) if OURS in times else {})


def record(suite, rows):
    """Prints a line for each row and appends them to the results of the suite."""
    print("\n{}: {work}, {dtype}".format(suite, **rows[0]))
    for columns in rows:
        line = "  {size:24} {peer:34} {p50_ms:>9} ms [{p20_ms}, {p80_ms}]".format(**columns)
        line += "  ours is {ours_faster}x as fast".format(**columns) if "ours_faster" in columns else ""
        line += "  {of_copy}x a copy".format(**columns) if "of_copy" in columns else ""
        line += "  {percent_of_mm}% of mm".format(**columns) if "percent_of_mm" in columns else ""
        line += "  peak {peak_mb} MB".format(**columns) if "peak_mb" in columns else ""
        print(line, flush=True)
    now = results.conditions() | results.load()
    results.append(suite, [now | columns for columns in rows])


def three(name, values):
    return dict(zip((name, f"{name}_p20", f"{name}_p80"), (f"{value:.3g}" for value in values), strict=True))


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
