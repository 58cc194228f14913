"""Top-k rows beside logits of -inf: what a row leaves of 1 goes to the classes that it does not list and that are not
masked; without one it is dropped."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from blended_kl_cases import BACKENDS, DTYPES, Case, assert_runs_as_good, in_truth, name, normal, run, toast_loss

from toast_kernels import HardReplay, MedoidBank, PredictionMemory, SoftTargets

INF = math.inf


def as_used(table, masked):
    """[R, C] float64: rows of a top-k table beside logits that are -inf where masked, NumPy [R, C]."""
    rows = np.zeros((len(table), table.num_classes))
    for r, listed in enumerate(table.indices.tolist()):
        rows[r, listed] = table.values[r].double().numpy()
        sharing = np.setdiff1d(np.flatnonzero(~masked[r]), listed)
        rows[r, sharing] = max(0.0, 1 - rows[r, listed].sum()) / max(len(sharing), 1)
    return torch.from_numpy(rows)


def by_autograd(logits, y, soft, alpha, past, past_weight, t, upstream):
    """Row losses and gradient of dense rows, soft [N, C] and past [N, C], in float64."""
    z = logits.double().requires_grad_()

    def cross(mass, log_p):
        return -torch.where(mass != 0, mass * log_p, 0).sum(1)

    hard = torch.nn.functional.one_hot(y, z.shape[1]).double()
    class_term = cross((1 - alpha) * hard + alpha * soft, z.log_softmax(1))
    past_term = cross(past, (z / t).log_softmax(1)) - torch.special.entr(past).sum(1)
    loss = class_term + past_weight * t * t * past_term
    loss.backward(upstream)
    return loss.detach(), z.grad


def problem(dtype, classes, k, masks=True, seed=0):
    """Logits, labels, soft targets and past of four rows, of which all list the same k classes, the label among them,
    and leave 0.1 to 0.9 of 1. Of the other classes row 0 masks none, the next some, all (m = 0), all but one (m = 1).
    """
    logits = normal(4, classes, seed=seed).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    index = torch.arange(k, dtype=torch.int32).repeat(classes, 1) * (classes // k)
    values = normal(classes, k, seed=seed + 1, scale=1.0).softmax(1).to(wide)
    values *= torch.linspace(0.1, 0.9, classes, dtype=wide)[:, None]
    soft = SoftTargets(values, torch.zeros(classes, dtype=wide), torch.ones(classes, dtype=torch.bool), classes, index)
    past = replace(soft[:4], values=values.flip(1)[:4].contiguous(), temperature=3.0)
    left = 1 - past.values.sum(1)
    even = left / max(classes - k, 1)
    entropy = torch.special.entr(past.values).sum(1) + (classes - k) * torch.special.entr(even)
    past = replace(past, entropy=entropy)
    listed = set(index[0].tolist())
    unlisted = torch.tensor([j for j in range(classes) if j not in listed], dtype=torch.long)
    if masks:
        logits[1, unlisted[::2]] = -INF
        logits[2, unlisted] = -INF
        logits[3, unlisted[:-1]] = -INF
    target = torch.full((4,), int(index[0, -1]))
    return logits, target, soft, past


@pytest.mark.parametrize(
    ("classes", "k"), [(5, 1), (5, 2), (5, 5), (140, 3), (200, 2), (300, 3), (2100, 4), (4500, 70)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_and_gradient_are_those_of_the_rows_written_out(backend, dtype, classes, k):
    """Rows read in one chunk or several, by listed classes (few of many) or as a table."""
    logits, y, soft, past = problem(dtype, classes, k)
    upstream = torch.tensor([1.0, -0.5, 2.0, 0.25], dtype=torch.float64)
    z = logits.clone().requires_grad_()
    keywords = {"soft_targets": soft, "alpha": 0.4, "past": past, "past_weight": 1.5, "temperature": 3.0}
    loss = toast_loss(z, y, reduction="none", backend=backend, **keywords)
    loss.backward(upstream.to(loss.dtype))
    masked = (logits == -INF).numpy()
    rows = as_used(soft[y], masked), as_used(past, masked)
    expected, gradient = by_autograd(logits, y, rows[0], 0.4, rows[1], 1.5, 3.0, upstream)
    assert loss.isfinite().all()
    eps = torch.finfo(loss.dtype).eps
    torch.testing.assert_close(loss.detach().double(), expected, rtol=60 * eps, atol=60 * eps * classes**0.5)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(z.grad.double(), gradient, rtol=rounding, atol=40 * eps)
    assert not z.grad[logits == -INF].any()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_gradient_is_that_of_finite_differences(backend):
    logits, y, soft, past = problem(torch.float64, 9, 2)
    keywords = {"soft_targets": soft, "alpha": 0.4, "past": past, "past_weight": 1.5, "reduction": "sum"}
    z = logits.clone().requires_grad_()
    toast_loss(z, y, backend=backend, **keywords).backward()
    for i, j in np.argwhere(logits.isfinite().numpy()):
        step = torch.zeros_like(logits)
        step[i, j] = 1e-6
        ahead, behind = (toast_loss(logits + s, y, backend=backend, **keywords) for s in (step, -step))
        assert math.isclose((ahead - behind) / 2e-6, z.grad[i, j], rel_tol=1e-6, abs_tol=1e-7)


@pytest.mark.parametrize("target", ["labels", "mixup"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [33, 700])
def test_pairs_smoothing_and_weights(kernel, classes, weighted, smoothing, target):
    """Smoothing gives masked classes mass: such rows have an infinite loss, and the formula's gradient."""
    logits, y, soft, past = problem(torch.float32, classes, 3, seed=7)
    labels = (y, y.roll(1) * 0, torch.tensor([0.3, 0.6, 1.0, 0.0])) if target == "mixup" else y
    weight = torch.rand(classes, generator=torch.Generator().manual_seed(1)) + 0.1 if weighted else None
    keywords = {"soft_targets": soft, "alpha": 0.4, "past": past, "weight": weight, "label_smoothing": smoothing}
    keywords |= {"past_index": torch.tensor([2, 0, -1, 3]), "reduction": "none"}
    upstream = torch.tensor([1.0, -0.5, 2.0, 0.25], dtype=torch.float64)
    actual, naive = (run(logits, labels, upstream, keywords, which) for which in (kernel, "reference"))
    assert actual[0].isfinite().tolist() == [True, *[smoothing == 0] * 3]
    truth = in_truth(logits, labels, upstream, keywords)
    assert_runs_as_good(actual, naive, truth, Case(4, classes, past="top-k", reduction="none"))


