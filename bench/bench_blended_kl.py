"""toast_loss beside its peers: eager PyTorch, torch.compile as users write it and tuned, F.cross_entropy, Liger.

pytest bench/bench_blended_kl.py       (make bench, make gpu; results are appended to bench/results/loss_*.csv)
"""

import time

import pytest
import torch
from harness import before_timing, measure, ratio, record, row
from loss_peers import Blended, CrossEntropy, LongRows, TopK
from results import DEVICE, OURS

ON_GPU = DEVICE.type == "cuda"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORWARD, BACKWARD = "forward", "forward + backward"
SMALL = [(8, 10), (256, 100)]  # what a call costs
WIDTHS = [250, 1000, 4000, 16_000, 64_000]
if ON_GPU:
    SIZES = [(8192, 1000), (8192, 4096), (4096, 8192), (4096, 16384), (2048, 32768)]
    TOP_K, WIDEST = [(1024, 128_256), (512, 360_000)], [(2048, 128_256)]
    LONG = [(1024, 32_768), (1024, 65_536), (512, 131_072), (256, 262_144), (256, 360_000)]
else:
    SIZES = [(1024, 1000), (4096, 1000), (1024, 3250), (256, 21841)]
    TOP_K, WIDEST, LONG = [(256, 100_000)], [], [(256, 100_000)]


def cases(sizes):
    """(rows, classes, dtype, works). On a GPU, where torch.compile takes seconds for each, float32 and the forward pass
    alone at one size only."""
    if ON_GPU:
        extra = SIZES[1]
        halves = [(*size, "bfloat16", (BACKWARD, FORWARD) if size == extra else (BACKWARD,)) for size in sizes]
        return [*halves, (*extra, "float32", (BACKWARD,))]
    return [(*size, dtype, (FORWARD, BACKWARD)) for size in sizes for dtype in DTYPES]


def run(show, suite, loss, dtype, works=(BACKWARD,), calls=1):
    loss.check(works)
    for work in works:
        peers = loss.cases(work)
        if calls > 1:
            peers = {name: repeated(peer, calls) for name, peer in peers.items()}
        times = measure(
            suite, peers, op="blended_kl", size=loss.size, dtype=dtype, work=work, classes=loss.classes,
            num_bytes=loss.bytes(work) if calls == 1 else None, flops=loss.flops[work] * loss.logits.numel(),
            others=loss.others, before=loss.before, calls=calls, rounds=15, seconds=8.0, held=loss.held,
        )  # fmt: skip
    show(times[OURS], **{peer: ratio(times, OURS, peer)[0] for peer in times})


def repeated(case, calls):
    def run():
        for _ in range(calls):
            case()

    return run


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize(("rows", "classes"), [(8, 10), (8192, 1000), (2048, 32_768)])
def test_cuda_graph(rows, classes):
    """A whole forward and backward pass as one launch of a graph, beside the same pass called as usual."""
    loss = Blended(rows, classes, torch.bfloat16)
    step = loss.gradient_case(OURS)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert torch.equal(captured, expected)
    measure(
        "loss_graph", {OURS: graph.replay, "toast_kernels, no graph": step},
        op="blended_kl", size=loss.size, dtype="bfloat16", work=BACKWARD, classes=classes, held=loss.held,
    )  # fmt: skip


@pytest.mark.skipif(not ON_GPU, reason="on a CPU the smallest sizes of test_cross_entropy say it")
@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_host_overhead(long):
    """What the host needs to launch a pass, by the clock, 50 at a time: nothing waits for the GPU. "long": of two rows,
    for which each backend is a peer."""
    loss = LongRows(2, 16_385, torch.float32) if long else CrossEntropy(*SMALL[0], torch.float32)
    backend = before_timing("loss_host", "blended_kl", "float32", loss.classes, loss.held)
    loss.check([BACKWARD])
    cases = loss.cases(BACKWARD)
    times = {peer: [] for peer in cases}
    for _ in range(12):
        for peer, case in cases.items():
            case()
            torch.cuda.synchronize()
            before = time.perf_counter()
            for _ in range(50):
                case()
            times[peer].append((time.perf_counter() - before) / 50)
    torch.cuda.synchronize()
    same = {"size": loss.size, "dtype": "float32", "work": BACKWARD, "backend": backend}
    record("loss_host", [same | row(times, peer) for peer in times])


@pytest.mark.parametrize("dtype", ["bfloat16"] if ON_GPU else DTYPES)
@pytest.mark.parametrize(("rows", "classes"), TOP_K)
def test_top_k(show, rows, classes, dtype):
    run(show, "loss_top_k", TopK(rows, classes, DTYPES[dtype]), dtype)


@pytest.mark.parametrize(
    ("rows", "classes", "dtype"),
    [(*size, dtype) for size in LONG for dtype in DTYPES if size == LONG[len(LONG) // 2] or dtype == "bfloat16"],
)
def test_long_rows(show, rows, classes, dtype):
    run(show, "loss_long_rows", LongRows(rows, classes, DTYPES[dtype]), dtype)


@pytest.mark.skipif(ON_GPU, reason="sized for a CPU")
@pytest.mark.parametrize("classes", WIDTHS)
def test_number_of_classes(show, classes):
    """What README's plot shows: 256 rows of ever more classes, up to more than a dense table of soft targets allows."""
    run(show, "loss_by_classes", LongRows(256, classes, torch.float32), "float32")


@pytest.mark.parametrize(("rows", "classes", "dtype", "works"), cases(SIZES))
def test_blended(show, rows, classes, dtype, works):
    run(show, "loss_blended", Blended(rows, classes, DTYPES[dtype]), dtype, works)


@pytest.mark.parametrize(("rows", "classes", "dtype", "works"), cases([*SMALL, *SIZES, *WIDEST]))
def test_cross_entropy(show, rows, classes, dtype, works):
    calls = 200 if (rows, classes) in SMALL and not ON_GPU else 1
    run(show, "loss_plain", CrossEntropy(rows, classes, DTYPES[dtype]), dtype, works, calls)
