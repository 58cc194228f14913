"""How the cost grows: with rows, classes, list length, class size, width, imbalance and threads.

    pytest bench/bench_scaling.py          (make bench; results are appended to bench/results/scaling.csv)

Each row of the results is one size; report.py fits the exponent b of time = a size^b over the sizes of a sweep.
"""

import pytest
import torch
from harness import DEVICE, OURS, measure
from peers import Blended, CrossEntropy, Medoids, TopK

WORK = "forward + backward"
on_cpu_only = pytest.mark.skipif(DEVICE.type != "cpu", reason="the sweeps are sized for a CPU")

# What varies -> the sizes, and the problem of a size.
LOSSES = {
    "rows": ([256, 512, 1024, 2048, 4096], lambda n: Blended(n, 1000, torch.float32)),
    "classes": ([1000, 4000, 16_000, 64_000, 256_000], lambda c: CrossEntropy(128, c, torch.float32)),
    "list length": ([8, 32, 128, 512], lambda k: TopK(256, 20_000, torch.float32, k)),
}
MEDOIDS = {
    "rows of a class": ([500, 1000, 2000, 4000, 8000], lambda n: Medoids(n, 100, 1, "euclidean")),
    "width": ([50, 200, 800, 3200], lambda d: Medoids(2000, d, 2, "euclidean")),
    "classes": ([5, 20, 80, 320], lambda k: Medoids(500 * k, 100, k, "sqeuclidean")),
    "percent of the rows in one of 20 classes": (
        [5, 10, 20, 40, 80], lambda p: Medoids(8000, 100, 20, "euclidean", share=p / 100),
    ),
}  # fmt: skip


@on_cpu_only
@pytest.mark.parametrize("sweep", LOSSES)
def test_loss(sweep):
    sizes, problem = LOSSES[sweep]
    for size in sizes:
        loss = problem(size)
        case = {OURS: loss.cases(WORK)[OURS]}
        measure("scaling", case, size=size, dtype="float32", work=f"loss: {sweep}", rounds=15, seconds=3.0)


@on_cpu_only
@pytest.mark.parametrize("sweep", MEDOIDS)
def test_medoids(sweep):
    sizes, problem = MEDOIDS[sweep]
    for size in sizes:
        measure(
            "scaling", {OURS: problem(size).ours}, size=size, dtype="float32", work=f"medoids: {sweep}", rounds=9,
            seconds=3.0,
        )  # fmt: skip


@on_cpu_only
@pytest.mark.parametrize("op", ["loss", "medoids"])
def test_threads(op):
    """1, 2, 4, ... threads and all, interleaved; the same bits come out, which the tests show."""
    most = torch.get_num_threads()
    loss, pool = Blended(1024, 3250, torch.float32), Medoids(10_000, 100, 20, "euclidean")
    run = loss.cases(WORK)[OURS] if op == "loss" else pool.ours

    def on(threads):
        def case():
            torch.set_num_threads(threads)
            run()

        return case

    cases = {OURS: on(most)} | {f"{2**i} threads": on(2**i) for i in range(16) if 2**i < most}
    try:
        measure("threads", cases, size=f"{most} threads", dtype="float32", work=op)
    finally:
        torch.set_num_threads(most)