@pytest.mark.parametrize("classes", [6, 130])
@pytest.mark.parametrize("backend", BACKENDS)
def test_listed_mass_on_a_masked_class(backend, classes):
    """The loss is infinite, the gradient the formula's; a class that is listed with 0 does no harm."""
    logits, y, soft, past = problem(torch.float32, classes, 2, masks=False)
    logits[1:, 0] = -INF  # listed by all rows
    logits[2, 1:3] = -INF
    upstream = torch.ones(4, dtype=torch.float64)
    for without in (False, True):
        if without:
            soft, past = (replace(t, values=t.values * torch.tensor([0.0, 1.0])) for t in (soft, past))
            past = replace(past, entropy=torch.special.entr(past.dense()).sum(1))
        keywords = {"soft_targets": soft, "alpha": 0.4, "past": past, "reduction": "none"}
        loss, gradient, _ = run(logits, y, upstream, keywords, backend)
        masked = (logits == -INF).numpy()
        rows = as_used(soft[y], masked), as_used(past, masked)
        expected = by_autograd(logits, y, rows[0], 0.4, rows[1], 1.0, 3.0, upstream)
        assert (loss == INF).tolist() == [False, *[not without] * 3]
        torch.testing.assert_close(loss.double(), expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_batch_do_not_touch_each_other(backend, classes):
    """A row without -inf has the bits that it has alone."""
    logits, y, soft, past = problem(torch.float32, classes, 2, masks=False)
    keywords = {"soft_targets": soft, "alpha": 0.4, "past": past, "reduction": "none"}
    alone = run(logits, y, torch.ones(4), keywords, backend)
    logits[1, 1::2] = -INF
    beside = run(logits, y, torch.ones(4), keywords, backend)
    for one, other in zip((*alone[:2], *alone[2]), (*beside[:2], *beside[2]), strict=True):
        assert torch.equal(one[[0, 2, 3]], other[[0, 2, 3]])


def test_chunks_of_few_wide_rows_go_to_threads():
    """With the same bits, and right."""
    logits = normal(2, 33_003, seed=1).float()
    past = SoftTargets.from_logits(logits.flip(0), 3.0, top_k=3)
    logits[1, 1::2] = -INF
    logits[1, past.indices[1].long()] = 1.0
    y = past.indices[:, 0].long()
    results, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(run(logits, y, torch.ones(2), {"past": past, "reduction": "none"}, "cpu"))
    torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    rows = as_used(past, (logits == -INF).numpy())
    loss, gradient = by_autograd(logits, y, torch.zeros_like(rows), 0.0, rows, 1.0, 3.0, torch.ones(2))
    torch.testing.assert_close(results[0][0].double(), loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[0][1].double(), gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_smallest_masked_problem(backend):
    """One listed class, one masked, of three: the values that a table stores sum to less than 1."""
    past = SoftTargets.from_logits(torch.tensor([[2.0, 0.0, -INF]]), 3.0, top_k=2)
    past.values.mul_(1 - 2.0**-23)
    loss = toast_loss(torch.tensor([[1.0, 2.0, -INF]]), torch.tensor([0]), past=past, backend=backend)
    assert loss.isfinite()


def masked_logits(rows, classes, seed):
    """Class j is masked in row i where i + j is a multiple of 3, and so never class i."""
    logits = normal(rows, classes, seed=seed).float()
    at = torch.arange(rows)[:, None] * 2 + torch.arange(classes)[None, :] + 1
    logits[at % 3 == 0] = -INF
    return logits


def check_past(past, logits, y, backend):
    """A past of top-k rows of masked logits gives the loss and gradient of its rows written out."""
    z = logits.clone().requires_grad_()
    keywords = {"past": past.targets, "past_index": past.index, "reduction": "none"}
    loss = toast_loss(z, y, backend=backend, **keywords)
    loss.sum().backward()
    has_past = (past.index >= 0)[:, None]
    table = past.targets[past.index.clamp(min=0)]
    rows = torch.where(has_past, as_used(table, (logits == -INF).numpy()), 0)
    none = torch.zeros_like(rows)
    expected, gradient = by_autograd(logits, y, none, 0.0, rows, 1.0, 3.0, torch.ones(len(y), dtype=torch.float64))
    assert loss.isfinite().all()
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z.grad.double(), gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 4, 6, 9])
@pytest.mark.parametrize("backend", BACKENDS)
def test_replay_of_masked_logits(backend, top_k):
    """Lists shorter and longer than the 6 classes that are not masked."""
    replay = HardReplay(1.0, top_k=top_k)
    x, labels = torch.arange(6.0)[:, None], torch.arange(6)
    for _ in range(2):
        rows, y, past = replay.extend(x, labels)
        logits = masked_logits(6, 9, 1)[rows[:, 0].long()]  # a carried row has the mask that it had
        used = y != -100
        if past.targets is not None:
            assert (past.index[6:] >= 0).all()
            check_past(past._replace(index=past.index[used]), logits[used], y[used], backend)
        loss = torch.nn.functional.cross_entropy(logits, y, reduction="none")
        replay.keep(rows, y, logits, loss)


