"""One function for each kind of table, from cases {(work, size, dtype): {peer: its rows, one a run}} to markdown."""

import math
from statistics import median

from loss_peers import TUNED
from medoid_peers import ALL_PAIRS
from results import FLOORS, OURS

BACKWARD = "forward + backward"
HEADLINE = (
    ("1024 x 1000", "float32"), ("4096 x 1000", "bfloat16"), ("256 x 21841", "float32"), ("256 x 21841", "bfloat16"),
    ("256 x 100000, k = 64", "bfloat16"),
)  # fmt: skip
FROM = "1024 x 1000"  # the fewest logits that README.md's first claim is of
# The exponent that the work grows with. Overhead that larger sizes hide makes the measured one smaller, a cache that
# they fall out of makes it larger.
EXPECTED = {
    "loss: rows": 1, "loss: classes": 1, "loss: list length": 0, "medoids: rows of a class": 2, "medoids: width": 1,
    "medoids: classes, of 32,000 rows": -1, "medoids: pairs in classes that are ever less alike": 1,
}  # fmt: skip


def markdown(header, rows):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def over_runs(rows, name):
    """(median, lowest 20th, highest 80th percentile) of a column over the runs, or None where it is empty."""
    rows = [row for row in rows if row[name]]
    if not rows:
        return None
    bounds = [float(row[key]) for row in rows for key in (f"{name}_p20", f"{name}_p80")]
    return median(float(row[name]) for row in rows), min(bounds), max(bounds)


def times(middle, low, high, digits=2):
    digits = 0 if low >= 100 else 1 if low >= 10 else digits
    return f"{middle:.{digits}f}x ({low:.{digits}f} - {high:.{digits}f})"


def faster(rows):
    """How many times as fast ours is."""
    return times(*over_runs(rows, "ours_faster"))


def slower(rows):
    """What ours costs, in times of the peer's time."""
    middle, low, high = over_runs(rows, "ours_faster")
    return times(1 / middle, 1 / high, 1 / low, digits=3)


def of_copy(rows):
    found = over_runs(rows, "of_copy")
    return times(*found) if found else ""


def in_milliseconds(rows, name="p50_ms"):
    return median(float(row[name]) for row in rows)


def milliseconds(rows):
    return f"{in_milliseconds(rows):.3g} ms"


def memory(case):
    """Ours at its peak, and the peers' in times of it; in MB where ours is less than one."""
    held = {peer: float(rows[-1]["peak_mb"]) for peer, rows in case.items() if peer not in FLOORS}
    ours = held.pop(OURS)
    if ours >= 1:
        others = [f"{peer} {mb / ours:.1f}x" for peer, mb in held.items()]
    else:
        others = [f"{peer} {mb:.1f} MB" for peer, mb in held.items() if mb >= 0.05]
    return f"{ours:.1f} MB" + (f" ({', '.join(others)})" if others else "")


def losses(cases, peers, works=(BACKWARD,)):
    """A row for each case: our time, against a copy, peak memory, and each peer's ratio."""
    rows, peers = [], [peer for peer in peers if any(peer in case for case in cases.values())]
    for (work, size, dtype), case in cases.items():
        if work in works:
            cells = [size, dtype, work, milliseconds(case[OURS]), of_copy(case[OURS])]
            rows.append([*cells, *(faster(case[peer]) if peer in case else "" for peer in peers), memory(case)])
    header = ["N x C", "dtype", "work", "toast_loss", "times a copy's time"]
    return markdown([*header, *(f"times as fast as {peer}" for peer in peers), "extra memory at its peak"], rows)


def proof(dense, plain):
    """README.md's first claim: between which ratios the medians lie, from so many logits on."""

    def logits(size):
        return math.prod(map(int, size.split(",")[0].split(" x ")))

    def span(cases, peer):
        large = [
            over_runs(case[peer], "ours_faster")[0]
            for (work, size, _), case in cases.items()
            if work == BACKWARD and logits(size) >= logits(FROM)
        ]
        return f"{min(large):.2g} to {max(large):.2g}"

    eager, compiled, tuned = (span(dense, peer) for peer in ("eager", "torch.compile", TUNED))
    return (
        f"On a CPU, forward and backward from {FROM} logits on, it is **{eager} times as fast as eager PyTorch**\n"
        f"with dense soft targets, {compiled} times as fast as torch.compile and {tuned} times as fast as the fastest\n"
        "formulation that we found for it (tuned); with nothing added, "
        f"{span(plain, 'F.cross_entropy')} times as fast as `F.cross_entropy`."
    )


def headline(cases):
    """The few rows of README.md: our time, the peers that most people have and the strongest, memory."""
    rows = []
    for size, dtype in HEADLINE:
        if case := cases.get((BACKWARD, size, dtype)):
            peers = ("eager", "torch.compile", TUNED)
            ratios = [f"{over_runs(case[peer], 'ours_faster')[0]:.1f}x" for peer in peers]
            ours, eager = (f"{float(case[peer][-1]['peak_mb']):.0f}" for peer in (OURS, "eager"))
            rows.append([size, dtype, milliseconds(case[OURS]), *ratios, f"{ours} ({eager})"])
    faster_than = ["faster than eager", "torch.compile", TUNED]
    return markdown(["N x C", "dtype", "toast_loss", *faster_than, "extra MB (eager's)"], rows)


