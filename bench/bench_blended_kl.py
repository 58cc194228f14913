"""toast_loss beside its peers: eager PyTorch, torch.compile, F.cross_entropy, Liger.

pytest bench/bench_blended_kl.py       (make bench, make gpu; results are appended to bench/results/loss_*.csv)
"""

import time
from statistics import median

import pytest
import torch
from harness import DEVICE, OURS, RESULTS, append, conditions, measure, ratio, rotated
from peers import Blended, CrossEntropy, LongRows, TopK

ON_GPU = DEVICE.type == "cuda"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BACKWARD = "forward + backward"
SMALL = [(8, 10), (256, 100)]  # what a call costs
if ON_GPU:
    SIZES = [(8192, 1000), (8192, 4096), (4096, 8192), (4096, 16384), (2048, 32768)]
    TOP_K, WIDEST = [(1024, 128_256), (512, 360_000)], [(2048, 128_256)]
    LONG = [(1024, 32_768), (1024, 65_536), (512, 131_072), (256, 262_144), (256, 360_000)]
else:
    SIZES = [(1024, 1000), (4096, 1000), (1024, 3250), (256, 21841)]
    TOP_K, WIDEST, LONG = [(256, 100_000)], [], [(256, 100_000)]


def cases(sizes):
    """(rows, classes, dtype, work). On a GPU, where torch.compile takes seconds for each, float32 and the forward pass
    alone at one size only."""
    if ON_GPU:
        others = [(*SIZES[1], "float32", BACKWARD), (*SIZES[1], "bfloat16", "forward")]
        return [(*size, "bfloat16", BACKWARD) for size in sizes] + others
    return [(*size, dtype, work) for size in sizes for dtype in DTYPES for work in ("forward", BACKWARD)]


def run(benchmark, suite, loss, dtype, work, calls=1, **options):
    loss.check()
    peers = loss.cases(work)
    if calls > 1:
        peers = {name: repeated(peer, calls) for name, peer in peers.items()}
    times = measure(
        suite,
        peers,
        size=loss.size,
        dtype=dtype,
        work=work,
        num_bytes=loss.bytes(work) if calls == 1 else None,
        others=loss.others,
        calls=calls,
        **options,
    )
    benchmark.pedantic(peers[OURS], rounds=3)
    benchmark.extra_info.update({peer: ratio(times, OURS, peer)[0] for peer in times})


def repeated(case, calls):
    def run():
        for _ in range(calls):
            case()

    return run


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize(("rows", "classes"), [(8, 10), (8192, 1000)])
def test_cuda_graph(rows, classes):
    """A whole forward and backward pass as one launch of a graph, beside the same pass called as usual."""
    loss = Blended(rows, classes, torch.bfloat16)
    step = loss.with_gradient(loss.ours)
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
        size=loss.size, dtype="bfloat16", work=BACKWARD,
    )  # fmt: skip


@pytest.mark.skipif(not ON_GPU, reason="on a CPU the smallest sizes of test_cross_entropy say it")
def test_host_overhead():
    """What the host needs to launch a pass, by the clock, 50 at a time: nothing waits for the GPU."""
    cases = CrossEntropy(*SMALL[0], torch.float32).cases(BACKWARD)
    times = {peer: [] for peer in cases}
    for i in range(12):
        for peer in rotated(cases, i):
            cases[peer]()
            torch.cuda.synchronize()
            before = time.perf_counter()
            for _ in range(50):
                cases[peer]()
            times[peer].append((time.perf_counter() - before) / 50)
    torch.cuda.synchronize()
    rows = [
        conditions() | {"work": "launching forward + backward", "peer": peer, "us": f"{1e6 * median(values):.4g}"}
        for peer, values in times.items()
    ]
    for row in rows:
        print(f"\nto launch {row['peer']}: {row['us']} us a forward and backward pass", end="")
    append(RESULTS / "loss_host.csv", rows)


@pytest.mark.parametrize("dtype", ["bfloat16"] if ON_GPU else DTYPES)
@pytest.mark.parametrize(("rows", "classes"), TOP_K)
def test_top_k(benchmark, rows, classes, dtype):
    run(benchmark, "loss_top_k", TopK(rows, classes, DTYPES[dtype]), dtype, BACKWARD)


@pytest.mark.parametrize(
    ("rows", "classes", "dtype"),
    [(*size, dtype) for size in LONG for dtype in DTYPES if size == LONG[len(LONG) // 2] or dtype == "bfloat16"],
)
def test_long_rows(benchmark, rows, classes, dtype):
    run(benchmark, "loss_long_rows", LongRows(rows, classes, DTYPES[dtype]), dtype, BACKWARD)


@pytest.mark.parametrize(("rows", "classes", "dtype", "work"), cases(SIZES))
def test_blended(benchmark, rows, classes, dtype, work):
    run(benchmark, "loss_blended", Blended(rows, classes, DTYPES[dtype]), dtype, work)


@pytest.mark.parametrize(("rows", "classes", "dtype", "work"), cases([*SMALL, *SIZES, *WIDEST]))
def test_cross_entropy(benchmark, rows, classes, dtype, work):
    calls = 200 if (rows, classes) in SMALL and not ON_GPU else 1
    run(benchmark, "loss_plain", CrossEntropy(rows, classes, DTYPES[dtype]), dtype, work, calls)
