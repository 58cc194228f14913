"""SoftTargets: what is stored, and what its rows stand for, against NumPy and SciPy in float64."""

import io

import numpy as np
import pytest
import torch
from optional import given, settings
from optional import strategies as st
from scipy.special import entr, logsumexp, softmax
from torch.utils._python_dispatch import TorchDispatchMode

from toast_kernels import soft_targets
from toast_kernels.soft_targets import SoftTargets


def make_logits(rows=7, classes=13, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).to(dtype)


def of_kind(kind, seed=0):
    logits = make_logits(seed=seed)
    if kind == "logits":
        return SoftTargets.view_logits(logits, 2.0)
    return SoftTargets.from_logits(logits, 2.0, top_k=3 if kind == "top-k" else None)


def true_probs(logits, temperature=1.0):
    return softmax(logits.double().numpy() / temperature, axis=1)


def true_top_k(probs, k):
    """Rows as top-k encodes them: the k largest (lowest class first among equals), the rest spread evenly."""
    encoded = np.empty_like(probs)
    for row, out in zip(probs, encoded, strict=True):
        listed = sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
        others = [c for c in range(len(row)) if c not in listed]
        out[listed] = row[listed]
        out[others] = (1 - row[listed].sum()) / max(len(others), 1)
    return encoded


def same_fields(a, b):
    for name, value in a.state_dict().items():
        other = b.state_dict()[name]
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert same, name


TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-7, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dense_rows_are_the_softmax_and_entropy_is_that_of_the_stored_values(dtype, temperature):
    logits = make_logits(dtype=torch.float64)
    table = SoftTargets.from_logits(logits, temperature, dtype=dtype)

    assert table.encoding == "dense"
    assert table.values.dtype == dtype
    assert table.temperature == temperature
    np.testing.assert_allclose(table.values.double(), true_probs(logits, temperature), rtol=TOLERANCE[dtype], atol=1e-7)
    stored = table.values.double().numpy()  # after rounding: bfloat16 rows have another entropy than the exact ones
    np.testing.assert_allclose(table.entropy.double(), entr(stored).sum(1), rtol=1e-6)


@pytest.mark.parametrize(
    ("source", "dense", "top_k"),
    [
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ],
    ids=str,
)
def test_default_dtypes(source, dense, top_k):
    logits = make_logits(dtype=source)
    wide = torch.float64 if source == torch.float64 else torch.float32
    for k, expected in ((None, dense), (2, top_k)):
        for table in (SoftTargets.from_logits(logits, top_k=k), SoftTargets.from_probs(logits.softmax(1), top_k=k)):
            assert table.values.dtype == expected
            assert table.entropy.dtype == table.dense().dtype == wide
    view = SoftTargets.view_logits(logits, 3.0)
    assert view.values.dtype == source
    assert view.entropy.dtype == view.dense().dtype == wide
    assert view.logsumexp.dtype == torch.float64


