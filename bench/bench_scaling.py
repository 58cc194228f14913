"""How the cost grows: with rows, classes, list length, class size, width, imbalance and threads.

    pytest bench/bench_scaling.py          (make bench; results are appended to bench/results/scaling.csv)

The sizes of a sweep are timed interleaved, a row each; report.py fits the exponent b of time = a size^b over them.
"""

import pytest
import torch
from harness import measure, sweep
from loss_peers import Blended, CrossEntropy, TopK
from medoid_peers import Medoids
from results import DEVICE, OURS

WORK = "forward + backward"
on_cpu_only = pytest.mark.skipif(DEVICE.type != "cpu", reason="the sweeps are sized for a CPU")


def imbalanced(percent):
    return Medoids(8000, 100, 20, "euclidean", share=percent / 100)


# What varies -> the problem of each size. report.EXPECTED has the exponents that are expected.
LOSSES = {
    "rows": {n: lambda n=n: Blended(n, 1000, torch.float32) for n in (256, 512, 1024, 2048, 4096)},
    "classes": {c: lambda c=c: CrossEntropy(128, c, torch.float32) for c in (1000, 4000, 16_000, 64_000, 256_000)},
    "list length": {k: lambda k=k: TopK(256, 20_000, torch.float32, k) for k in (8, 32, 128, 512)},
}
MEDOIDS = {
    "rows of a class": {n: lambda n=n: Medoids(n, 100, 1, "euclidean") for n in (500, 1000, 2000, 4000, 8000)},
    "width": {d: lambda d=d: Medoids(2000, d, 2, "euclidean") for d in (50, 200, 800, 3200)},
    "classes, of 32,000 rows": {k: lambda k=k: Medoids(32_000, 100, k, "euclidean") for k in (16, 32, 64, 128)},
    # 5% to 80% of the rows in one of 20 classes, by the millions of pairs in all classes.
    "pairs in classes that are ever less alike": {
        f"{imbalanced(p).pairs / 1e6:.3g}": lambda p=p: imbalanced(p) for p in (5, 10, 20, 40, 80)
    },
}


@on_cpu_only
@pytest.mark.parametrize("what", LOSSES)
def test_loss(what):
    cases = {size: problem().gradient_case(OURS) for size, problem in LOSSES[what].items()}
    sweep("scaling", cases, op="blended_kl", dtype="float32", work=f"loss: {what}")


@on_cpu_only
@pytest.mark.parametrize("what", MEDOIDS)
def test_medoids(what):
    cases = {size: problem().ours for size, problem in MEDOIDS[what].items()}
    sweep("scaling", cases, op="medoids", dtype="float32", work=f"medoids: {what}")


@on_cpu_only
@pytest.mark.parametrize(("work", "op"), [("loss", "blended_kl"), ("medoids", "medoids")])
def test_threads(work, op):
    """1, 2, 4, ... threads and all, interleaved; the same bits come out, which the tests show."""
    most = torch.get_num_threads()
    loss, pool = Blended(1024, 3250, torch.float32), Medoids(10_000, 100, 20, "euclidean")
    run = loss.gradient_case(OURS) if work == "loss" else pool.ours

    def on(threads):
        def case():
            torch.set_num_threads(threads)
            run()

        return case

    cases = {OURS: on(most)} | {f"{2**i} threads": on(2**i) for i in range(16) if 2**i < most}
    try:
        measure("threads", cases, op=op, size=f"{most} threads", dtype="float32", work=work)
    finally:
        torch.set_num_threads(most)
