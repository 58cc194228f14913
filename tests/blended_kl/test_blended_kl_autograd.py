"""Autograd around blended_kl: nothing is written that was not asked for, every upstream gradient is honoured."""

import gc
import weakref

import pytest
import torch
from blended_kl_cases import DTYPES, Case, device_of, in_truth, moved, name, normal, run, toast_loss
from tolerances import assert_as_good_as_naive

from toast_kernels import functional

CASE = Case(6, 131, soft="dense", past="dense")
SMALL = {dtype: Case(6, 131, dtype, "dense", "dense") for dtype in DTYPES}
both_paths = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=name)


def on_device(case, kernel):
    """The arguments where the kernel takes them as they are; toast_loss of blended_kl_cases may hand copies on."""
    logits, target, keywords = case.arguments()
    device = device_of(kernel)
    return moved(logits, device), moved(target, device), {name: moved(x, device) for name, x in keywords.items()}


def gradient_by_reference(logits, target, keywords, upstream=None):
    leaf = logits.detach().clone().requires_grad_()
    loss = toast_loss(leaf, target, backend="reference", **keywords)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream)
    return leaf.grad


@both_paths
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_logits_and_every_other_input_are_bit_identical_after_forward_and_backward(kernel, dtype, reduction):
    """A leaf input must not be overwritten by its gradient."""
    logits, target, keywords = on_device(Case(6, 131, dtype, "dense", "logits", weighted=True), kernel)
    keywords["reduction"] = reduction
    logits.requires_grad_()
    inputs = [logits, target, keywords["weight"], keywords["soft_targets"].values, keywords["past"].values]
    before = [x.detach().clone() for x in inputs]
    versions = [x._version for x in inputs]
    functional.toast_loss(logits, target, backend=kernel, **keywords).sum().backward()
    assert all(torch.equal(x.detach(), copy) for x, copy in zip(inputs, before, strict=True))
    assert [x._version for x in inputs] == versions
    assert logits.grad.data_ptr() != logits.data_ptr()


@both_paths
@pytest.mark.parametrize("upstream", [1.0, 0.375, 0.0])
def test_retain_graph_gives_the_same_gradient_twice_and_leaves_the_first_alone(kernel, dtype, upstream):
    logits, target, keywords = SMALL[dtype].arguments()
    logits.requires_grad_()
    loss = toast_loss(logits, target, **keywords)
    scale = torch.tensor(upstream)
    (first,) = torch.autograd.grad(loss, logits, scale, retain_graph=True)
    copy = first.clone()
    (second,) = torch.autograd.grad(loss, logits, scale, retain_graph=True)
    (third,) = torch.autograd.grad(loss, logits, scale * 2)
    assert torch.equal(first, copy)
    torch.testing.assert_close(second, first)
    torch.testing.assert_close(third, 2 * first)
    assert len({x.data_ptr() for x in (first, second, third)}) == 3
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, logits)


@both_paths
def test_a_second_loss_on_the_same_logits(kernel, dtype):
    logits, target, keywords = SMALL[dtype].arguments()
    other = target.roll(2)
    logits.requires_grad_()
    (toast_loss(logits, target, **keywords) + toast_loss(logits, other, **keywords)).backward()
    expected = sum(gradient_by_reference(logits, y, keywords).double() for y in (target, other))
    torch.testing.assert_close(logits.grad.double(), expected, rtol=2e-2 if dtype != torch.float32 else 1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "before", [torch.tanh, torch.sigmoid, lambda x: x.softmax(1), torch.exp], ids=lambda f: f.__name__
)
def test_upstream_operations_that_saved_the_logits(kernel, before):
    """Their backward reads the logits again, so an in-place gradient would be silently wrong."""
    x, target, keywords = on_device(CASE, kernel)
    gradients = []
    for backend in (kernel, "reference"):
        leaf = x.clone().requires_grad_()
        logits = before(leaf)
        first = functional.toast_loss(logits, target, backend=backend, **keywords)
        (first + functional.toast_loss(logits, target, backend=backend)).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@both_paths
