"""Values that break kernels: masked classes, underflow, peaked, confident and far-away logits."""

import math

import blended_kl_cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blended_kl_cases import (
    BACKENDS,
    DTYPES,
    ENCODINGS,
    Case,
    assert_runs_as_good,
    in_truth,
    name,
    normal,
    run,
    table,
    toast_loss,
)
from scipy.special import log_softmax, softmax

from toast_kernels import SoftTargets

INF = math.inf
ONE = torch.tensor(1.0, dtype=torch.float64)


def check(logits, target, upstream=ONE, **keywords):
    """The kernel is as good as naive code on these inputs; returns its loss, gradient and stats."""
    past = keywords.get("past") is not None
    case = Case(
        len(logits), logits.shape[1], past="given" if past else None, reduction=keywords.get("reduction", "mean")
    )
    actual, naive = (
        run(logits, target, upstream, keywords, backend)
        for backend in (blended_kl_cases.kernels_under_test, "reference")
    )
    assert_runs_as_good(actual, naive, in_truth(logits, target, upstream, keywords), case)
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("masked", [1, 16, 17, 2047, 2048, 2049, 4500], ids=lambda m: f"first {m}")
def test_masked_classes_at_the_start_wider_than_a_chunk(kernel, masked, dtype):
    """The first block all -inf must not give NaN, in one chunk or several, with a past or without."""
    logits = normal(4, 4600, seed=masked).to(dtype)
    logits[:, :masked] = -INF
    logits[2, :-1] = -INF  # one class left
    target = torch.full((4,), 4599)
    loss, gradient, _ = check(logits, target)
    assert loss.isfinite()
    assert torch.equal(gradient[:, :masked], torch.zeros_like(gradient[:, :masked]))
    past = SoftTargets.from_logits(logits, 3.0, dtype=torch.promote_types(dtype, torch.float32))
    loss, gradient, _ = check(logits, target, past=past, past_index=torch.tensor([1, 0, 2, -1]))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("where", ["middle", "end", "alternate"])
def test_masked_classes_anywhere(kernel, where):
    logits = normal(3, 6500, seed=1).float()
    keep = {"middle": slice(2048, 4096), "end": slice(4000, None), "alternate": slice(None, None, 2)}[where]
    logits[:, keep] = -INF
    past = SoftTargets.view_logits(logits.roll(1, 0), 3.0)
    loss, gradient, _ = check(logits, torch.tensor([1, 1, 1]), past=past, past_index=torch.arange(3))
    assert loss.isfinite()
    assert not gradient[:, keep].any()


@pytest.mark.parametrize("classes", [5, 2049, 5003])
def test_a_row_masked_whole_poisons_no_other_row(kernel, classes):
    logits = normal(3, classes, seed=2).float()
    expected = run(logits, torch.tensor([1, 2, 3]), torch.ones(3), {"reduction": "none"}, kernel)
    logits[1] = -INF
    loss, gradient, _ = run(logits, torch.tensor([1, 2, 3]), torch.ones(3), {"reduction": "none"}, kernel)
    assert loss.isnan().tolist() == [False, True, False]  # as cross_entropy has it
    assert torch.equal(loss[::2], expected[0][::2])
    assert torch.equal(gradient[::2], expected[1][::2])


@pytest.mark.parametrize("classes", [3, 40, 2603])
@pytest.mark.parametrize("backend", BACKENDS)
def test_soft_or_past_mass_on_a_masked_class_gives_inf_and_the_formulas_gradient(backend, classes):
    wide = torch.float32 if backend in ("triton", "cuda") else torch.float64
    logits = normal(3, classes, seed=3).to(wide)
    logits[0, classes - 1] = logits[2, 1] = -INF
    rows = torch.zeros(classes, classes).fill_diagonal_(0.25)
    rows[:, classes - 1] += 0.75
    target = torch.tensor([0, 1, 0])
    z = logits.clone().requires_grad_()
    soft = SoftTargets.from_probs(rows)
    loss = toast_loss(z, target, soft_targets=soft, alpha=0.5, reduction="none", backend=backend)
    assert (loss == INF).tolist() == [True, False, False]
    loss.sum().backward()
    hard = F.one_hot(target, classes)
    torch.testing.assert_close(z.grad, logits.softmax(1) - 0.5 * hard - 0.5 * rows.to(wide)[target])

    past = SoftTargets.from_probs(rows[:3])
    z = logits.clone().requires_grad_()
    loss = toast_loss(z, target, past=past, past_index=torch.tensor([0, 1, -1]), reduction="none", backend=backend)
    assert (loss == INF).tolist() == [True, False, False]
    loss.sum().backward()
    past_part = 3 * ((logits / 3).softmax(1) - rows[:3].to(wide))
    expected = logits.softmax(1) - hard + past_part * torch.tensor([[1], [1], [0]])
    torch.testing.assert_close(z.grad, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_weight_on_a_masked_class_is_no_mass(backend):
    """0 * inf is 0: alpha = 0, a past_weight of 0, a class weight of 0, lam = 1."""
    logits = torch.tensor([[1.0, 2.0, -INF]])
    rows = torch.tensor([[0.5, 0.25, 0.25]] * 3)
    hit = SoftTargets.from_probs(rows)
    target = torch.tensor([0])
    plain = toast_loss(logits, target)
    for keywords in (
        {"target": target, "soft_targets": hit, "alpha": 0.0},
        {"target": target, "past": hit[:1], "past_weight": 0.0},
        {"target": (target, torch.tensor([2]), 1.0)},
        {"target": (torch.tensor([2]), target, torch.tensor([0.0]))},
    ):
        torch.testing.assert_close(toast_loss(logits, backend=backend, **keywords), plain)
    weightless = torch.tensor([1.0, 1.0, 0.0])
    assert toast_loss(logits, torch.tensor([2]), weightless, reduction="sum", backend=backend) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_masked_row_without_weight_beside_rows_with_a_past(backend):
    logits, weight = normal(2, 5, seed=2).float(), torch.ones(5)
    logits[0], weight[0] = -INF, 0
    past = SoftTargets.from_logits(normal(1, 5, seed=3).float(), 3.0)
    loss = toast_loss(
        logits, torch.tensor([0, 1]), weight, past=past, past_index=torch.tensor([-1, 0]), reduction="none",
        backend=backend,
    )  # fmt: skip
    assert loss[0] == 0
    assert loss[1].isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, INF])
