"""The op under torch.library.opcheck, and toast_loss under torch.compile(fullgraph=True)."""

from dataclasses import replace

import pytest
import torch
from blended_kl_cases import Case, name
from op_calls import Calls
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from toast_kernels import toast_loss

CASES = {
    "plain": Case(6, 33),
    "weight and smoothing": Case(6, 33, weighted=True, label_smoothing=0.1, reduction="sum"),
    "soft": Case(6, 33, soft="dense", reduction="none"),
    "past": Case(6, 33, past="logits"),
    "soft and past": Case(6, 33, soft="top-k", past="dense", reduction="none"),
    "mixup": Case(6, 33, target="mixup", soft="dense", past="top-k"),
    "probabilities": Case(6, 33, target="probabilities", past="bfloat16", label_smoothing=0.1),
    "bfloat16": Case(6, 33, torch.bfloat16, soft="bfloat16", past="logits", reduction="none"),
    "float16": Case(6, 33, torch.float16, soft="bfloat16", past="logits"),
    "float64": Case(6, 33, torch.float64, soft="dense", past="dense"),
}
PARTS_OF_OTHERS = ("soft", "past", "float64")
each_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case_id, marks=pytest.mark.more if case_id in PARTS_OF_OTHERS else ())
        for case_id, case in CASES.items()
    ],
)
OP = torch.ops.toast_kernels.blended_kl.default

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("reduction", ["its own", *(pytest.param(x, marks=pytest.mark.more) for x in ("none", "mean"))])
@each_case
def test_opcheck(case, reduction):
    if reduction != "its own":
        case = replace(case, reduction=reduction)
    logits, target, keywords = case.arguments()
    leaf = logits.clone().requires_grad_()
    with Calls(OP) as calls:
        loss = toast_loss(leaf, target, return_stats=True, **keywords)[0]
        (first,) = torch.autograd.grad(loss.sum(), leaf, retain_graph=True)
        loss.sum().backward()
        toast_loss(logits, target, **keywords)
    in_forward = case.reduction != "none" and case.dtype != torch.float16
    assert len(calls.seen) == (2 if in_forward else 4)  # else with the upstream folded in, in each backward
    assert torch.equal(first, leaf.grad)
    del calls.seen[2:-1]  # the second backward pass calls as the first does
    for arguments in calls.seen:
        plain = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in arguments)
        torch.library.opcheck(OP, plain)


def test_a_second_derivative_raises_through_the_op_too():
    logits, target, keywords = Case(6, 33).arguments()
    scale = torch.ones(6, 33, requires_grad=True)
    with Calls(OP) as calls:
        loss = toast_loss(logits * scale, target, **keywords)
        with pytest.raises(RuntimeError, match="create_graph=True is for a second derivative"):
            torch.autograd.grad(loss, scale, create_graph=True)
    assert len(calls.seen) == 1


def step(compiled, logits, target, keywords):
    leaf = logits.detach().clone().requires_grad_()
    loss, stats = compiled(leaf, target, **keywords)
    upstream = torch.linspace(-1, 2, loss.numel()).reshape(loss.shape).to(loss.dtype)
    loss.backward(upstream)
    return (loss.detach(), leaf.grad, *stats)


def with_stats(logits, target, **keywords):
    return toast_loss(logits, target, return_stats=True, **keywords)


@each_case
def test_compiled_equals_eager(case):
    """Forward, gradient for an upstream of its own per row, and stats; row 1 is ignored."""
    logits, target, keywords = case.arguments()
    compiled = torch.compile(with_stats, fullgraph=True, backend="aot_eager")
    rounding = {torch.bfloat16: 2**-7, torch.float16: 2**-9}.get(case.dtype, 0)
    for one, other in zip(
        step(compiled, logits, target, keywords), step(with_stats, logits, target, keywords), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding * 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.more)], ids=name)
def test_inductor_with_a_model_around_it(dtype):
    """A head before the loss, everything ignored in one row, two losses on the same logits."""
    case = Case(6, 33, dtype, soft="dense", past="dense", reduction="none")
    x, target, keywords = case.arguments()

    def model(x, head):
        logits = (x @ head).tanh()
        loss = toast_loss(logits, target, **keywords) + toast_loss(logits, target.roll(1))
        return (loss * torch.arange(6)).sum()

    results = []
    for function in (model, torch.compile(model, fullgraph=True)):
        head = torch.eye(33, dtype=dtype).requires_grad_()
        loss = function(x, head)
        loss.backward()
        results.append((loss.detach(), head.grad))
    rtol = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(results[0], results[1], rtol=rtol, atol=rtol)