@pytest.mark.parametrize("k", [1, 2, 5, 12, 13])
def test_top_k_keeps_the_largest_and_spreads_the_rest(k):
    logits = make_logits(dtype=torch.float64)
    table = SoftTargets.from_logits(logits, 2.0, top_k=k)
    truth = true_top_k(true_probs(logits, 2.0), k)

    assert table.encoding == "top-k"
    assert table.indices.dtype == torch.int32
    assert table.values.shape == table.indices.shape == (7, k)
    assert (table.indices.diff(dim=1) > 0).all()
    np.testing.assert_allclose(table.dense(), truth, rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(table.dense().sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(table.entropy, entr(truth).sum(1), rtol=1e-12)


def test_top_k_gives_equal_probabilities_to_the_lowest_classes():
    probs = torch.tensor([[0.1, 0.2, 0.1, 0.2, 0.2, 0.2], [0.5, 0.0, 0.5, 0.0, 0.0, 0.0], [1 / 6] * 6])
    table = SoftTargets.from_probs(probs, top_k=3)
    assert table.indices.tolist() == [[1, 3, 4], [0, 1, 2], [0, 1, 2]]


def test_top_k_in_bfloat16_spreads_what_the_rounded_values_leave():
    probs = torch.tensor([[0.701, 0.2, 0.05, 0.03, 0.019]])
    table = SoftTargets.from_probs(probs, top_k=2, dtype=torch.bfloat16)
    listed = probs[0, :2].bfloat16().double()
    truth = torch.cat([listed, (1 - listed.sum()).expand(3) / 3])
    assert table.values.dtype == torch.bfloat16
    torch.testing.assert_close(table.dense()[0].double(), truth, rtol=1e-6, atol=0)
    torch.testing.assert_close(table.entropy[0].double(), torch.special.entr(truth).sum(), rtol=1e-6, atol=0)


def test_top_k_sum_that_rounds_above_one_leaves_no_negative_rest():
    probs = torch.tensor([[0.7, 0.3000002, 0.0, 0.0]])
    table = SoftTargets.from_probs(probs, top_k=2)
    assert (table.dense() >= 0).all()
    assert torch.isfinite(table.entropy).all()


@pytest.mark.parametrize("top_k", [None, 2, 4])
def test_minus_infinity_is_probability_zero(top_k):
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf], [-torch.inf, -torch.inf, 5.0, -torch.inf]])
    expected = torch.tensor([[0.26894142, 0.0, 0.73105858, 0.0], [0.0, 0.0, 1.0, 0.0]])
    table = SoftTargets.from_logits(logits, top_k=top_k)
    torch.testing.assert_close(table.dense(), expected)
    torch.testing.assert_close(table.entropy, torch.tensor([0.58220309, 0.0]))
    view = SoftTargets.view_logits(logits, 1.0)
    torch.testing.assert_close(view.dense(), expected)
    torch.testing.assert_close(view.entropy, table.entropy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_view_logits_keeps_the_logits_themselves(dtype):
    storage = make_logits(9, 30, dtype)
    logits = storage[2:, 1:14]  # an offset and a row stride
    view = SoftTargets.view_logits(logits, 3.0)

    assert view.encoding == "logits"
    assert view.values.data_ptr() == logits.data_ptr()
    assert view.filled.all()
    truth = true_probs(logits, 3.0)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(view.logsumexp, logsumexp(logits.double().numpy() / 3, axis=1), rtol=rtol)
    np.testing.assert_allclose(view.entropy, entr(truth).sum(1), rtol=rtol)
    np.testing.assert_allclose(view.dense(), truth, rtol=rtol)


def test_view_logits_marks_a_diverged_row_and_no_other():
    logits = make_logits()
    logits[2, 4] = torch.nan
    assert SoftTargets.view_logits(logits, 3.0).entropy.isnan().nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("top_k", [None, 3])
def test_rows_not_filled_are_zero_whatever_the_source_holds(top_k):
    logits = make_logits()
    filled = torch.tensor([True, False, True, True, False, True, True])
    expected = SoftTargets.from_logits(logits, top_k=top_k).dense() * filled[:, None]
    logits[1, 0] = torch.nan
    table = SoftTargets.from_logits(logits, top_k=top_k, filled=filled)

    assert torch.equal(table.filled, filled)
    assert torch.equal(table.dense(), expected)
    assert (table.entropy[~filled] == 0).all()
    assert (table.values[~filled] == 0).all()


def test_empty_has_the_shape_of_a_table_and_nothing_filled():
    for table in (SoftTargets.empty(4, 6), SoftTargets.empty(4, 6, top_k=2)):
        assert len(table) == 4
        assert not table.filled.any()
        assert torch.equal(table.dense(), torch.zeros(4, 6))
    assert len(SoftTargets.from_logits(torch.empty(0, 6), top_k=2)) == 0
    assert len(SoftTargets.view_logits(torch.empty(0, 6), 2.0)) == 0


def test_soft_targets_are_detached():
    logits = make_logits().requires_grad_()
    for table in (
        SoftTargets.from_logits(logits),
        SoftTargets.from_logits(logits, top_k=2),
        SoftTargets.from_probs(logits.softmax(1)),
        SoftTargets.view_logits(logits, 3.0),
    ):
        tensors = [value for value in table.state_dict().values() if isinstance(value, torch.Tensor)]
        assert not any(tensor.requires_grad for tensor in [*tensors, table.dense()])


@pytest.mark.parametrize("make", [SoftTargets.from_logits, SoftTargets.from_probs, SoftTargets.view_logits])
@pytest.mark.parametrize("top_k", [None, 3])
def test_working_in_chunks_changes_nothing(monkeypatch, make, top_k):
    source = make_logits(50, 20)
    source = source.softmax(1) if make == SoftTargets.from_probs else source
    arguments = {"temperature": 3.0} if make == SoftTargets.view_logits else {"top_k": top_k}
    whole = make(source, **arguments)
    monkeypatch.setattr(soft_targets, "_CHUNK", 7 * 20 + 3)
    same_fields(make(source, **arguments), whole)


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not out._is_view():
            self.numel = max(self.numel, out.numel())
        return out


def test_top_k_of_a_large_table_holds_only_a_chunk_of_it(monkeypatch):
    monkeypatch.setattr(soft_targets, "_CHUNK", 400)
    logits = make_logits(500, 20, torch.bfloat16)
    with LargestTensor() as largest:
        SoftTargets.from_logits(logits, top_k=2)
    assert 400 <= largest.numel <= 1000  # the table itself is 500 x 2; the source 10,000


@pytest.mark.parametrize("top_k", [None, 3])
def test_from_probs_stores_the_rows_as_given(top_k):
    probs = make_logits(dtype=torch.float64).softmax(1)
    table = SoftTargets.from_probs(probs, top_k=top_k)
    assert table.temperature is None
    truth = probs.numpy() if top_k is None else true_top_k(probs.numpy(), top_k)
    np.testing.assert_allclose(table.dense(), truth, rtol=1e-12)
    np.testing.assert_allclose(table.entropy, entr(truth).sum(1), rtol=1e-12)
    SoftTargets.from_probs(probs.bfloat16())  # rows of rounded probabilities do not sum to 1 exactly


@pytest.mark.parametrize("kind", ["dense", "top-k", "logits"])
def test_rows_can_be_taken_and_overwritten(kind):
    table, other = of_kind(kind), of_kind(kind, seed=1)
    expected = table.dense().clone()
    for rows in (torch.tensor([4, 1, 1]), slice(2, 5), torch.arange(7) % 2 == 0):
        same = table[rows]
        assert torch.equal(same.dense(), expected[rows])
        assert torch.equal(same.entropy, table.entropy[rows])

    rows = torch.tensor([5, 0])
    entropy = table.entropy.clone()
    table[rows] = other[torch.tensor([1, 2])]
    expected[rows] = other.dense()[[1, 2]]
    entropy[rows] = other.entropy[[1, 2]]
    assert torch.equal(table.dense(), expected)
    assert torch.equal(table.entropy, entropy)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            SoftTargets.from_logits(make_logits(), 2.0, top_k=3),
            "must have encoding 'dense' like the table, got 'top-k'",
        ),
        (SoftTargets.from_logits(make_logits(), 3.0), "must have temperature 2.0 like the table, got 3.0"),
        (SoftTargets.from_logits(make_logits(classes=4), 2.0), "must have num_classes 13 like the table, got 4"),
        (SoftTargets.from_logits(make_logits(), 2.0, dtype=torch.bfloat16), "must have values of width and dtype"),
    ],
    ids=["encoding", "temperature", "classes", "dtype"],
)
def test_rows_of_another_kind_are_refused(other, message):
    table = SoftTargets.from_logits(make_logits(), 2.0)
    with pytest.raises(ValueError, match=message):
        table[:] = other


