"""toast_loss beside its peers: the same loss in eager PyTorch and under torch.compile, and F.cross_entropy.

    pytest bench/bench_blended_kl.py       (make bench; results are appended to bench/results/blended_kl.csv)

Every peer's loss and gradient are checked to be ours before anything is timed. "moving the bytes" is a copy, out of
memory and not out of a cache, that reads and writes as many bytes as the loss must: logits, the soft targets and past
predictions in use, and the gradient, once.
"""

import itertools
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from toast_kernels import SoftTargets, toast_loss

sys.path.insert(0, str(Path(__file__).parent))
from harness import interleave, ratio, report

SHAPES = [(1024, 1000), (4096, 1000), (1024, 3250), (256, 21841)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TEMPERATURE = 3.0
ALPHA = 0.4


class Problem:
    """A batch in training: dense soft targets for all classes, a past for every other row."""

    def __init__(self, rows, classes, dtype):
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(*shape, generator=generator).mul_(3).to(dtype)

        self.logits = normal(rows, classes).requires_grad_()
        self.target = torch.randint(classes, (rows,), generator=generator)
        self.soft = SoftTargets.from_logits(normal(classes, classes))
        self.past = SoftTargets.from_logits(normal(rows // 2, classes), TEMPERATURE)
        self.past_index = torch.full((rows,), -1)
        self.with_past = torch.arange(0, rows, 2)
        self.past_index[self.with_past] = torch.arange(rows // 2)
        self.bytes = rows * classes * (2 * dtype.itemsize + 1.5 * self.soft.values.dtype.itemsize)

    def ours(self):
        return toast_loss(
            self.logits, self.target, soft_targets=self.soft, alpha=ALPHA, past=self.past, past_index=self.past_index
        )

    def eager(self):
        logits = self.logits.float()
        log_p = F.log_softmax(logits, 1)
        hard = F.nll_loss(log_p, self.target)
        soft = -(self.soft.values[self.target] * log_p).sum(1).mean()
        past = F.kl_div(
            F.log_softmax(logits[self.with_past] / TEMPERATURE, 1), self.past.values.float(), reduction="batchmean"
        )
        return (1 - ALPHA) * hard + ALPHA * soft + TEMPERATURE**2 * past


def backward(loss, logits):
    def run():
        logits.grad = None
        loss().backward()
        return logits.grad

    return run


def check_equal(cases, dtype):
    """Gradients are ours up to the rounding of dtype."""
    expected = cases["toast_kernels"]().float()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype] * expected.abs().max().item()
    for name, run in cases.items():
        error = (run().float() - expected).abs().max().item()
        assert error <= tolerance, f"{name} has another gradient: off by {error:.2e}, allowed {tolerance:.2e}"


def copy_of(num_bytes):
    """A copy that moves num_bytes, half read and half written, elsewhere in memory each time: not in a cache."""
    floats = int(num_bytes) // 8
    parts = max(2, 2**27 // floats)
    source, destination = torch.ones(parts, floats), torch.zeros(parts, floats)
    order = itertools.cycle(range(parts))

    def run():
        part = next(order)
        destination[part].copy_(source[part])

    return run


def measure(benchmark, cases, **conditions):
    print("\n" + ", ".join(f"{name} {value}" for name, value in conditions.items()))
    times = interleave(cases, rounds=25)
    report(times, "toast_kernels", "blended_kl", **conditions)
    benchmark.pedantic(cases["toast_kernels"], rounds=3)
    benchmark.extra_info.update({name: ratio(times, "toast_kernels", name)[0] for name in cases})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_blended(benchmark, rows, classes, dtype):
    """Forward and backward: soft targets, and a past for half of the rows."""
    problem = Problem(rows, classes, DTYPES[dtype])
    torch.compiler.reset()
    cases = {
        "toast_kernels": backward(problem.ours, problem.logits),
        "eager": backward(problem.eager, problem.logits),
        "torch.compile": backward(torch.compile(problem.eager), problem.logits),
    }
    torch.testing.assert_close(problem.ours(), problem.eager(), rtol=1e-4, atol=1e-4)
    check_equal(cases, DTYPES[dtype])
    cases["cross_entropy alone"] = backward(lambda: F.cross_entropy(problem.logits, problem.target), problem.logits)
    cases["moving the bytes"] = copy_of(problem.bytes)
    measure(benchmark, cases, loss="blended", N=rows, C=classes, dtype=dtype, calls=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "classes"), [(8, 10), (256, 100), *SHAPES])
def test_cross_entropy(benchmark, rows, classes, dtype):
    """Forward and backward with nothing added. 8 x 10 is the overhead of a call."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator).to(DTYPES[dtype]).requires_grad_()
    target = torch.randint(classes, (rows,), generator=generator)
    cases = {
        "toast_kernels": backward(lambda: toast_loss(logits, target), logits),
        "F.cross_entropy": backward(lambda: F.cross_entropy(logits, target), logits),
    }
    check_equal(cases, DTYPES[dtype])
    cases["moving the bytes"] = copy_of(max(8, 2 * logits.numel() * logits.element_size()))
    repeats = 200 if rows * classes < 1e5 else 1
    cases = {name: lambda run=run: [run() for _ in range(repeats)] for name, run in cases.items()}
    measure(benchmark, cases, loss="cross-entropy", N=rows, C=classes, dtype=dtype, calls=repeats)


@pytest.mark.parametrize("dtype", DTYPES)
def test_top_k(benchmark, dtype):
    """Top-k soft targets cost what plain cross-entropy costs: 64 of 100,000 classes, where a dense table is 40 GB."""
    rows, classes, k = 256, 100_000, 64
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator).to(DTYPES[dtype]).requires_grad_()
    target = torch.randint(classes, (rows,), generator=generator)
    soft = SoftTargets.empty(classes, classes, top_k=k)
    soft.filled.fill_(True)
    soft.values[target] = torch.rand(rows, k, generator=generator) / k
    soft.indices[target] = torch.stack(
        [torch.randperm(classes, generator=generator)[:k].sort()[0] for _ in target]
    ).int()

    def eager():
        log_p = F.log_softmax(logits.float(), 1)
        rest = (1 - soft.values[target].sum(1)) / (classes - k)
        listed = log_p.gather(1, soft.indices[target].long())
        soft_term = -((soft.values[target] - rest[:, None]) * listed).sum(1) - rest * log_p.sum(1)
        return (1 - ALPHA) * F.nll_loss(log_p, target) + ALPHA * soft_term.mean()

    cases = {
        "toast_kernels": backward(lambda: toast_loss(logits, target, soft_targets=soft, alpha=ALPHA), logits),
        "eager": backward(eager, logits),
    }
    check_equal(cases, DTYPES[dtype])
    cases["toast_kernels without soft targets"] = backward(lambda: toast_loss(logits, target), logits)
    cases["F.cross_entropy"] = backward(lambda: F.cross_entropy(logits, target), logits)
    measure(benchmark, cases, loss="top-k 64", N=rows, C=classes, dtype=dtype, calls=1)
