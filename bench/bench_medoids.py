"""class_medoids beside its peers: SciPy, torch.cdist, a torch sort, kmedoids, PyKeOps.

pytest bench/bench_medoids.py          (make bench, make gpu; results are appended to bench/results/medoids.csv)
"""

import pytest
import torch
from harness import DEVICE, OURS, measure, ratio
from peers import Medoids

METRICS = ["euclidean", "sqeuclidean", "cosine", "cityblock", "jeffreys"]
ON_GPU = DEVICE.type == "cuda"
SIZES = [(50_000, 100, 100)] if ON_GPU else [(10_000, 100, 20), (1300, 1000, 1)]
LARGE = [(1_300_000, 1000, 1000), (1_000_000, 10_000, 10_000)] if ON_GPU else []


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("size", LARGE, ids=str)
def test_large_pools(benchmark, size, metric):
    """Beside a copy only: no peer does these exactly, or in minutes."""
    problem = Medoids(*size, metric, dtype=torch.bfloat16)
    measure(
        "medoids", {OURS: problem.ours}, size=problem.size, dtype="bfloat16", work=metric, num_bytes=problem.bytes,
        rounds=5, seconds=15.0,
    )  # fmt: skip
    benchmark.pedantic(problem.ours, rounds=1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_medoids(benchmark, size, metric):
    problem = Medoids(*size, metric)
    cases = problem.agreeing(problem.cases())
    times = measure(
        "medoids", cases, size=problem.size, dtype="float32", work=metric, num_bytes=problem.bytes, rounds=15
    )
    benchmark.pedantic(cases[OURS], rounds=3)
    benchmark.extra_info.update({peer: ratio(times, OURS, peer)[0] for peer in times})