@pytest.mark.parametrize("kind", ["dense", "top-k", "logits"])
def test_state_survives_a_file_and_is_a_copy(kind):
    table = of_kind(kind)
    file = io.BytesIO()
    torch.save(table.state_dict(), file)
    file.seek(0)
    loaded = SoftTargets.from_state_dict(torch.load(file, weights_only=True))
    same_fields(loaded, table)

    copy = SoftTargets.from_state_dict(table.state_dict())
    copy.values.zero_()
    assert (table.values != 0).any()
    assert table.to("cpu") is table


def test_works_inside_a_full_graph():
    def loss(logits, table):
        past = SoftTargets.view_logits(logits, 2.0)
        rows = table.values if table.encoding == "dense" else table.dense()
        some = past[torch.tensor([2, 0])]
        return (rows * past.dense()).sum() + some.logsumexp.sum() + past.entropy.sum() + table.entropy.sum()

    logits = make_logits()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for top_k in (None, 3):
        table = SoftTargets.from_logits(logits, top_k=top_k)
        torch.testing.assert_close(compiled(logits, table), loss(logits, table))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape(data):
    rows, classes = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 40))
    k = data.draw(st.integers(1, classes))
    scale = data.draw(st.sampled_from([0.0, 1.0, 30.0]))  # all equal, ordinary, one class near 1
    temperature = data.draw(st.floats(0.1, 10))
    logits = scale * make_logits(rows, classes, torch.float64, seed=rows + 100 * classes)
    truth = true_top_k(true_probs(logits, temperature), k)
    table = SoftTargets.from_logits(logits, temperature, top_k=k)
    np.testing.assert_allclose(table.dense(), truth, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(table.entropy, entr(truth).sum(1), rtol=1e-9, atol=1e-12)
