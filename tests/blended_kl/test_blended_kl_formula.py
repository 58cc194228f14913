"""The loss and its gradient written out by hand, row by row, in NumPy; and gradcheck."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from blended_kl_cases import in_float64, normal, table, toast_loss
from scipy.special import entr, log_softmax, logsumexp, softmax

from toast_kernels import SoftTargets

BACKENDS = ["cpu", "reference"]  # in float64
REDUCTIONS = ["none", "mean", "sum"]
N, C, M = 12, 6, 5


def by_hand(z, y, w, soft, filled, alpha, past, index, weight_of_past, t, reduction, eps=0.0, ignore=-100):
    """Loss, and gradient of its sum, in float64 NumPy."""
    class_terms, past_terms, class_weight, past_rows = np.zeros((4, len(z)))
    class_gradient, past_gradient = np.zeros_like(z), np.zeros_like(z)
    for i in range(len(z)):
        if y[i] == ignore:
            continue
        log_p, p, log_p_t = log_softmax(z[i]), softmax(z[i]), log_softmax(z[i] / t)
        share = alpha if filled[y[i]] else 0.0
        hard = (1 - eps) * w[y[i]] * np.eye(len(p))[y[i]] + eps / len(p) * w
        mass = (1 - share) * hard + share * w[y[i]] * soft[y[i]]
        class_terms[i] = -(mass * log_p).sum()
        class_gradient[i] = mass.sum() * p - mass
        class_weight[i] = w[y[i]]
        if index[i] >= 0:
            q = past[index[i]]
            past_terms[i] = weight_of_past * t * t * (-entr(q).sum() - (q * log_p_t).sum())
            past_gradient[i] = weight_of_past * t * (q.sum() * np.exp(log_p_t) - q)
            past_rows[i] = 1
    if reduction == "none":
        return class_terms + past_terms, class_gradient + past_gradient
    if reduction == "sum":
        return (class_terms + past_terms).sum(), class_gradient + past_gradient
    many, few = class_weight.sum(), max(past_rows.sum(), 1)
    return class_terms.sum() / many + past_terms.sum() / few, class_gradient / many + past_gradient / few


def inputs(soft="dense", past="dense", t=3.0):
    generator = torch.Generator().manual_seed(3)
    z = normal(N, C, seed=1)
    y = torch.randint(0, C, (N,), generator=generator)
    y[4] = y[9] = -100
    w = torch.rand(C, generator=generator, dtype=torch.float64) + 0.1
    filled = torch.tensor([True, False, True, True, False, True])
    s = table(soft, C, C, 1.0, 7, torch.float64, filled)
    q = table(past, M, C, t, 8, torch.float64)
    q = replace(q, entropy=torch.special.entr(q.dense().double()).sum(1))
    index = torch.tensor([0, -1, 2, 2, 3, 2, -1, 4, 0, 1, -1, 2])
    return z, y, w, s, q, index


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("encoding", ["dense", "bfloat16", "top-k", "logits"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_and_gradient_by_hand(backend, encoding, reduction):
    """Unfilled classes, ignored rows, past rows that repeat and rows without one."""
    for t, alpha, eps in ((3.0, 0.3, 0.0), (2.5, 1.0, 0.2)):
        z, y, w, s, q, index = inputs(encoding, encoding, t)
        soft, past = (in_float64(x).dense().double().numpy() for x in (s, q))
        expected, gradient = by_hand(
            z.numpy(), y.numpy(), w.numpy(), soft, s.filled.numpy(), alpha, past, index.numpy(), 1.7, t, reduction, eps
        )  # fmt: skip
        z.requires_grad_()
        loss = toast_loss(
            z, y, w, soft_targets=s, alpha=alpha, past=q, past_index=index, past_weight=1.7, temperature=t,
            label_smoothing=eps, reduction=reduction, backend=backend,
        )  # fmt: skip
        np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-12, atol=1e-12)
        loss.sum().backward()
        np.testing.assert_allclose(z.grad.numpy(), gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_averages_each_term_over_the_rows_that_have_it(backend):
    z, y, w, _, q, index = inputs()
    rows = toast_loss(z, y, w, past=q, past_index=index, past_weight=2.0, reduction="none", backend=backend)
    plain = toast_loss(z, y, w, reduction="none", backend=backend)
    used = y != -100
    both = used & (index >= 0)
    assert 0 < both.sum() < used.sum() < N
    expected = plain.sum() / w[y[used]].sum() + (rows - plain).sum() / both.sum()
    mean = toast_loss(z, y, w, past=q, past_index=index, past_weight=2.0, backend=backend)
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_row_has_a_past(backend, reduction):
    z, y, w, _, q, _ = inputs()
    nobody = torch.full((N,), -1)
    plain = toast_loss(z, y, w, reduction=reduction, backend=backend)
    for past in (q, q[:0]):
        loss = toast_loss(z, y, w, past=past, past_index=nobody, reduction=reduction, backend=backend)
        torch.testing.assert_close(loss, plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_past_rows_that_are_not_filled_count_as_none(backend):
    z, y, _, _, q, index = inputs()
    q = replace(q, filled=torch.tensor([True, True, False, True, False]))
    hidden = torch.where(q.filled[index.clamp(min=0)], index, -1)
    loss = toast_loss(z, y, past=q, past_index=index, backend=backend)
    torch.testing.assert_close(loss, toast_loss(z, y, past=q, past_index=hidden, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_past_without_an_index_is_row_by_row(backend):
    z, y, _, _, _, _ = inputs()
    old = normal(N, C, seed=20)
    rows = torch.arange(N)
    as_tensor = toast_loss(z, y, past=old, backend=backend)
    torch.testing.assert_close(as_tensor, toast_loss(z, y, past=old, past_index=rows, backend=backend))
    dense = SoftTargets.from_logits(old, 3.0)
    torch.testing.assert_close(as_tensor, toast_loss(z, y, past=dense, past_index=rows.int(), backend=backend))


@pytest.mark.parametrize("form", ["number", "tensor", "0-d", "float32"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_mixup_triple_by_hand(backend, reduction, form):
    """lam * a(y_a) + (1 - lam) * a(y_b), where an ignored label adds nothing, to the mean's divisor neither."""
    z, y_a, w, s, q, index = inputs()
    y_b = y_a.roll(5)
    lam = torch.linspace(0, 1, N, dtype=torch.float64)
    if form in ("number", "0-d"):
        lam = torch.full((N,), 0.25, dtype=torch.float64)
    given = {"number": 0.25, "tensor": lam, "0-d": torch.tensor(0.25), "float32": lam.float()}[form]
    keywords = {"weight": w, "soft_targets": s, "alpha": 0.4, "label_smoothing": 0.1, "backend": backend}
    terms = [
        lam * toast_loss(z, y_a, reduction="none", **keywords),
        (1 - lam) * toast_loss(z, y_b, reduction="none", **keywords),
    ]
    shares = [torch.where(y == -100, 0, share * w[y.clamp(min=0)]) for y, share in ((y_a, lam), (y_b, 1 - lam))]
    keywords |= {"past": q, "past_index": index}
    used = (y_a != -100) | (y_b != -100)
    past = toast_loss(z, torch.where(used, 0, -100), past=q, past_index=index, reduction="none", backend=backend)
    past = past - toast_loss(z, torch.where(used, 0, -100), reduction="none", backend=backend)
    expected = sum(terms) + past
    if reduction == "sum":
        expected = expected.sum()
    if reduction == "mean":
        expected = sum(terms).sum() / sum(shares).sum() + past.sum() / (used & (index >= 0)).sum()
    assert (used & ((y_a == -100) | (y_b == -100))).any()
    loss = toast_loss(z, (y_a, y_b, given), reduction=reduction, **keywords)
    tolerance = 1e-6 if form == "float32" else 1e-12
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_alpha_and_past_weight_as_tensors(backend):
    z, y, w, s, q, index = inputs()
    keywords = {"soft_targets": s, "past": q, "past_index": index, "backend": backend}
    number = toast_loss(z, y, w, alpha=0.375, past_weight=1.25, **keywords)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):  # all hold these two exactly
        alpha, past_weight = torch.tensor(0.375, dtype=dtype), torch.tensor(1.25, dtype=dtype)
        assert torch.equal(toast_loss(z, y, w, alpha=alpha, past_weight=past_weight, **keywords), number)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stats_are_of_the_labels_alone(backend):
    """cross_entropy without weight, smoothing, blending or past; 0 in ignored rows, and nothing is attached."""
    z, y, w, s, q, index = inputs()
    z.requires_grad_()
    keywords = {"soft_targets": s, "alpha": 0.7, "past": q, "past_index": index, "label_smoothing": 0.3}
    _, stats = toast_loss(z, y, w, return_stats=True, backend=backend, **keywords)
    rows = z.detach().numpy()
    expected = [0.0 if c == -100 else -log_softmax(row)[c] for row, c in zip(rows, y.tolist(), strict=True)]
    np.testing.assert_allclose(stats.cross_entropy, expected, rtol=1e-12)
    np.testing.assert_allclose(stats.logsumexp, logsumexp(rows, axis=1), rtol=1e-12)
    np.testing.assert_array_equal(stats.argmax, rows.argmax(1))
    assert not any(x.requires_grad for x in stats)

    shaped = torch.stack([z.detach(), z.detach() + 1], 2)  # [N, C, 2]
    _, stats = toast_loss(shaped, torch.stack([y, y], 1), return_stats=True, backend=backend)
    assert all(x.shape == (N, 2) for x in stats)
    np.testing.assert_allclose(stats.cross_entropy[:, 1], expected, rtol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_argmax_is_the_first_of_equals(backend):
    z = torch.zeros(3, 5000)
    z[1, 2100] = z[1, 4999] = 1.0
    z[2] = -math.inf
    z[2, 3000:] = 2.0
    _, stats = toast_loss(z, torch.tensor([0, 0, 3000]), return_stats=True, backend=backend)
    assert stats.argmax.tolist() == [0, 2100, 3000]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("encoding", [None, "dense", "top-k", "logits"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend, encoding, reduction):
    generator = torch.Generator().manual_seed(0)
    z = normal(4, 5, seed=30, scale=1.0).requires_grad_()
    y = torch.randint(0, 5, (4,), generator=generator)
    y[3] = -100
    w = torch.rand(5, generator=generator, dtype=torch.float64) + 0.1
    keywords = {"reduction": reduction, "label_smoothing": 0.1, "backend": backend}
    if encoding:
        keywords |= {"soft_targets": table(encoding, 5, 5, 1.0, 31, torch.float64), "alpha": 0.6, "temperature": 2.5}
        keywords |= {"past": table(encoding, 2, 5, 2.5, 32, torch.float64), "past_index": torch.tensor([1, -1, 1, 0])}
    for target in (y, (y, y.flip(0), 0.3)):
        assert torch.autograd.gradcheck(lambda x, target=target: toast_loss(x, target, w, **keywords), (z,))
