"""With nothing added, toast_loss is torch.nn.functional.cross_entropy: value and gradient, every option and layout."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from blended_kl_cases import BACKENDS, DTYPES, name, normal, toast_loss
from tolerances import assert_as_good_as_naive

INF, NAN = float("inf"), float("nan")
LAYOUTS = {"C": (7,), "NC": (9, 7), "NCd": (4, 7, 5), "NCdd": (2, 7, 3, 2), "NC-wide": (3, 2100), "N1": (5, 1)}
REDUCTIONS = ["none", "mean", "sum"]


def label_shape(shape):
    return shape[:0] if len(shape) == 1 else (shape[0], *shape[2:])


def make(layout, dtype, kind, seed=0):
    shape = LAYOUTS[layout]
    logits = normal(*shape, seed=seed).to(dtype)
    classes = shape[min(1, len(shape) - 1)]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, label_shape(shape), generator=generator)
    probabilities = normal(*shape, seed=seed + 1).softmax(min(1, len(shape) - 1)).to(dtype)
    weight = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.1
    return logits, labels if kind == "labels" else probabilities, weight.to(dtype)


def value_and_gradient(function, logits, target, weight, dtype, upstream, options):
    """In precision `dtype`; the gradient comes back in the dtype of the logits given."""
    leaf = logits.detach().clone().requires_grad_()
    if target.is_floating_point():
        target = target.to(dtype)
    weight = None if weight is None else weight.to(dtype)
    loss = function(leaf.to(dtype), target, weight, **options)
    loss.backward(upstream.to(loss.dtype))
    return loss.detach(), leaf.grad


def assert_is_cross_entropy(logits, target, weight, backend, **options):
    wide = torch.promote_types(logits.dtype, torch.float32)
    with torch.no_grad():
        shape = F.cross_entropy(
            logits.double(), target if not target.is_floating_point() else target.double(), **options
        ).shape
    upstream = normal(*shape, seed=5, scale=1.0)

    truth = value_and_gradient(F.cross_entropy, logits.double(), target, weight, torch.float64, upstream, options)
    naive = value_and_gradient(F.cross_entropy, logits, target, weight, wide, upstream, options)
    ours = {**options, "backend": backend}
    actual = value_and_gradient(toast_loss, logits, target, weight, logits.dtype, upstream, ours)
    largest = upstream.abs().max() if upstream.numel() else 0
    assert_as_good_as_naive(actual[0], naive[0], truth[0], what=f"loss, {options}")
    assert_as_good_as_naive(actual[1], naive[1], truth[1], scale=largest, what=f"gradient, {options}")
    assert actual[1].dtype == logits.dtype


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_value_and_gradient(dtype, layout, reduction, backend):
    for kind, weighted, smoothing in product(["labels", "probabilities"], [False, True], [0.0, 0.1, 1.0]):
        logits, target, weight = make(layout, dtype, kind)
        options = {"reduction": reduction, "label_smoothing": smoothing}
        assert_is_cross_entropy(logits, target, weight if weighted else None, backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [-100, -1, 3, 1000])
def test_ignored_labels(ignore_index, reduction, backend):
    for layout, weighted, smoothing in product(["NC", "NCd", "NCdd", "NC-wide"], [False, True], [0.0, 0.1]):
        logits, target, weight = make(layout, torch.float32, "labels")
        target.view(-1)[::2] = ignore_index
        options = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignore_index}
        assert_is_cross_entropy(logits, target, weight if weighted else None, backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layout", ["C", "NC", "NCdd", "NC-wide"])
def test_all_rows_ignored_gives_cross_entropys_loss_and_a_gradient_of_0(layout, reduction, backend):
    for weighted, smoothing in product([False, True], [0.0, 0.1]):
        logits, target, weight = make(layout, torch.float32, "labels")
        target.fill_(-100)
        options = {"reduction": reduction, "label_smoothing": smoothing, "weight": weight if weighted else None}
        logits.requires_grad_()
        loss = toast_loss(logits, target, backend=backend, **options)
        torch.testing.assert_close(loss, F.cross_entropy(logits, target, **options), equal_nan=True)
        if backend == "cpu":
            loss.sum().backward()
            assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 5), (0, 2100), (3, 5, 0), (0, 5, 2)], ids=str)
def test_empty_batch(shape, reduction, backend):
    for kind, smoothing in product(["labels", "probabilities"], [0.0, 0.1]):
        logits = torch.zeros(shape, requires_grad=True)
        target = torch.zeros(label_shape(shape), dtype=torch.int64) if kind == "labels" else torch.zeros(shape)
        options = {"reduction": reduction, "label_smoothing": smoothing}
        loss = toast_loss(logits, target, backend=backend, **options)
        torch.testing.assert_close(loss, F.cross_entropy(logits, target, **options), equal_nan=True)
        loss.sum().backward()
        assert logits.grad.shape == shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_int32_labels_are_int64_labels(backend):
    logits, target, _ = make("NCd", torch.float32, "labels")
    target[0] = -100
    wide = toast_loss(logits, target, reduction="none", backend=backend)
    assert torch.equal(toast_loss(logits, target.int(), reduction="none", backend=backend), wide)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_0_times_inf_is_0_where_cross_entropy_gives_nan(dtype, backend):
    """Probability 0 or class weight 0 on a masked class."""
    logits = torch.tensor([[1.0, -INF, 2.0, 0.0]], dtype=dtype)
    probabilities = torch.tensor([[0.25, 0.0, 0.5, 0.25]], dtype=dtype)
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0], dtype=dtype)
    kept = [0, 2, 3]
    log_p = logits.double()[:, kept].log_softmax(1)
    assert F.cross_entropy(logits, probabilities).isnan()
    loss = toast_loss(logits, probabilities, backend=backend)
    torch.testing.assert_close(loss.double(), -(log_p * probabilities[:, kept]).sum(), rtol=1e-6, atol=0)

    smoothed = toast_loss(logits, torch.tensor([2]), weight, label_smoothing=0.4, reduction="sum", backend=backend)
    expected = -(0.6 * 2 * log_p[0, 1] + 0.1 * (log_p[0] * weight[kept].double()).sum())
    torch.testing.assert_close(smoothed.double(), expected, rtol=1e-6, atol=0)

    unweighted_row = toast_loss(logits, torch.tensor([1]), weight, reduction="none", backend=backend)
    assert unweighted_row.tolist() == [0.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_mass_on_a_masked_class_gives_inf_and_the_formulas_gradient(backend):
    logits = torch.tensor([[1.0, -INF, 2.0], [0.5, 0.0, -INF]], requires_grad=True)
    target = torch.tensor([1, 0])
    loss = toast_loss(logits, target, reduction="none", backend=backend)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target, reduction="none"))
    assert loss[0] == INF
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(1) - F.one_hot(target, 3))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mean_over_weights_of_0_is_nan_and_has_no_gradient(label_smoothing, backend):
    logits, target = normal(3, 4, seed=0).float().requires_grad_(), torch.tensor([0, 0, 1])
    weight = torch.tensor([0.0, 0.0, 1.0, 2.0])
    settings = {"weight": weight, "label_smoothing": label_smoothing}
    assert F.cross_entropy(logits, target, **settings).isnan()
    loss = toast_loss(logits, target, backend=backend, **settings)
    assert loss.isnan()
    loss.backward()
    assert logits.grad.equal(torch.zeros(3, 4))


def test_half_logits_give_a_float32_loss(kernel):
    for dtype in (torch.bfloat16, torch.float16):
        logits, target, _ = make("NC", dtype, "labels")
        assert toast_loss(logits, target).dtype == torch.float32
        exact = F.cross_entropy(logits.float(), target)
        torch.testing.assert_close(toast_loss(logits, target), exact, rtol=1e-6, atol=0)


def test_logits_of_minus_infinity_only_give_nan_as_cross_entropy_does(kernel):
    logits = torch.full((2, 5), -INF)
    logits[1] = 0
    target = torch.tensor([1, 1])
    expected = F.cross_entropy(logits, target, reduction="none")
    assert expected[0].isnan()
    for backend in ("reference", kernel):
        torch.testing.assert_close(
            toast_loss(logits, target, reduction="none", backend=backend), expected, equal_nan=True
        )


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_kernel_named_for_learned_probability_targets_raises(backend):
    logits, target, _ = make("NC", torch.float32, "probabilities")
    with pytest.raises(ValueError, match=f'target requires grad, and backend "{backend}" gives it no gradient'):
        toast_loss(logits, target.requires_grad_(), backend=backend)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_learned_probability_targets_get_their_gradient(reduction):
    logits, target, weight = make("NC", torch.float64, "probabilities")
    gradients = []
    for function in (toast_loss, F.cross_entropy):
        leaf = target.clone().requires_grad_()
        function(logits, leaf, weight, reduction=reduction).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)