def test_a_logit_that_is_no_number_or_infinite_spoils_a_row_without_weight(bad, backend):
    logits, weight = normal(3, 7, seed=1).float(), torch.ones(7)
    logits[1, 4], weight[2] = bad, 0
    found = toast_loss(logits, torch.tensor([1, 2, 2]), weight, reduction="none", backend=backend)
    expected = F.cross_entropy(logits, torch.tensor([1, 2, 2]), weight, reduction="none")
    assert found.isnan().tolist() == expected.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("temperature", [1.0, 2.5, 3.0])
@pytest.mark.parametrize("encoding", ENCODINGS[1:])
def test_kl_where_both_probabilities_underflow(kernel, encoding, temperature):
    """exp(-600) is 0 in float32 on both sides, 0 log(0 / 0) is 0."""
    logits = normal(4, 300, seed=4).float()
    logits[:, 100:] -= 600 * temperature
    past = logits.flip(0)
    made = SoftTargets.view_logits(past, temperature)
    if encoding != "logits":
        top_k = 7 if encoding == "top-k" else None
        dtype = torch.bfloat16 if encoding == "bfloat16" else None
        made = SoftTargets.from_logits(past, temperature, top_k=top_k, dtype=dtype)
    if encoding != "top-k":  # which gives each class some mass
        assert (made.dense()[:, 100:] == 0).all()
    loss, gradient, _ = check(logits, torch.arange(4), past=made, past_index=torch.arange(4), temperature=temperature)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_past_mass_where_the_present_probability_underflows(kernel, temperature):
    """KL is about 900 there, not inf: log pT is never taken of a rounded probability."""
    logits = torch.zeros(2, 40)
    logits[:, 1:] = -900.0
    probs = torch.zeros(2, 40)
    probs[:, 0], probs[:, 39] = 0.25, 0.75
    loss, _, _ = check(
        logits, torch.zeros(2, dtype=torch.int64), past=SoftTargets.from_probs(probs), temperature=temperature
    )
    log_p = log_softmax(np.array([0.0] + [-900.0 / temperature] * 39))
    q = probs[0, [0, 39]].double().numpy()
    expected = temperature**2 * (q * (np.log(q) - log_p[[0, 39]])).sum()
    torch.testing.assert_close(float(loss), float(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("classes", [2, 127, 1000, 4097])
def test_kl_of_equal_predictions_is_0_and_not_negative_beyond_rounding(classes, temperature, backend):
    logits = normal(5, classes, seed=5).float()
    target = torch.arange(5) % classes
    with_past, without = (
        toast_loss(logits, target, past=past, temperature=temperature, reduction="none", backend=backend)
        for past in (logits.clone(), None)
    )
    rounding = temperature**2 * math.log(classes + 1) * 2e-6
    assert ((with_past - without).abs() <= rounding).all()


@pytest.mark.parametrize("classes", [2, 13, 127, 129, 131, 1021, 2053, 4099])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_peaked_rows_have_no_mass_beyond_the_last_class(kernel, dtype, classes):
    """A tail of padding would add exp(0 - max): visible when all logits are far below 0, label in the tail."""
    logits = torch.full((3, classes), -60.0)
    logits[0, classes - 1] = -20.0
    logits[1, 0] = -20.0
    logits = logits.to(dtype)
    target = torch.full((3,), classes - 1)
    loss, gradient, stats = check(
        logits, target, past=logits.float(), reduction="none", upstream=torch.ones(3).double()
    )
    exact = -log_softmax(logits.double().numpy(), axis=1)[:, -1]
    np.testing.assert_allclose(stats.cross_entropy, exact, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(loss, exact, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(gradient.double().sum(1), 0, atol=5e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("margin", [5.0, 9.0, 12.0, 20.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_confident_rows_against_float64(kernel, dtype, margin):
    """p_y - 1 must not be worked out in half precision."""
    logits = torch.zeros(3, 50)
    logits[:, 7] = margin
    logits = logits.to(dtype)
    p = softmax(logits.double().numpy(), axis=1)
    gradient = run(logits, torch.full((3,), 7), ONE, {"reduction": "sum"}, kernel)[1].double().numpy()
    wanted = p.copy()
    wanted[:, 7] = -p[:, np.arange(50) != 7].sum(1)
    rounding = torch.finfo(dtype).eps
    # One rounding of p_y near 1; two where the row's sum is float32 as well.
    atol = 5e-16 if dtype == torch.float64 else 1.2e-7 if kernel == "cpu" else 2.4e-7
    np.testing.assert_allclose(gradient, wanted, rtol=rounding, atol=atol)


@pytest.mark.parametrize("offset", [1000.0, -1000.0, 5000.0])
@pytest.mark.parametrize("past", ENCODINGS)
def test_logits_far_from_0(kernel, past, offset):
    """The loss and its gradient do not change: logits are taken relative to their maximum, old ones too."""
    logits = (normal(5, 1000, seed=8) * 8).round().float() / 8  # so that adding the offset is exact
    target = torch.arange(5)
    results = []
    for shift in (0.0, offset):
        made = table(past, 5, 1000, 3.0, 9)
        if past == "logits":
            made = SoftTargets.view_logits(made.values.mul(8).round() / 8 + shift, 3.0)
        keywords = {"reduction": "none"} if made is None else {"past": made, "reduction": "none"}
        results.append(check(logits + shift, target, torch.ones(5), **keywords))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-7)


def test_many_classes_just_below_a_logit_far_from_0(kernel):
    """Each has a share of e^-32, and not of 2^-32."""
    for classes in (300, 1000, 20_000):
        logits = torch.full((2, classes), 4e8 - 32)
        logits[:, 0] = 4e8
        assert 0 <= toast_loss(logits, torch.tensor([0, 0]), backend=kernel, reduction="sum") < 1e-8


def test_each_probability_is_right_to_its_last_bits(kernel):
    """Of a gradient near 1e-37 too: exp is exact to under a rounding over its whole range. Triton's takes the power of
    2 of a rounded product: a rounding more for each unit below the maximum, which leaves the sum as exact."""
    logits = -torch.linspace(0, 80, 40_001)[None]
    gradient = run(logits, torch.tensor([0]), ONE, {}, kernel)[1][0, 1:].double().numpy()
    exact = softmax(logits[0].double().numpy())[1:]
    roundings = 2.5 if kernel == "cpu" else 2.5 - logits[0, 1:].double().numpy()
    assert (abs(gradient - exact) <= roundings * torch.finfo(torch.float32).eps * exact).all()


def test_a_nan_of_any_bits_stays_a_nan_when_the_gradient_is_rounded(kernel):
    """The NaN whose bits are all 1 would overflow to a number if it were rounded like one."""
    logits = torch.zeros(2, 40, dtype=torch.bfloat16)
    soft = SoftTargets.from_probs(torch.full((40, 40), 1 / 40))
    soft.values[1] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    keywords = {"soft_targets": soft, "alpha": 0.5}
    _, gradient, _ = run(logits, torch.tensor([0, 1]), ONE, keywords, kernel)
    assert gradient[1].isnan().all()
    assert gradient[0].isfinite().all()


@pytest.mark.parametrize(("flushed", "size"), [(False, 1 << 20), (True, 100)])
def test_other_code_keeps_its_denormals_or_does_not(flushed, size):
    """On all of the threads that torch shares with the kernel; torch's own setting is this thread's alone."""
    small = torch.full((size,), 1e-30)
    try:
        torch.set_flush_denormal(flushed)
        toast_loss(normal(4096, 100, seed=1).float(), torch.arange(4096) % 100, backend="cpu")
        assert ((small * 1e-10 == 0) == flushed).all()
    finally:
        torch.set_flush_denormal(False)


def test_a_past_at_a_tiny_temperature():
    logits = torch.tensor([[0.0, 1.0, 2.0, -3.0]])
    keywords = {"past": torch.tensor([[0.0, 2.0, 2.5, 1.0]]), "temperature": 5e-14}
    (loss, gradient, _), (expected, right, _) = (
        run(logits, torch.tensor([1]), ONE, keywords, backend) for backend in ("cpu", "reference")
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, right)