def medoids(cases):
    rows = []
    for (metric, size, dtype), case in cases.items():
        peers = {peer: rows for peer, rows in case.items() if peer not in (OURS, *FLOORS)}
        groups = {
            "all pairs": [peer for peer in peers if peer in ALL_PAIRS],
            "by sorting" if metric == "cityblock" else "same identity": [p for p in peers if p not in ALL_PAIRS],
        }
        against = [f"{kind}: " + ", ".join(f"{p} {faster(peers[p])}" for p in of) for kind, of in groups.items() if of]
        ours = case[OURS]
        percent = [float(row["percent_of_mm"]) for row in ours if row["percent_of_mm"]]
        rate = f"{median(float(row['gflop_s']) for row in ours):.3g}" + (f", {median(percent):.0f}%" if percent else "")
        rows.append([size, dtype, metric, milliseconds(ours), rate, "; ".join(against), memory(case)])
    header = ["N x D", "dtype", "metric", "class_medoids", "GFLOP/s, and of torch.mm's", "times as fast as"]
    return markdown([*header, "extra memory at its peak"], rows)


def steps(cases):
    rows = []
    for (work, size, dtype), case in cases.items():
        peers = [f"{slower(peer_rows)} {peer}" for peer, peer_rows in case.items() if peer != OURS]
        rows.append([work, size, dtype, milliseconds(case[OURS]), ", ".join(peers)])
    return markdown(["work", "size", "dtype", "with TOAST", "TOAST costs, in times of"], rows)


def epochs(cases):
    rows = []
    for (work, size, dtype), case in cases.items():
        batches = int(size.split(" rows")[0]) / int(size.split(" by ")[1])
        once = in_milliseconds(case[OURS])
        rows.append([work, size, dtype, f"{once:.3g} ms", f"{once / batches:.3g} ms"])
    return markdown(["work", "size", "dtype", "once an epoch", "shared out among its steps"], rows)


def compared(cases, size_is, what):
    """A row for each case: our time, and each peer's ratio."""
    rows = []
    for (_, size, dtype), case in cases.items():
        peers = ", ".join(f"{peer} {faster(rows)}" for peer, rows in case.items() if peer != OURS)
        rows.append([size, dtype, milliseconds(case[OURS]), peers, memory(case)])
    return markdown([size_is, "dtype", what, "times as fast as", "extra memory at its peak"], rows)


def linear(cases):
    """A row for each case: our time, the rate of its products, each peer's ratio."""
    rows = []
    for (_, size, dtype), case in cases.items():
        percent = median(float(row["percent_of_mm"]) for row in case[OURS])
        peers = ", ".join(f"{peer} {faster(of_peer)}" for peer, of_peer in case.items() if peer not in (OURS, *FLOORS))
        rows.append([size, dtype, milliseconds(case[OURS]), f"{percent:.0f}%", peers, memory(case)])
    header = ["N x D x C", "dtype", "linear_toast_loss", "of the rate of torch.mm", "times as fast as"]
    return markdown([*header, "extra memory at its peak"], rows)


def host(cases):
    rows = []
    for (_, size, dtype), case in cases.items():
        for peer, of_peer in case.items():
            shown = [f"{1e3 * in_milliseconds(of_peer, name):.1f} µs" for name in ("p20_ms", "p50_ms", "p80_ms")]
            rows.append([size, dtype, peer, *shown])
    return markdown(["N x C", "dtype", "launching forward + backward of", "20th percentile", "median", "80th"], rows)


def scaling(cases):
    """The exponent b of time = a size^b, by least squares in the logarithms."""
    sweeps = {}
    for (sweep, size, _), case in cases.items():
        sweeps.setdefault(sweep, []).append((float(size), in_milliseconds(case[OURS])))
    rows = []
    for sweep, points in sweeps.items():
        points.sort()
        shown = ", ".join(f"{size:g}: {ms:.3g}" for size, ms in points)
        rows.append([sweep, shown, str(EXPECTED[sweep]), f"{exponent(points):.2f}", f"{exponent(points[-2:]):.2f}"])
    return markdown(["what grows", "size: ms", "exponent expected", "over all sizes", "over the largest two"], rows)


def exponent(points):
    x, y = zip(*((math.log(size), math.log(ms)) for size, ms in points), strict=True)
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def threads(cases):
    rows = []
    for (op, size, _), case in cases.items():
        fewer = ", ".join(f"{peer} {faster(rows)}" for peer, rows in case.items() if peer != OURS)
        rows.append([op, size, milliseconds(case[OURS]), fewer])
    return markdown(["op", "threads", "time", "times as fast as with"], rows)


def measured_on(cases):
    """What the tables were measured on, in a sentence."""
    rows = [row for case in cases.values() for of_peer in case.values() for row in of_peer]
    runs, commits = (sorted({row[key] for row in rows}) for key in ("run", "commit"))
    last = max(rows, key=lambda row: row["run"])
    keeps = "malloc keeps what was freed" if last["malloc"] == "keeps" else "malloc as it comes"
    peers = f"peers: {last['peers']}; " if last["peers"] else ""
    first, latest = (f"{run[:10]} {run[11:16]}" for run in (runs[0], runs[-1]))
    each = sorted({len(of_peer) for case in cases.values() for of_peer in case.values()})
    count = " to ".join(str(number) for number in sorted({each[0], each[-1]}))
    taken = f"{count} run{'s' * (each[-1] > 1)} a case ({' to '.join(sorted({first, latest}))} UTC)"
    return (
        f"{last['device']}; {last['threads']} threads; torch {last['torch']}; {keeps}; {peers}{taken}"
        f" of commit {', '.join(commits)}."
    )