@pytest.mark.parametrize("top_k", [1, 4, 6, 9])
@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_of_masked_logits(backend, top_k):
    memory = PredictionMemory(6, 9, top_k=top_k)
    logits, sample = masked_logits(6, 9, 2), torch.arange(6)
    memory.keep(sample[:4], logits[:4])
    check_past(memory.past(sample), masked_logits(6, 9, 3), torch.arange(6), backend)


@pytest.mark.parametrize("top_k", [1, 4, 9])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bank_beside_masked_logits(backend, top_k):
    """Soft targets of unmasked training, in a loss with masked classes."""
    bank = MedoidBank(9, top_k=top_k)
    bank.update(normal(36, 9, seed=4).float(), torch.arange(36) % 9)
    table = bank.compute()
    logits, y = masked_logits(6, 9, 5), torch.arange(6)
    listed = torch.zeros(6, 9, dtype=torch.bool).scatter(1, table.indices[:6].long(), True)
    logits = torch.where(listed & (logits == -INF), 0.5, logits)  # no listed mass under -inf
    z = logits.clone().requires_grad_()
    loss = toast_loss(z, y, soft_targets=table, alpha=0.6, reduction="none", backend=backend)
    loss.sum().backward()
    rows = as_used(table[:6], (logits == -INF).numpy())
    ones = torch.ones(6, dtype=torch.float64)
    expected, gradient = by_autograd(logits, y, rows, 0.6, torch.zeros_like(rows), 1.0, 3.0, ones)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z.grad.double(), gradient, rtol=1e-5, atol=1e-6)
