"""class_medoids beside its peers: SciPy, torch.cdist, a torch sort, kmedoids, PyKeOps.

pytest bench/bench_medoids.py          (make bench, make gpu; results are appended to bench/results/medoids.csv)
"""

import pytest
import torch
from harness import measure, ratio
from medoid_peers import InFile, Medoids, medoid_peers
from results import DEVICE, OURS

from toast_kernels.medoids.reference import METRICS

ON_GPU = DEVICE.type == "cuda"
SIZES = [(50_000, 100, 100)] if ON_GPU else [(10_000, 100, 20), (1300, 1000, 1)]
LARGE = [(1_300_000, 1000, 1000), (1_000_000, 10_000, 10_000)] if ON_GPU else []


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("size", LARGE, ids=str)
def test_large_pools(show, size, metric):
    """Beside torch's loop, whose matrix products may find other medoids; ours are checked in some of the classes."""
    problem = Medoids(*size, metric, dtype=torch.bfloat16)
    problem.check_some()
    loop, medoid = next(iter(medoid_peers(metric).items()))
    times = measure(
        "medoids", {OURS: problem.ours, loop: problem.loop(medoid)}, op="medoids", size=problem.size,
        dtype="bfloat16", work=metric, num_bytes=problem.bytes, flops=problem.flops, products=problem.products(),
        rounds=3, seconds=8.0,
    )  # fmt: skip
    show(times[OURS])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("size", "separated"), [(size, False) for size in SIZES] + [(SIZES[0], True)], ids=str)
def test_medoids(show, size, separated, metric):
    problem = Medoids(*size, metric, separated=separated)
    times = measure(
        "medoids", problem.agreeing(problem.cases()), op="medoids", size=problem.size, dtype="float32", work=metric,
        num_bytes=problem.bytes, flops=problem.flops, products=problem.products(), rounds=9, seconds=10.0,
    )  # fmt: skip
    show(times[OURS], **{peer: ratio(times, OURS, peer)[0] for peer in times})


@pytest.mark.parametrize(("metric", "num_classes"), [("sqeuclidean", 1000), ("euclidean", 10_000)])
def test_a_pool_in_a_file(show, tmp_path, metric, num_classes):
    """2.6 GB, in chunks of 512 MB and at once: the same medoids."""
    problem = InFile(tmp_path / "pool", 1_300_000, 1000, num_classes, metric, torch.bfloat16)
    assert problem.ours().equal(problem.whole())
    times = measure(
        "medoids_in_chunks", {OURS: problem.ours, "class_medoids at once": problem.whole}, op="medoids",
        size=problem.size, dtype="bfloat16", work=metric, num_bytes=problem.bytes, rounds=3, seconds=20.0,
    )  # fmt: skip
    show(times[OURS])
    (tmp_path / "pool").unlink()