def test_alpha_and_past_weight_as_tensors_change_without_recompiling():
    logits, target, keywords = Case(6, 33, soft="dense", past="dense").arguments()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(toast_loss, fullgraph=True, backend=counter)
    losses = set()
    for value in (0.0, 0.25, 0.5, 1.0):
        keywords["alpha"], keywords["past_weight"] = torch.tensor(value), torch.tensor(2 * value)
        leaf = logits.clone().requires_grad_()
        loss = compiled(leaf, target, **keywords)
        assert torch.equal(loss, toast_loss(logits, target, **keywords))
        losses.add(loss.item())
    assert len(losses) == 4
    assert counter.frame_count == 1


def test_other_numbers_of_rows_recompile_at_most_once():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(toast_loss, fullgraph=True, backend=counter)
    for rows in (6, 7, 9, 12, 20):
        logits, target, _ = Case(rows, 33).arguments()
        loss = compiled(logits.requires_grad_(), target)
        assert torch.equal(loss.detach(), toast_loss(logits.detach(), target))
    assert counter.frame_count <= 2


def test_labels_out_of_range_raise_in_a_compiled_loss_too():
    compiled = torch.compile(toast_loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(IndexError, match=r"target\[1\] = 33 is out of range"):
        compiled(torch.zeros(2, 33), torch.tensor([0, 33]))


def test_bad_arguments_raise_under_compile_too():
    compiled = torch.compile(toast_loss, backend="aot_eager")
    with pytest.raises((ValueError, torch._dynamo.exc.TorchRuntimeError), match="temperature must be a number in"):
        compiled(torch.zeros(2, 33), torch.tensor([0, 3]), temperature=-1.0)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("where", ["in the same function", "outside"])
def test_a_backward_pass_in_a_compiled_function_is_not_compiled(where, reduction):
    """Else the kernels' launches were, with tensors that compiled code frees."""

    def step(loss, logits, target, upstream):
        if loss is None:
            loss = toast_loss(logits, target, reduction=reduction)
        loss.backward(upstream)
        return loss

    logits, target, _ = CASES["plain"].arguments()
    upstream = torch.linspace(-1, 2, 6) if reduction == "none" else torch.tensor(0.5)
    gradients = []
    counter = CompileCounterWithBackend("eager")
    for run in (step, torch.compile(step, backend=counter)):
        leaf = logits.clone().requires_grad_()
        run(None if "same" in where else toast_loss(leaf, target, reduction=reduction), leaf, target, upstream)
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    assert counter.frame_count == ("same" in where)  # the forward pass


@each_case
def test_a_backward_pass_under_a_mode_of_a_loss_that_came_before_it(case):
    """make_fx and fake tensors see an upstream gradient whose values are unknown."""
    logits, target, keywords = case.arguments()
    leaf = logits.clone().requires_grad_()
    loss = toast_loss(leaf, target, **keywords)
    upstream = torch.rand_like(loss)
    (expected,) = torch.autograd.grad(loss, leaf, upstream, retain_graph=True)

    def backward(upstream):
        return torch.autograd.grad(loss, leaf, upstream)[0]

    traced = make_fx(lambda u: torch.autograd.grad(loss, leaf, u, retain_graph=True)[0])(upstream)
    torch.testing.assert_close(traced(upstream), expected, rtol=1e-2, atol=1e-4)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert backward(mode.from_tensor(upstream)).shape == leaf.shape


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_make_fx_and_fake_tensors_take_alpha_and_past_weight_as_tensors(reduction, backend):
    logits, target, keywords = Case(6, 33, soft="dense", past="dense", reduction=reduction).arguments()

    def gradient(logits, alpha, past_weight):
        numbers = {"alpha": alpha, "past_weight": past_weight, "backend": backend}
        loss = toast_loss(logits, target, **keywords | numbers)
        return torch.autograd.grad(loss.sum(), logits)[0]

    inputs = logits.requires_grad_(), torch.tensor(0.3), torch.tensor(1.5)
    traced = make_fx(gradient)(*inputs)
    others = logits, torch.tensor(0.6), torch.tensor(0.5)
    torch.testing.assert_close(traced(*others), gradient(*others), rtol=1e-4, atol=1e-6)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(x) for x in inputs]
        assert gradient(*fakes).shape == logits.shape