@pytest.mark.parametrize("backwards", [1, 2])
def test_logits_changed_in_place_after_the_loss_never_give_a_wrong_gradient(kernel, dtype, backwards):
    logits, target, keywords = SMALL[dtype].arguments()
    expected = gradient_by_reference(logits, target, keywords)
    leaf = logits.clone().requires_grad_()
    changed = moved(leaf, device_of(kernel)) * 1  # not a CPU tensor, of which the kernel would see a copy
    loss = toast_loss(changed, target, **keywords)
    for _ in range(backwards - 1):
        loss.backward(retain_graph=True)
        leaf.grad = None
    with torch.no_grad():
        changed.zero_()
    if dtype == torch.float16:  # computed from the logits, which autograd knows to have changed
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    else:
        loss.backward()
        torch.testing.assert_close(leaf.grad, expected, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("field", ["target", "weight", "soft values", "soft filled", "past values", "past_index"])
def test_what_backward_reads_again_must_not_have_changed(field):
    logits, target, keywords = Case(6, 131, torch.float16, "dense", "dense", weighted=True).arguments()
    named = {"target": target, "weight": keywords["weight"], "past_index": keywords["past_index"]}
    named |= {f"soft {name}": getattr(keywords["soft_targets"], name) for name in ("values", "filled")}
    keywords["weight"] = keywords["weight"].float()
    named["past values"] = keywords["past"].values
    loss = functional.toast_loss(logits.requires_grad_(), target, **keywords)
    loss.backward(retain_graph=True)
    named[field].add_(0) if field != "soft filled" else named[field].logical_not_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_backward_reads_again_is_freed_after_it():
    logits, target, keywords = SMALL[torch.float16].arguments()
    loss = functional.toast_loss(logits.requires_grad_(), target, **keywords)
    values = weakref.ref(keywords["past"].values)
    del keywords
    assert values() is not None
    loss.backward()
    gc.collect()
    assert values() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_several_upstreams_at_once(dtype, reduction):
    logits, target, keywords = SMALL[dtype].arguments()
    keywords["reduction"] = reduction
    loss = functional.toast_loss(logits.requires_grad_(), target, **keywords)
    upstreams = torch.rand(3, *loss.shape, generator=torch.Generator().manual_seed(0))
    together = torch.autograd.grad(loss, logits, upstreams, is_grads_batched=True, retain_graph=True)[0]
    for upstream, found in zip(upstreams, together, strict=True):
        torch.testing.assert_close(found, torch.autograd.grad(loss, logits, upstream, retain_graph=True)[0])


def test_negated_views_are_read_with_their_sign(kernel):
    logits, target, keywords = on_device(CASE, kernel)
    negated = (-logits)._neg_view()
    found = functional.toast_loss(negated, target, backend=kernel, **keywords)
    assert torch.equal(found, functional.toast_loss(logits, target, backend=kernel, **keywords))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
def test_saved_tensor_hooks_see_what_is_kept(kernel, dtype):
    logits, target, keywords = on_device(SMALL[dtype], kernel)
    expected = run(logits, target, torch.tensor(0.375), keywords, kernel)[1]
    packed = []
    leaf = logits.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x.shape) or x.clone(), lambda x: x):
        loss = functional.toast_loss(leaf, target, backend=kernel, **keywords)
    loss.backward(torch.tensor(0.375, device=loss.device))
    assert leaf.shape in packed
    assert (len(packed) == 1) == (dtype != torch.float16)  # or all that the gradient is computed from
    assert torch.equal(leaf.grad.cpu(), expected.cpu())


