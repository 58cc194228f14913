"""linear_toast_loss against toast_loss of all logits and the float64 truth: options, dtypes, backends, odd sizes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from blended_kl_cases import DTYPES, ENCODINGS, Case, name, normal
from linear_cases import WIDTH, assert_as_good, by_chunks, check, chunk_of, differentiated, head, naive

from toast_kernels import SoftTargets, linear, linear_toast_loss, toast_loss
from toast_kernels.linear_blended_kl import chunks

REDUCTIONS = ("mean", "sum", "none")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name)


@every_dtype
@pytest.mark.parametrize("past", ENCODINGS)
def test_every_dtype_reduction_and_past(dtype, past):
    """37 rows by 8: the last chunk has five. Row 1 is ignored, so no chunk's own mean is right."""
    for reduction in REDUCTIONS:
        check(Case(37, 131, dtype, "top-k", past, reduction=reduction), rows=8)


@every_dtype
@pytest.mark.parametrize("target", ["labels", "mixup", "probabilities"])
def test_weights_and_smoothing(dtype, target):
    soft = None if target == "probabilities" else "dense"
    for reduction in REDUCTIONS:
        check(Case(29, 67, dtype, soft, "top-k", target, True, label_smoothing=0.1, reduction=reduction), rows=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=name)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_each_backend(kernel, dtype, reduction):
    check(Case(11, 67, dtype, "top-k", "logits", reduction=reduction), rows=4, backend=kernel)


@every_dtype
@pytest.mark.parametrize("rows", [1, 3, 20], ids="{} rows".format)
@pytest.mark.parametrize("classes", [131, 5000, 40_001])
def test_a_gradient_written_over_its_logits(monkeypatch, dtype, classes, rows):
    """Bit by bit that in memory of its own; also of rows that are read twice, and rows whose parts threads share."""
    case = Case(20, classes, dtype, past="logits", label_smoothing=0.1)
    over, _ = by_chunks(case, rows)
    for module in (linear, chunks):
        monkeypatch.setattr(module, "gradient_is_written_over_logits", lambda backend: False)
    apart, _ = by_chunks(case, 2 * rows)  # chunks as long: chunk_bytes counts the gradient too
    assert all(torch.equal(a, b) for a, b in zip(over, apart, strict=True))


@every_dtype
def test_the_reference_in_chunks(dtype):
    check(Case(11, 67, dtype, "dense", "logits", weighted=True), rows=4, backend="reference")


@pytest.mark.parametrize(("num_rows", "classes", "width"), [(1, 1, 1), (17, 1, 3), (16, 2, 1), (33, 257, 15)])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 40])
def test_odd_sizes_and_chunks(num_rows, classes, width, rows):
    case = Case(num_rows, classes, past="dense", seed=3)
    tensors = head(case, width)
    _, target, keywords = case.arguments()
    actual, _ = by_chunks(case, rows, tensors=tensors)

    def plain(x, weight, bias):
        return toast_loss(F.linear(x, weight, bias), target, backend="reference", **keywords)

    expected, _ = differentiated(plain, [x.double() for x in tensors], case.upstream())
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_rows(reduction):
    target = torch.empty(0, dtype=torch.int64)
    tensors = torch.empty(0, 3), torch.ones(5, 3), torch.ones(5)

    def loss_of(x, weight, bias):
        return linear_toast_loss(x, weight, target, bias, reduction=reduction)

    (loss, *gradients), _ = differentiated(loss_of, tensors, torch.ones(0 if reduction == "none" else ()))
    torch.testing.assert_close(loss, F.cross_entropy(torch.empty(0, 5), target, reduction=reduction), equal_nan=True)
    assert [x.shape for x in gradients] == [(0, 3), (5, 3), (5,)]
    assert all((x == 0).all() for x in gradients)


@every_dtype
def test_features_of_no_width(dtype):
    target = torch.tensor([0, 2])
    tensors = torch.empty(2, 0, dtype=dtype), torch.empty(3, 0, dtype=dtype), torch.ones(3, dtype=dtype)

    def loss_of(x, weight, bias):
        return linear_toast_loss(x, weight, target, bias)

    (loss, *gradients), _ = differentiated(loss_of, tensors, torch.ones(()))
    torch.testing.assert_close(loss, torch.tensor(3.0).log().to(loss.dtype))
    assert [x.shape for x in gradients] == [(2, 0), (3, 0), (3,)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_to_average(smoothing, weighted):
    """All rows ignored, or all of a class of weight 0: as in toast_loss the loss is NaN and the gradients are 0."""
    target = torch.full((20,), 2 if weighted else -100)
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0]) if weighted else None

    def loss_of(x, w, bias):
        return linear_toast_loss(x, w, target, bias, weight=weight, label_smoothing=smoothing, chunk_bytes=4 * 4 * 8)

    (loss, *gradients), _ = differentiated(loss_of, head(Case(20, 4)), torch.tensor(1.0))
    assert loss.isnan()
    assert all((x == 0).all() for x in gradients)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("swapped", [False, True])
