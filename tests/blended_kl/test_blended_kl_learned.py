"""Arguments besides the logits that require grad: they get a gradient, or an error that says what gives one."""

import pytest
import torch
import torch.nn.functional as F
from blended_kl_cases import Case, device_of, moved, toast_loss

from toast_kernels import functional

LEARNED = ("weight", "lam", "alpha", "past_weight")


def problem(dtype=torch.float64):
    """Logits, and everything that could be learned, as toast_loss takes it: build(values) gives target and keywords."""
    logits, (y_a, y_b, lam), keywords = Case(5, 7, dtype, "dense", "dense", "mixup", weighted=True).arguments()
    values = {"weight": keywords["weight"].to(dtype), "lam": lam.to(dtype)}
    values |= {"alpha": torch.tensor(0.3, dtype=dtype), "past_weight": torch.tensor(1.5, dtype=dtype)}

    def build(values):
        others = {name: x for name, x in values.items() if name != "lam"}
        return (y_a, y_b, values["lam"]), keywords | others

    return logits, values, build


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("learned", LEARNED)
def test_kernels_name_what_they_give_no_gradient(kernel, learned, dtype):
    logits, values, build = problem(dtype)
    logits = logits.requires_grad_()
    values[learned].requires_grad_()
    target, keywords = build(values)
    message = (
        f'^{learned} requires grad, and backend "{kernel}" gives it no gradient: use backend="reference", or detach'
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            toast_loss(logits, target, backend=kernel, **keywords)
    with torch.no_grad():
        assert toast_loss(logits, target, backend=kernel, **keywords).isfinite()
    values[learned] = values[learned].detach()
    target, keywords = build(values)
    assert toast_loss(logits, target, backend=kernel, **keywords).requires_grad


def test_auto_raises_too():
    for learned in LEARNED:
        logits, values, build = problem()
        values[learned].requires_grad_()
        target, keywords = build(values)
        with pytest.raises(ValueError, match=f'^{learned} requires grad, and backend "cpu" gives it no gradient'):
            functional.toast_loss(logits, target, **keywords)


def test_a_plan_for_constants_is_not_taken_for_what_is_learned(kernel):
    """After a call of the same kind but for that, on the CPU and where a number is a tensor."""
    for learned in LEARNED:
        logits, values, build = problem(torch.float32)
        target, keywords = build(values)
        toast_loss(logits, target, backend=kernel, **keywords)
        values[learned].requires_grad_()
        target, keywords = build(values)
        with pytest.raises(ValueError, match=f"^{learned} requires grad"):
            toast_loss(logits, target, backend=kernel, **keywords)


def test_what_the_loss_does_not_depend_on_may_require_grad(kernel):
    alpha = torch.tensor(0.3, requires_grad=True)
    assert toast_loss(torch.randn(3, 4), torch.tensor([0, 1, 2]), alpha=alpha, past_weight=alpha, backend=kernel) > 0


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_the_reference_gives_all_of_them_the_gradient_of_finite_differences(reduction):
    logits, values, build = problem()
    leaves = [x.clone().requires_grad_() for x in values.values()]

    def loss(*leaves):
        target, keywords = build(dict(zip(values, leaves, strict=True)))
        return functional.toast_loss(logits, target, backend="reference", **keywords | {"reduction": reduction})

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_with_class_probabilities_weight_gets_the_gradient_of_cross_entropy(backend, reduction):
    logits, target, _ = Case(5, 7, target="probabilities").arguments()
    gradients = []
    for function, keywords in ((functional.toast_loss, {"backend": backend}), (F.cross_entropy, {})):
        z, t, w = (x.clone().requires_grad_() for x in (logits, target, torch.linspace(0.5, 2, 7)))
        function(z, t, w, reduction=reduction, label_smoothing=0.1, **keywords).sum().backward()
        gradients.append((z.grad, t.grad, w.grad))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_kernels_refuse_class_probabilities_and_a_weight_that_is_learned(kernel):
    logits, target, _ = Case(5, 7, target="probabilities").arguments()
    weight = torch.ones(7, device=device_of(kernel), requires_grad=True)
    with pytest.raises(ValueError, match=f'^weight requires grad, and backend "{kernel}" gives it no gradient'):
        functional.toast_loss(*moved((logits, target), device_of(kernel)), weight, backend=kernel)


def test_an_alpha_out_of_range_is_seen_though_it_is_learned():
    logits, values, build = problem()
    values["alpha"] = torch.tensor(1.5, requires_grad=True)
    target, keywords = build(values)
    with pytest.raises(ValueError, match="alpha must be a number in"):
        functional.toast_loss(logits, target, backend="reference", **keywords)


@pytest.mark.parametrize(
    "learned", [pytest.param(name, marks=[pytest.mark.more] * (name in ("weight", "past_weight"))) for name in LEARNED]
)
def test_compiled_too(learned):
    torch._dynamo.reset()
    logits, values, build = problem()
    values[learned].requires_grad_()

    def loss(logits, values):
        target, keywords = build(values)
        return functional.toast_loss(logits, target, **keywords)

    with pytest.raises((ValueError, torch._dynamo.exc.TorchDynamoException), match=f"{learned} requires grad"):
        torch.compile(loss, backend="eager")(logits, values)
    torch._dynamo.reset()
