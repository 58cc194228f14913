"""linear_toast_loss under torch.compile(fullgraph=True), make_fx, fake and meta tensors; opcheck of its op."""

from dataclasses import replace

import pytest
import torch
from blended_kl_cases import Case
from linear_cases import chunk_of, head
from op_calls import Calls
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from toast_kernels import linear_toast_loss

CASES = {
    "plain": Case(21, 33),
    "soft and past": Case(21, 33, soft="top-k", past="top-k", weighted=True, label_smoothing=0.1),
    "none": Case(21, 33, past="logits", reduction="none"),
    "mixup, bfloat16": Case(21, 33, torch.bfloat16, target="mixup", soft="dense", reduction="sum"),
    "probabilities, float16": Case(21, 33, torch.float16, target="probabilities", past="dense"),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
OP = torch.ops.toast_kernels.linear_blended_kl.default

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def step(function, case, tensors):
    _, target, keywords = case.arguments()
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    x, weight, bias = leaves
    loss, stats, top = function(
        x, weight, target, bias, return_stats=True, return_top_k=3, chunk_bytes=chunk_of(8, case), **keywords
    )
    upstream = torch.linspace(-1, 2, loss.numel()).reshape(loss.shape)
    return [loss.detach(), *stats, *top[:-1], *torch.autograd.grad(loss, leaves, upstream.to(loss.dtype))]


@each_case
def test_fullgraph(case):
    compiled = torch.compile(linear_toast_loss, fullgraph=True, backend="aot_eager")
    for rows in (21, 30, 17) if case is CASES["soft and past"] else (21,):
        case = replace(case, rows=rows)
        tensors = head(case)
        for a, b in zip(step(compiled, case, tensors), step(linear_toast_loss, case, tensors), strict=True):
            assert torch.equal(a, b)


each_reduction = pytest.mark.parametrize("reduction", ["mean", "none"])


def of_values_unknown(reduction):
    """A function of tensors, and these."""

    def function(x, weight, bias, target):
        leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
        loss, stats, top = linear_toast_loss(
            *leaves[:2], target, leaves[2], reduction=reduction, return_stats=True, return_top_k=3, chunk_bytes=1056
        )
        return [loss.detach(), *stats, *top[:-1], *torch.autograd.grad(loss.sum(), leaves)]

    return function, (*head(CASES["plain"]), CASES["plain"].arguments()[1])


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@each_reduction
def test_make_fx(reduction, mode):
    function, tensors = of_values_unknown(reduction)
    graph = make_fx(function, tracing_mode=mode)(*(torch.zeros_like(x) for x in tensors))
    for a, b in zip(graph(*tensors), function(*tensors), strict=True):
        assert torch.equal(a, b)


@each_reduction
def test_fake_tensors(reduction):
    function, tensors = of_values_unknown(reduction)
    with FakeTensorMode() as mode:
        found = function(*(mode.from_tensor(x) for x in tensors))
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in function(*tensors)]


@each_reduction
def test_the_device_meta(reduction):
    function, tensors = of_values_unknown(reduction)
    found = function(*(x.to("meta") for x in tensors))
    assert all(x.is_meta for x in found)
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in function(*tensors)]


@each_case
def test_opcheck(case):
    with Calls(OP) as calls:
        step(linear_toast_loss, case, head(case))
    in_forward = case.reduction != "none" and case.dtype != torch.float16
    assert len(calls.seen) == (1 if in_forward else 2)  # the second with the upstream folded in
    for arguments in calls.seen:
        plain = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in arguments)
        torch.library.opcheck(OP, plain)


def test_a_second_derivative_raises_through_the_op_too():
    tensors = [x.requires_grad_() for x in head(CASES["plain"])]
    target = CASES["plain"].arguments()[1]
    with Calls(OP):
        loss = linear_toast_loss(tensors[0], tensors[1], target, tensors[2])
        with pytest.raises(RuntimeError, match="create_graph=True is for a second derivative"):
            torch.autograd.grad(loss, tensors, create_graph=True)


def test_settings_that_change_are_symbols():
    def loss(x, weight, y, soft_temperature):
        return linear_toast_loss(x, weight, y, soft_temperature=soft_temperature)

    compiled = torch.compile(loss, dynamic=True, fullgraph=True, backend="eager")
    weight = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for n in (5, 9):
        x, y = weight[:n].detach() + 1, torch.arange(n)
        torch.testing.assert_close(compiled(x, weight, y, 1.0 + n), loss(x, weight, y, 1.0 + n))