def test_the_weight_of_a_label_without_a_share_does_not_count(swapped, reduction, backend):
    settings = {"weight": torch.tensor([torch.inf, 1.0, 2.0, 0.5]), "reduction": reduction}
    target, other = 1 + torch.arange(20) % 3, torch.zeros(20, dtype=torch.int64)
    pair = (other, target, torch.zeros(20)) if swapped else (target, other, 1.0)

    def chunked(x, w, bias):
        return linear_toast_loss(x, w, pair, bias, chunk_bytes=4 * 4 * 8 * 2, backend=backend, **settings)

    def whole(x, w, bias):
        return F.cross_entropy(F.linear(x, w, bias), target, **settings)

    upstream = torch.ones(20 if reduction == "none" else ())
    actual, expected = (differentiated(f, head(Case(20, 4)), upstream)[0] for f in (chunked, whole))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_a_mean_of_the_past_alone_where_all_weights_are_0():
    case = Case(20, 4, past="dense")
    _, _, keywords = case.arguments()
    keywords |= {"weight": torch.tensor([1.0, 1.0, 0.0, 1.0]), "label_smoothing": 0.1}
    target = torch.full((20,), 2)
    tensors = head(case)

    def chunked(x, weight, bias):
        return linear_toast_loss(x, weight, target, bias, chunk_bytes=chunk_of(8, case), **keywords)

    def whole(x, weight, bias):
        return toast_loss(F.linear(x, weight, bias), target, **keywords)

    (loss, *actual), (_, *expected) = (differentiated(f, tensors, torch.tensor(1.0))[0] for f in (chunked, whole))
    assert loss.isnan()
    assert all(x.abs().sum() > 0 for x in actual)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_batched_features_and_what_is_returned(reduction):
    """[B, T, D], with strides of their own."""
    case = replace(Case(3 * 10, 67, past="top-k"), reduction=reduction)
    x, weight, bias = head(case)
    _, target, keywords = case.arguments()
    flat = linear_toast_loss(x, weight, target, bias, return_stats=True, return_top_k=4, **keywords)
    features = x.view(3, 10, WIDTH).transpose(0, 1)
    rows = {key: keywords[key].view(3, 10).T if key == "past_index" else keywords[key] for key in keywords}
    loss, stats, top = linear_toast_loss(
        features, weight, target.view(3, 10).T, bias, return_stats=True, return_top_k=4, **rows
    )
    torch.testing.assert_close(loss, flat[0].view(3, 10).T if reduction == "none" else flat[0])
    assert top.num_classes == flat[2].num_classes == 67
    for a, b in zip((*stats, *top[:-1]), (*flat[1], *flat[2][:-1]), strict=True):
        torch.testing.assert_close(a, b.view(3, 10, *b.shape[1:]).transpose(0, 1))


def test_one_row_without_a_dimension_of_its_own():
    x, weight, bias = head(Case(1, 67))
    loss, stats = linear_toast_loss(x[0], weight, torch.tensor(5), bias, reduction="none", return_stats=True)
    assert loss.shape == stats.argmax.shape == ()
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(x[0], weight, bias), torch.tensor(5)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shift", [True, 2, 7, 9])
@pytest.mark.parametrize("mixed", [False, True])
def test_shift(shift, reduction, mixed):
    case = replace(Case(3 * 7, 67, target="mixup" if mixed else "labels"), reduction=reduction)
    x, weight, bias = head(case)
    target = case.arguments()[1]
    target = tuple(y.view(3, 7) for y in target) if mixed else target.view(3, 7)
    features = x.view(3, 7, WIDTH)
    kept = max(0, 7 - shift)

    def shifted(x, weight, bias):
        return linear_toast_loss(
            x, weight, target, bias, shift=shift, reduction=reduction, chunk_bytes=chunk_of(8, case), return_stats=True
        )

    def sliced(x, weight, bias):
        logits = F.linear(x[:, :kept], weight, bias).flatten(0, 1)
        y = [y[:, shift:].flatten() for y in (target if mixed else (target,))]
        return toast_loss(logits, tuple(y) if mixed else y[0], reduction=reduction)

    upstream = torch.rand(3, 7) if reduction == "none" else torch.tensor(0.7)
    (loss, *gradients), (stats,) = differentiated(shifted, (features, weight, bias), upstream)
    wanted = upstream[:, :kept].flatten() if reduction == "none" else upstream
    (expected, *theirs), _ = differentiated(sliced, (features, weight, bias), wanted)
    if reduction == "none":
        assert loss.shape == (3, 7)
        assert (loss[:, kept:] == 0).all()
        loss = loss[:, :kept].flatten()
    torch.testing.assert_close(loss, expected, equal_nan=True)
    torch.testing.assert_close(gradients, theirs)
    assert torch.equal(stats.argmax, F.linear(features, weight, bias).argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_stats_and_predictions(dtype):
    case = Case(37, 131, dtype, past="dense")
    x, weight, bias = head(case)
    _, target, keywords = case.arguments()
    _, stats, top = linear_toast_loss(
        x, weight, target, bias, return_stats=True, return_top_k=9, soft_temperature=1.7,
        chunk_bytes=chunk_of(8, case), **keywords,
    )  # fmt: skip
    logits = torch.cat([torch.addmm(bias, rows, weight.T) for rows in x.split(8)])
    expected = toast_loss(logits, target, return_stats=True, **keywords)[1]
    torch.testing.assert_close(stats, expected, rtol=0, atol=1e-6)
    largest = logits.topk(9)
    assert torch.equal(top.logits, largest.values)
    assert torch.equal(logits.gather(1, top.indices), top.logits)
    for temperature, found in ((1.0, top.logsumexp), (3.0, top[3]), (1.7, top[4])):
        truth = (logits.double() / temperature).logsumexp(1)
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)
        listed = (top.logits.double() / temperature - found[:, None]).exp()
        torch.testing.assert_close(listed, (logits.double() / temperature).softmax(1).topk(9).values, rtol=1e-4, atol=0)


