"""Any row stride and storage offset, transposed and permuted logits, strided tables: same bits as a contiguous copy."""

from dataclasses import replace

import blended_kl_cases
import pytest
import torch
from blended_kl_cases import DTYPES, Case, name, normal, run, toast_loss
from optional import HealthCheck, assume, given, settings
from optional import strategies as st

from toast_kernels import SoftTargets


def scattered(tensor, offset=1, gap=3):
    """The same rows, at an odd address and with a gap of NaN between them."""
    rows, width = tensor.shape
    store = torch.full((offset + rows * (width + gap),), torch.nan, dtype=tensor.dtype)
    view = store.as_strided((rows, width), (width + gap, 1), offset)
    view.copy_(tensor)
    return view


def outcome(logits, target, keywords, upstream=None):
    """Loss and gradient of a leaf that has the layout of `logits`."""
    leaf = logits.detach().requires_grad_()
    loss = toast_loss(leaf, target, **keywords)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream)
    gradient, leaf.grad = leaf.grad, None
    return loss.detach(), gradient


def assert_same_bits(one, other):
    """Where a row lies decides which thread of a GPU adds up what: there, up to the order of the sums."""
    if blended_kl_cases.kernels_under_test in ("triton", "cuda"):
        torch.testing.assert_close(one[0], other[0])
        torch.testing.assert_close(one[1], other[1])
    else:
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


LAYOUTS = {
    "transposed": lambda z: z.t().contiguous().t(),
    "odd offset": lambda z: scattered(z, offset=1, gap=0),
    "gap between rows": lambda z: scattered(z, offset=0, gap=1),
    "every second column": lambda z: torch.stack([z, z], 2).flatten(1)[:, ::2],
    "every second row": lambda z: torch.stack([z, z], 1).flatten(0, 1)[::2],
    "columns of a wider tensor": lambda z: torch.cat([z, z, z], 1)[:, z.shape[1] : 2 * z.shape[1]],
}


@pytest.mark.parametrize("classes", [5, 130, 2051])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_layouts_of_logits(kernel, dtype, layout, classes):
    logits, target, keywords = Case(6, classes, dtype, past="top-k").arguments()
    view = LAYOUTS[layout](logits)
    assert layout == "odd offset" or not view.is_contiguous()
    assert_same_bits(outcome(view, target, keywords), outcome(logits, target, keywords))


