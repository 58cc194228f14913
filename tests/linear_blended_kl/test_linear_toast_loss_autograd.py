"""Gradients of linear_toast_loss: only those needed, for every upstream; and the memory and products they take."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from blended_kl_cases import Case, name
from linear_cases import WIDTH, chunk_of, head
from memory_of_torch import allocations, peak_bytes
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from toast_kernels import linear, linear_toast_loss, toast_loss
from toast_kernels.linear_blended_kl import chunks

CASE = Case(21, 131, soft="top-k", past="top-k")
NAMES = "input", "linear_weight", "linear_bias"
both_paths = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=name)


def given(dtype=torch.float32, needed=NAMES, **changes):
    """Leaves of which the named require grad, and the loss of these in chunks of eight rows."""
    case = Case(**{**vars(CASE), "dtype": dtype, **changes})
    _, target, keywords = case.arguments()
    leaves = [x.requires_grad_(which in needed) for which, x in zip(NAMES, head(case), strict=True)]

    def loss_of(x, weight, bias):
        return linear_toast_loss(x, weight, target, bias, chunk_bytes=chunk_of(8, case), **keywords)

    def plain(x, weight, bias):
        return toast_loss(F.linear(x, weight, bias), target, **keywords)

    return leaves, loss_of, plain


def products(function):
    """How many matrix products a call computes."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    return sum(event.name in ("aten::mm", "aten::addmm", "aten::addmm_") for event in profiler.events())


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "needed",
    [NAMES, NAMES[:1], NAMES[1:], NAMES[1:2], NAMES[2:], NAMES[::2], ()],
    ids=lambda needed: "+".join(needed) or "none",
)
def test_what_is_frozen_costs_nothing(needed, reduction):
    leaves, loss_of, plain = given(needed=needed, reduction=reduction)
    expected = dict.fromkeys(NAMES)
    if needed:
        wanted = [x for x in leaves if x.requires_grad]
        expected |= dict(zip(needed, torch.autograd.grad(plain(*leaves).sum(), wanted), strict=True))

    def step():
        loss = loss_of(*leaves).sum()
        assert loss.requires_grad == bool(needed)
        if needed:
            loss.backward()

    in_backward = bool(needed) and reduction == "none"  # then the logits are multiplied out twice
    assert products(step) == 3 * (1 + len(needed) + in_backward)  # 21 rows in chunks of 8
    for which, leaf in zip(NAMES, leaves, strict=True):
        assert (leaf.grad is None) == (which not in needed), which
        if which in needed:
            torch.testing.assert_close(leaf.grad, expected[which], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_a_gradient(context):
    leaves, loss_of, plain = given()
    with context():
        loss = loss_of(*leaves)
        assert not loss.requires_grad
        torch.testing.assert_close(loss, plain(*leaves))
        assert products(lambda: loss_of(*leaves)) == 3


@both_paths
@pytest.mark.parametrize("upstream", [1.0, 0.375, 0.0, -3.0])
def test_upstream_and_retain_graph(dtype, upstream):
    leaves, loss_of, plain = given(dtype)
    scale = torch.tensor(upstream)
    loss = loss_of(*leaves)
    first = torch.autograd.grad(loss, leaves, scale, retain_graph=True)
    copies = [x.clone() for x in first]
    second = torch.autograd.grad(loss, leaves, scale, retain_graph=True)
    third = torch.autograd.grad(loss, leaves, scale * 2)
    expected = torch.autograd.grad(plain(*leaves), leaves, scale)
    precision = dict(rtol=1e-4, atol=1e-5) if dtype == torch.float32 else dict(rtol=0.05, atol=0.02)
    for copy, a, b, c, wanted in zip(copies, first, second, third, expected, strict=True):
        assert torch.equal(a, copy)
        assert torch.equal(a, b)
        torch.testing.assert_close(c, 2 * a)
        torch.testing.assert_close(a, wanted, **precision)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)


@both_paths
def test_upstream_powers_of_2_are_exact(dtype):
    leaves, loss_of, _ = given(dtype)
    one, four = (torch.autograd.grad(loss_of(*leaves), leaves, torch.tensor(u)) for u in (1.0, 4.0))
    for a, b in zip(one, four, strict=True):
        torch.testing.assert_close(
            4 * a, b, rtol=0 if dtype != torch.float16 else 2e-2, atol=1e-4 * (dtype == torch.float16)
        )


@both_paths
def test_gradients_are_accumulated(dtype):
    leaves, loss_of, _ = given(dtype)
    once = torch.autograd.grad(loss_of(*leaves), leaves)
    for _ in range(2):
        loss_of(*leaves).backward()
    for leaf, gradient in zip(leaves, once, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * gradient)


def test_float16_gradients_survive_under_a_grad_scaler():
    leaves, loss_of, plain = given(torch.float16)
    scale = torch.tensor(2.0**-24)
    actual = torch.autograd.grad(loss_of(*leaves) * scale, leaves, torch.tensor(2.0**24))
    expected = torch.autograd.grad(plain(*(x.float() for x in leaves)), leaves)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=2e-3)


@both_paths
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_raises(dtype, reduction):
    leaves, loss_of, _ = given(dtype, reduction=reduction)
    loss = loss_of(*leaves).sum()
    with pytest.raises(RuntimeError, match="create_graph=True is for a second derivative"):
        torch.autograd.grad(loss, leaves, create_graph=True)
    expected = torch.autograd.grad(loss_of(*leaves).sum(), leaves)
    for one, other in zip(torch.autograd.grad(loss, leaves), expected, strict=True):  # nothing was spent
        assert torch.equal(one, other)