def test_past_logits_without_an_index():
    """One row of logits for each row of features."""
    case = Case(21, 67)
    tensors, past = head(case), normal(21, 67, seed=9).float()
    target = case.arguments()[1]

    def chunked(x, weight, bias):
        return linear_toast_loss(x, weight, target, bias, past=past, chunk_bytes=chunk_of(8, case))

    def whole(x, weight, bias):
        return toast_loss(F.linear(x, weight, bias), target, past=past)

    actual, expected = (differentiated(f, tensors, torch.tensor(0.3))[0] for f in (chunked, whole))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    by_rows, _ = differentiated(
        lambda x, weight, bias: linear_toast_loss(
            x.view(3, 7, WIDTH), weight, target.view(3, 7), bias, past=past.view(3, 7, 67)
        ),
        tensors, torch.tensor(0.3),
    )  # fmt: skip
    torch.testing.assert_close(by_rows, expected, rtol=1e-4, atol=1e-6)


def test_a_past_of_which_no_row_is_filled():
    case = Case(21, 67)
    tensors, target = head(case), case.arguments()[1]
    empty = SoftTargets.empty(2, 67, top_k=3)

    def loss_of(past, index):
        return lambda x, w, b: linear_toast_loss(x, w, target, b, past=past, past_index=index)

    for past, index in ((empty, torch.arange(21) % 2), (empty[:0], torch.full((21,), -1))):
        actual, expected = (
            differentiated(loss_of(*given), tensors, torch.tensor(1.0))[0] for given in ((past, index), (None, None))
        )
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("alpha", [torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64)], ids=["32", "64"])
def test_settings_as_tensors(alpha):
    case = Case(21, 67, soft="dense", past="dense")
    _, target, keywords = case.arguments()
    x, weight, bias = head(case)
    expected = linear_toast_loss(x, weight, target, bias, **keywords)
    keywords |= {"alpha": alpha, "past_weight": torch.tensor(1.0)}
    torch.testing.assert_close(linear_toast_loss(x, weight, target, bias, **keywords), expected)


@pytest.mark.parametrize("acc_dtype", [None, torch.bfloat16], ids=name)
def test_1024_chunks_in_bfloat16(acc_dtype):
    """Added up in float32 the gradient of the weight is as good as one product's; in bfloat16 its sums stall."""
    case = Case(1024, 67, torch.bfloat16)
    (_, _, weight, bias), _ = by_chunks(case, rows=1, acc_dtype=acc_dtype)
    (_, _, *plain), (_, _, *truth) = naive(case), naive(case, torch.float64)
    if acc_dtype is None:
        assert_as_good(weight, plain[0], truth[0], torch.bfloat16, what="linear_weight")
        assert_as_good(bias, plain[1], truth[1], torch.bfloat16, what="linear_bias")
    else:
        error = [torch.linalg.vector_norm(x.double() - truth[0]) for x in (weight, plain[0])]
        assert error[0] > 2 * error[1]


def test_chunks_may_begin_anywhere():
    """Features and labels that are slices of larger tensors, the weight transposed."""
    case = Case(21, 67)
    x, weight, bias = head(case)
    target = case.arguments()[1]
    strided = torch.zeros(30, WIDTH + 3)[4:25, 1 : WIDTH + 1].copy_(x)
    labels = torch.zeros(22, dtype=torch.int64)[1:].copy_(target)
    transposed = weight.T.contiguous().T

    def loss_of(labels):
        return lambda x, w, b: linear_toast_loss(x, w, labels, b, chunk_bytes=chunk_of(8, case))

    expected, _ = differentiated(loss_of(target), (x, weight, bias), torch.tensor(0.3))
    leaves = strided.requires_grad_(), transposed.requires_grad_(), bias.requires_grad_()
    loss = loss_of(labels)(*leaves)
    torch.testing.assert_close([loss.detach(), *torch.autograd.grad(loss, leaves, torch.tensor(0.3))], expected)