def test_rows_that_are_one_row_expanded(kernel):
    row = normal(1, 130, seed=1).float().requires_grad_()
    target = torch.arange(8)
    loss = toast_loss(row.expand(8, 130), target, reduction="none")
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(row.repeat(8, 1), target, reduction="none"))
    loss.sum().backward()
    torch.testing.assert_close(row.grad.sum(), torch.zeros(()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("memory", ["contiguous", "channels last", "permuted"])
def test_logits_with_more_dimensions(kernel, memory, reduction):
    rows = normal(2 * 3 * 4, 33, seed=2).float()
    logits = rows.reshape(2, 3, 4, 33).permute(0, 3, 1, 2)
    if memory == "contiguous":
        logits = logits.contiguous()
    if memory == "permuted":
        logits = logits.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    labels = torch.randint(0, 33, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    labels[1, 2, 3] = -100
    index = torch.arange(24).reshape(2, 3, 4)
    past = normal(24, 33, seed=3).float()
    keywords = {"past": past, "reduction": reduction}
    loss, gradient = outcome(logits, labels, {**keywords, "past_index": index})
    flat = outcome(rows, labels.reshape(-1), keywords)
    assert loss.shape == (labels.shape if reduction == "none" else ())
    assert_same_bits((loss.reshape(flat[0].shape), gradient.permute(0, 2, 3, 1).reshape(24, 33)), flat)

    nested = past.reshape(2, 3, 4, 33).permute(0, 3, 1, 2)  # past laid out like the logits
    assert_same_bits(outcome(logits, labels, {**keywords, "past": nested}), (loss, gradient))


def test_labels_and_past_index_that_are_views(kernel):
    logits, target, keywords = Case(8, 40, past="dense", reduction="none").arguments()
    expected = outcome(logits, target, keywords)
    for view in (torch.cat([torch.tensor([3]), target])[1:], torch.stack([target, target.roll(1)], 1)[:, 0]):
        assert_same_bits(outcome(logits, view, keywords), expected)
    index = keywords["past_index"]
    keywords["past_index"] = torch.stack([index.roll(1), index], 1)[:, 1]
    assert_same_bits(outcome(logits, target, keywords), expected)
    lam = torch.full((1,), 0.25).expand(8)
    mixed = outcome(logits, (target, target.flip(0), lam), keywords)
    assert_same_bits(mixed, outcome(logits, (target, target.flip(0), 0.25), keywords))


def test_weight_that_is_a_view_or_of_another_dtype(kernel):
    logits, target, keywords = Case(8, 40, weighted=True, label_smoothing=0.1).arguments()
    expected = outcome(logits, target, keywords)
    weight = keywords["weight"]
    for view in (torch.stack([weight, weight], 1)[:, 0], weight.double()):
        assert_same_bits(outcome(logits, target, {**keywords, "weight": view}), expected)


@pytest.mark.parametrize("encoding", ["dense", "bfloat16", "top-k", "logits"])
@pytest.mark.parametrize("classes", [40, 2051])
def test_tables_with_gaps_and_odd_offsets(kernel, classes, encoding):
    soft = encoding if classes < 1000 else None
    logits, target, keywords = Case(6, classes, soft=soft, past=encoding).arguments()
    expected = outcome(logits, target, keywords)
    for table in ("soft_targets", "past"):
        if keywords.get(table) is None:
            continue
        rows = keywords[table]
        indices = rows.indices
        keywords[table] = replace(
            rows,
            values=scattered(rows.values),
            indices=None if indices is None else torch.stack([indices, indices * 0 - 7], 2)[:, :, 0],
            entropy=torch.stack([rows.entropy, rows.entropy + 9], 1)[:, 0],
            filled=torch.stack([rows.filled, ~rows.filled], 1)[:, 0],
        )
    assert_same_bits(outcome(logits, target, keywords), expected)


def test_tables_of_other_precisions_than_the_logits():
    for dtype in DTYPES:
        logits, target, _ = Case(5, 40, dtype).arguments()
        for kept in (torch.float64, torch.float32, torch.bfloat16):
            old = SoftTargets.from_logits(normal(5, 40, seed=4), 3.0, dtype=kept)
            losses = [toast_loss(logits, target, past=old, backend=backend) for backend in ("cpu", "reference")]
            torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
        for kept in DTYPES:
            old = SoftTargets.view_logits(normal(5, 40, seed=4).to(kept), 3.0)
            losses = [toast_loss(logits, target, past=old, backend=backend) for backend in ("cpu", "reference")]
            torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


def test_rows_more_than_2_to_the_31_elements_apart():
    """Offsets are 64-bit. Only the rows themselves are ever touched of these 4.3 GB."""
    try:
        store = torch.empty(2**31 + 10_000, dtype=torch.bfloat16)
    except RuntimeError:
        pytest.skip("no 4.3 GB of address space")
    logits, target, keywords = Case(3, 40, torch.bfloat16, past="logits", reduction="none").arguments()
    target[1], keywords["past_index"] = 2, torch.tensor([0, 2, 1])
    keywords["past"] = SoftTargets.view_logits(keywords["past"].values[:3], 3.0)
    expected = outcome(logits, target, keywords)

    def far_apart(rows, offset):
        view = store.as_strided(rows.shape, (2**30 + 1, 1), offset)
        view.copy_(rows)
        return view

    keywords["past"] = replace(keywords["past"], values=far_apart(keywords["past"].values, 1000))
    assert_same_bits(outcome(far_apart(logits, 0), target, keywords), expected)


@settings(max_examples=16, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 9),
    classes=st.integers(1, 70) | st.sampled_from([2047, 2049]),
    offset=st.integers(0, 17),
    gap=st.integers(0, 17),
    table_offset=st.integers(0, 17),
    dtype=st.sampled_from(DTYPES),
    past=st.sampled_from(["dense", "bfloat16", "logits"]),
)
def test_any_stride_and_offset(kernel, rows, classes, offset, gap, table_offset, dtype, past):
    assume(kernel == "cpu" or dtype != torch.float64)
    logits, target, keywords = Case(rows, classes, dtype, past=past, reduction="none").arguments()
    upstream = torch.rand(rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = run(logits, target, upstream, keywords, kernel)
    keywords["past"] = replace(keywords["past"], values=scattered(keywords["past"].values, table_offset, gap))
    actual = outcome(scattered(logits, offset, gap), target, keywords, upstream.to(expected[0].dtype))
    assert_same_bits(actual, expected)