def test_batched_upstreams_are_refused():
    leaves, loss_of, _ = given()
    with pytest.raises(NotImplementedError, match="one upstream gradient at a time"):
        torch.autograd.grad(loss_of(*leaves), leaves, torch.ones(3), is_grads_batched=True)


@both_paths
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_inputs_are_as_they_were(dtype, reduction):
    leaves, loss_of, _ = given(dtype, reduction=reduction)
    before, versions = [x.detach().clone() for x in leaves], [x._version for x in leaves]
    loss_of(*leaves).sum().backward()
    assert all(torch.equal(x, copy) for x, copy in zip(leaves, before, strict=True))
    assert [x._version for x in leaves] == versions


@pytest.mark.parametrize("which", NAMES)
def test_what_backward_reads_again_must_not_have_changed(which):
    leaves, loss_of, _ = given(torch.float16)
    changed = [x * 1 for x in leaves]
    loss = loss_of(*changed)
    with torch.no_grad():
        changed[NAMES.index(which)].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@both_paths
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(dtype, reentrant):
    leaves, loss_of, _ = given(dtype)
    expected = torch.autograd.grad(loss_of(*leaves), leaves)
    checkpoint(loss_of, *leaves, use_reentrant=reentrant).backward()
    assert all(torch.equal(x.grad, y) for x, y in zip(leaves, expected, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(reduction):
    """Products are in bfloat16, gradients of float32 leaves in float32, added up without another rounding."""
    leaves, loss_of, plain = given(reduction=reduction)
    halves, half_loss_of, _ = given(torch.bfloat16, reduction=reduction)
    with torch.autocast("cpu", torch.bfloat16):
        loss, theirs = loss_of(*leaves), plain(*leaves)
    with torch.no_grad():
        for half, leaf in zip(halves, leaves, strict=True):
            half.copy_(leaf)
    assert torch.equal(loss, half_loss_of(*halves))
    gradients, expected = (torch.autograd.grad(x.sum(), leaves) for x in (loss, theirs))
    assert [x.dtype for x in gradients] == [torch.float32] * 3
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(b.abs().max()))
    assert not torch.equal(gradients[1], gradients[1].bfloat16().float())


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_memory_is_that_of_the_gradients_and_a_chunk(dtype, reduction):
    """Of 512 x 4001 logits in chunks of 16 nothing is held that is larger than the gradient of the weight."""
    case = Case(512, 4001, dtype, past="top-k", reduction=reduction)
    _, target, keywords = case.arguments()
    leaves = [x.requires_grad_() for x in head(case)]
    chunk = chunk_of(16, case)

    def step():
        loss = linear_toast_loss(leaves[0], leaves[1], target, leaves[2], chunk_bytes=chunk, **keywords)
        loss.sum().backward()
        for leaf in leaves:
            leaf.grad = None

    gradients = sum(x.numel() for x in leaves) * 4  # of the weight in float32
    if dtype == torch.float32:
        most, scratch = chunk + gradients, 0
    else:
        most, scratch = 2 * chunk + 1.5 * gradients, 2**19  # of torch.mm
    assert 0.7 * most <= peak_bytes(step) <= 1.02 * most + scratch + 100_000
    assert max(allocations(step)) <= max(chunk, 4001 * WIDTH * 4, scratch)


def test_memory_where_the_gradient_has_its_own(monkeypatch):
    """As on a GPU: a chunk's logits and one gradient, both within chunk_bytes."""
    for module in (linear, chunks):
        monkeypatch.setattr(module, "gradient_is_written_over_logits", lambda backend: False)
    case = Case(256, 4001)
    target = case.arguments()[1]
    leaves = [x.requires_grad_() for x in head(case)]
    chunk = 2 * chunk_of(16, case)

    def step():
        loss = linear_toast_loss(*leaves[:2], target, chunk_bytes=chunk)
        torch.autograd.grad(loss, leaves[:2])

    gradients = sum(x.numel() for x in leaves[:2]) * 4
    assert 0.9 * (chunk + gradients) <= peak_bytes(step) <= 1.02 * (chunk + gradients) + 20_000


def test_products_of_another_dtype_are_added_in_blocks():
    """With what add_ copies a whole one would take 45 times the memory of the chunk's logits."""
    total = torch.zeros(4001, 240)
    gradient, features = torch.randn(16, 4001).bfloat16(), torch.randn(16, 240).bfloat16()
    for is_first in (True, False):
        peak = peak_bytes(lambda is_first=is_first: chunks.add_product(total, gradient, features, is_first))
        assert peak <= 2 * 16 * 4001 + 2**19  # of torch.mm
    total.fill_(torch.nan)
    for is_first in (True, False):
        chunks.add_product(total, gradient, features, is_first)
    torch.testing.assert_close(total, 2 * (gradient.float().T @ features.float()), rtol=2**-8, atol=1e-5)


def test_forward_alone_holds_a_chunk():
    case = Case(256, 4001)
    target = case.arguments()[1]
    x, weight, bias = head(case)
    peak = peak_bytes(lambda: linear_toast_loss(x, weight, target, bias, chunk_bytes=chunk_of(16, case)))
    assert peak <= 1.05 * chunk_of(16, case) + 100_000


def test_memory_is_freed_with_the_graph():
    leaves, loss_of, _ = given()
    loss = loss_of(*leaves)
    saved = weakref.ref(loss.grad_fn.saved_tensors[1])
    graph = weakref.ref(loss.grad_fn)
    del loss
    gc.collect()
    assert graph() is None
    assert saved() is None