@pytest.mark.parametrize("upstream", [0.0, -1.0, 0.375, 1.0, 65536.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_scalar_upstream(kernel, dtype, upstream):
    logits, target, keywords = SMALL[dtype].arguments()
    scale = torch.tensor(upstream, dtype=torch.float64)
    actual, naive = (run(logits, target, scale, keywords, backend)[1] for backend in (kernel, "reference"))
    truth = in_truth(logits, target, scale, keywords)[1]
    assert_as_good_as_naive(actual, naive, truth, scale=abs(upstream))
    assert actual.isfinite().all()


def test_float16_gradients_survive_under_a_grad_scaler(kernel):
    """1 / N and a small probability lie below float16's range until the scale is folded in, before rounding."""
    rows, classes = 64, 400
    logits = normal(rows, classes, seed=1, scale=9.0).to(torch.float16)
    target = torch.randint(0, classes, (rows,), generator=torch.Generator().manual_seed(0))
    truth = in_truth(logits, target, torch.tensor(65536.0), {})[1]
    assert (truth.abs() / 65536 < 2**-25).float().mean() > 0.5  # would be 0 if rounded before scaling
    scaled = run(logits, target, torch.tensor(65536.0), {}, kernel)[1]
    torch.testing.assert_close(scaled.double(), truth, rtol=2**-10, atol=2**-24)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_each_row_gets_its_own_upstream(kernel, dtype):
    case = Case(7, 131, dtype, "dense", "top-k", reduction="none")
    logits, target, keywords = case.arguments()
    upstream = torch.tensor([0.0, 3.0, -1.0, 1.0, 65536.0, 0.375, 1e-3], dtype=torch.float64)
    actual, naive = (run(logits, target, upstream, keywords, backend)[1] for backend in (kernel, "reference"))
    truth = in_truth(logits, target, upstream, keywords)[1]
    assert_as_good_as_naive(actual, naive, truth, scale=4 * upstream.abs()[:, None])


@both_paths
@pytest.mark.parametrize(
    "reduce",
    [
        pytest.param(lambda loss: loss.sum(), id="stride 0"),
        pytest.param(lambda loss: (loss.t() * torch.arange(12.0).reshape(4, 3)).sum(), id="transposed"),
        pytest.param(lambda loss: loss.t().reshape(-1)[::2].sum(), id="sliced"),
        pytest.param(lambda loss: loss[:, 1].sum() - loss[2, 3], id="parts"),
        pytest.param(lambda loss: (loss * torch.arange(4.0)).sum(), id="broadcast"),
        pytest.param(lambda loss: (loss * loss).mean(), id="of itself"),
    ],
)
def test_upstreams_of_any_layout(kernel, reduce, dtype):
    logits = normal(3, 37, 4, seed=2)
    target = torch.randint(0, 37, (3, 4), generator=torch.Generator().manual_seed(1))
    target[1, 2] = -100
    gradients = []
    for backend, wanted in ((kernel, dtype), ("reference", torch.float64)):
        leaf = logits.to(dtype).to(wanted).requires_grad_()
        reduce(toast_loss(leaf, target, reduction="none", backend=backend)).backward()
        gradients.append(leaf.grad.double())
    rtol = {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(*gradients, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=name)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_raises(kernel, dtype, reduction):
    """At once, as autograd.grad and inputs= pass over what raises later and take the gradient for a constant; and the
    graph is still there."""
    logits, target, keywords = SMALL[dtype].arguments()
    keywords["reduction"] = reduction
    leaf = logits.requires_grad_()
    loss, again = (toast_loss(leaf, target, **keywords).sum() for _ in range(2))
    with pytest.raises(RuntimeError, match="create_graph=True is for a second derivative"):
        torch.autograd.grad(loss, leaf, create_graph=True)
    assert torch.equal(*(torch.autograd.grad(x, leaf)[0] for x in (loss, again)))
    with pytest.raises(RuntimeError, match="create_graph=True is for a second derivative"):
        torch.autograd.functional.hessian(lambda x: toast_loss(x, target, **keywords).sum(), leaf)


def test_soft_targets_and_past_are_constants(kernel):
    logits, target, keywords = CASE.arguments()
    old = normal(6, 131, seed=9).float().requires_grad_()
    keywords = {"past": old}
    leaf = logits.requires_grad_()
    for backend in (kernel, "reference"):
        toast_loss(leaf, target, backend=backend, **keywords).backward()
    assert old.grad is None


def test_autocast_bfloat16_logits_with_float32_weight_and_targets(kernel):
    """AMP: the head's output is bfloat16, everything else stays float32."""
    case = Case(6, 131, torch.bfloat16, "dense", "logits", weighted=True)
    logits, target, keywords = case.arguments()
    assert keywords["weight"].dtype == keywords["soft_targets"].values.dtype == torch.float32
    head = torch.nn.Linear(131, 131)
    with torch.no_grad():
        head.weight.copy_(torch.eye(131))
        head.bias.zero_()
    x = logits.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = head(x)
        assert output.dtype == torch.bfloat16
        loss = toast_loss(output, target, **keywords)
    loss.backward()
    outside = run(logits, target, torch.tensor(1.0), keywords, kernel)
    assert torch.equal(loss.detach(), outside[0])
    torch.testing.assert_close(x.grad, outside[1].float())
