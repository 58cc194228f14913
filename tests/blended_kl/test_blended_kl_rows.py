"""Rows that take no part, rows that are wrong, and outputs that must be written all the same."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blended_kl_cases import DTYPES, Case, name, normal, run, toast_loss
from scipy.special import log_softmax

from toast_kernels.blended_kl import reference

INF = math.inf


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("classes", [3, 16, 129, 2049, 5003])
@pytest.mark.parametrize(
    "where", [slice(0, 1), slice(-1, None), slice(0, 2048)], ids=["first", "last", "a whole chunk"]
)
@pytest.mark.parametrize("past", [None, "dense"])
def test_a_nan_logit_poisons_its_row_only(kernel, past, where, classes, dtype):
    case = Case(4, classes, dtype, past=past, reduction="none")
    logits, target, keywords = case.arguments()
    if past:
        keywords["past_index"] = torch.tensor([0, 1, 2, -1])
    target = torch.tensor([0, 1, 2, -100])
    clean = run(logits, target, torch.ones(4), keywords, kernel)
    for row in (0, 3):  # row 3 is ignored: whatever it holds
        poisoned = logits.clone()
        poisoned[row, where] = torch.nan
        loss, gradient, stats = run(poisoned, target, torch.ones(4), keywords, kernel)
        assert loss.isnan().tolist() == [row == 0, False, False, False]
        assert stats.logsumexp.isnan().tolist() == [i == row for i in range(4)]
        others = [i for i in range(4) if i != row]
        assert torch.equal(loss[others], clean[0][others])
        assert torch.equal(gradient[others], clean[1][others])
        assert row == 0 or not gradient[3].any()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
def test_ignored_rows_take_no_part_whatever_they_hold(kernel, dtype, reduction):
    """Loss as over the other rows alone: the mean divides by these, against a formula, not against itself."""
    logits = normal(6, 50, seed=6).to(dtype)
    target = torch.tensor([3, -100, 7, -100, -100, 2])
    kept = target != -100
    for garbage in (0.0, torch.nan, INF, -INF):
        logits[~kept] = garbage
        past = normal(6, 50, seed=7).float()
        loss, gradient, stats = run(
            logits, target, torch.ones(6 if reduction == "none" else ()), {"past": past, "reduction": reduction}, kernel
        )
        z = logits[kept].double().numpy()
        ce = -log_softmax(z, axis=1)[np.arange(3), target[kept].numpy()]
        log_q, log_p = log_softmax(past[kept].double().numpy() / 3, axis=1), log_softmax(z / 3, axis=1)
        rows = ce + 9 * (np.exp(log_q) * (log_q - log_p)).sum(1)
        if reduction == "none":
            assert not loss[~kept].any()
            np.testing.assert_allclose(loss[kept], rows, rtol=1e-5)
        else:
            np.testing.assert_allclose(loss, rows.sum() / (3 if reduction == "mean" else 1), rtol=1e-5)
        assert torch.equal(gradient[~kept], torch.zeros_like(gradient[~kept]))
        assert gradient[kept].isfinite().all()
        assert not stats.cross_entropy[~kept].any()


@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "streamed past the caches"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_every_output_is_written_for_every_row(kernel, reduction, wide):
    """torch.empty gives NaN here: nothing may be left of it, ignored rows included."""
    rows, classes = (1030 if kernel == "cpu" else 5, 2051) if wide else (7, 37)
    case = Case(rows, classes, past="top-k", reduction=reduction)
    logits, target, keywords = case.arguments()
    target[-1] = target[rows // 2] = -100
    expected = run(logits, target, case.upstream(), keywords, kernel)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(3).isnan().all()
        actual = run(logits, target, case.upstream(), keywords, kernel)
    finally:
        torch.use_deterministic_algorithms(False)
    flat = [(*x[:2], *x[2]) for x in (actual, expected)]
    assert all(torch.equal(a, b) and not a.isnan().any() for a, b in zip(*flat, strict=True))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("label", [-1, 5, 2**31, -(2**40)])
def test_labels_out_of_range_raise_and_are_named(label, backend):
    logits = torch.zeros(4, 5)
    target = torch.tensor([0, -100, label, 1])
    with pytest.raises(IndexError, match=rf"target\[2\] = {label} is out of range \[0, 5\)"):
        toast_loss(logits, target, backend=backend)
    fine = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(IndexError, match=rf"target\[1\]\[2\] = {label} is out of range"):
        toast_loss(logits, (fine, target, 0.5), backend=backend)
    with pytest.raises(IndexError, match=rf"target\[0\]\[2\] = {label} is out of range"):
        toast_loss(logits, (target, fine, 0.5), backend=backend)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("index", [-2, 3, 2**33])
def test_past_index_out_of_range_raises_and_is_named(index, backend):
    past = torch.zeros(3, 5)
    rows = torch.tensor([0, -1, index, 2])
    with pytest.raises(IndexError, match=rf"past_index\[2\] = {index} is out of range \[0, 3\)"):
        toast_loss(torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64), past=past, past_index=rows, backend=backend)


@pytest.mark.parametrize("classes", [5, 300])
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_on_a_gpu_an_index_out_of_range_is_nan_in_its_row_alone(backend, classes, monkeypatch):
    """Nothing can be raised there without waiting for the GPU. The mean is over the other rows."""
    monkeypatch.setattr(reference, "reject_out_of_range", lambda *_: None)
    logits = normal(6, classes, seed=1).float()
    target = torch.tensor([0, -1, classes, 2**40, 4, 1])
    index = torch.tensor([0, 1, -1, 2, 3, -1])  # row 4's is out of range
    good = torch.tensor([True, False, False, False, False, True])
    keywords = {"past": normal(3, classes, seed=2).float(), "past_index": index}
    good_keywords = {**keywords, "past_index": index[good]}

    rows = run(logits, target, torch.ones(6), {**keywords, "reduction": "none"}, backend)
    expected = run(logits[good], target[good], torch.ones(2), {**good_keywords, "reduction": "none"}, "cpu")
    assert rows[0].isnan().tolist() == (~good).tolist()
    assert rows[1][~good].isnan().all()
    torch.testing.assert_close(rows[0][good], expected[0])
    torch.testing.assert_close(rows[1][good], expected[1])
    assert rows[2].cross_entropy[target != 4].isnan().tolist() == [False, True, True, True, False]

    mean = run(logits, target, torch.tensor(1.0), keywords, backend)
    expected = run(logits[good], target[good], torch.tensor(1.0), good_keywords, "cpu")
    assert mean[0].isnan()
    torch.testing.assert_close(mean[1][good], expected[1])


@pytest.mark.parametrize("value", [torch.nan, INF])
def test_a_class_weight_that_is_not_finite_shows_in_its_rows_only(kernel, value):
    logits = normal(3, 40, seed=10).float()
    weight = torch.ones(40)
    weight[1] = value
    target = torch.tensor([0, 1, 2])
    expected = F.cross_entropy(logits, target, weight, reduction="none")
    assert expected.isfinite().tolist() == [True, False, True]
    loss = toast_loss(logits.requires_grad_(), target, weight, reduction="none", backend=kernel)
    torch.testing.assert_close(loss, expected, equal_nan=True)
    loss.sum().backward()
    assert logits.grad[::2].isfinite().all()
