"""What all suites share: a fresh compiler for each, and pytest-benchmark's table made of the harness's times."""

import os

import pytest

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported; keeps the memory profiler quiet


class Replayed:
    """pytest-benchmark's clock and what it times: times that were taken before, so that nothing is timed twice."""

    now = 0.0

    def __call__(self):
        return self.now

    def show(self, benchmark, times, **ratios):
        remaining = iter(times)
        benchmark.extra_info.update(ratios)
        benchmark.pedantic(lambda: self.pass_by(next(remaining)), rounds=len(times))

    def pass_by(self, seconds):
        self.now += seconds


CLOCK = Replayed()


@pytest.fixture(autouse=True)
def fresh_compiler():
    import torch

    torch.compiler.reset()


@pytest.fixture
def show(request):
    """show(times of ours, peer=ratio, ...): puts them into pytest-benchmark's table and its JSON."""
    request.node.add_marker(pytest.mark.benchmark(timer=CLOCK))
    benchmark = request.getfixturevalue("benchmark")
    return lambda times, **ratios: CLOCK.show(benchmark, times, **ratios)
