"""MedoidBank against SciPy: brute-force medoids in float64 of the pooled values, softened."""

import io

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import softmax

from toast_kernels.bank import MedoidBank

CLASSES = 5


def make_rows(rows=60, dtype=torch.float32, seed=0, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(classes, (rows,), generator=generator)


def brute_force_medoids(logits, labels, metric="euclidean", num_classes=CLASSES):
    values, labels, medoids = logits.double().numpy(), labels.numpy(), []
    for c in range(num_classes):
        rows = np.flatnonzero(labels == c)
        costs = cdist(values[rows], values[rows], metric).sum(1) if len(rows) else []
        medoids.append(int(rows[np.argmin(costs)]) if len(rows) else -1)
    return medoids


def filled_bank(logits, labels, batch=7, **settings):
    bank = MedoidBank(CLASSES, **settings)
    for rows, target in zip(logits.split(batch), labels.split(batch), strict=True):
        bank.update(rows, target)
    return bank


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine", "cityblock"])
def test_soft_targets_are_the_softened_medoids(metric):
    logits, labels = make_rows()
    bank = filled_bank(logits, labels, metric=metric, temperature=2.0, pool_dtype=torch.float32)
    table = bank.compute()

    expected = brute_force_medoids(logits, labels, metric)
    assert bank.medoids.dtype == torch.int64
    assert bank.medoids.tolist() == expected
    assert table.filled.all()
    assert table.temperature == 2.0
    np.testing.assert_allclose(table.dense(), softmax(logits[expected].numpy() / 2, axis=1), rtol=1e-5)


def test_the_pool_is_float16_unless_told_otherwise():
    logits, labels = make_rows()
    bank = filled_bank(logits, labels)
    table = bank.compute()
    pooled = logits.half()
    expected = brute_force_medoids(pooled, labels)
    assert bank.medoids.tolist() == expected
    np.testing.assert_allclose(table.dense(), softmax(pooled[expected].double().numpy(), axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        (torch.float32, {}, torch.float32),
        (torch.bfloat16, {}, torch.bfloat16),
        (torch.float64, {}, torch.float64),
        (torch.bfloat16, {"top_k": 2}, torch.float32),
        (torch.bfloat16, {"dtype": torch.float32}, torch.float32),
    ],
    ids=["float32", "bfloat16", "float64", "top-k", "given"],
)
def test_dtype_of_the_table(source, settings, expected):
    bank = filled_bank(*make_rows(dtype=source), **settings)
    table = bank.compute()
    assert table.values.dtype == expected
    assert table.encoding == ("top-k" if "top_k" in settings else "dense")


def test_a_class_without_a_row_is_not_filled():
    logits, labels = make_rows()
    labels[labels == 3] = -100
    bank = filled_bank(logits, labels)
    table = bank.compute()
    assert bank.medoids.tolist() == brute_force_medoids(logits.half(), labels)
    assert table.filled.tolist() == [True, True, True, False, True]
    assert bank.medoids[3] == -1


def test_rows_that_are_not_finite_are_left_out_but_counted():
    logits, labels = make_rows()
    clean = brute_force_medoids(logits.half(), labels)
    diverged = torch.full((3, CLASSES), torch.nan)
    diverged[1:] = torch.inf
    diverged[2] = 1e5  # beyond float16
    bank = filled_bank(torch.cat([diverged, logits]), torch.cat([torch.arange(3), labels]))
    table = bank.compute()
    assert bank.medoids.tolist() == [3 + m for m in clean]
    assert torch.isfinite(table.dense()).all()


def test_correct_only_pools_the_rows_that_the_model_got_right():
    logits, labels = make_rows()
    bank = filled_bank(logits, labels, correct_only=True)
    bank.compute()
    right = torch.where(logits.argmax(1) == labels, labels, -100)
    expected = brute_force_medoids(logits.half(), right)
    assert expected != brute_force_medoids(logits.half(), labels)
    assert bank.medoids.tolist() == expected


@pytest.mark.parametrize("form", ["triple", "probabilities"])
@pytest.mark.parametrize("min_share", [0.6, 0.9, 1.0])
def test_mixed_rows_count_for_the_class_that_has_almost_all_of_them(form, min_share):
    logits, y_a = make_rows()
    y_b = y_a.roll(1)
    lam = torch.tensor([1.0, 0.95, 0.7, 0.5, 0.3, 0.02, 0.0], dtype=torch.float64)[torch.arange(60) % 7]
    expected = [
        int(a) if a == b or share >= min_share else int(b) if 1 - share >= min_share else -100
        for a, b, share in zip(y_a, y_b, lam, strict=True)
    ]
    if form == "triple":
        target = (y_a, y_b, lam)
    else:
        target = torch.zeros(60, CLASSES, dtype=torch.float64)
        target[torch.arange(60), y_a] += lam
        target[torch.arange(60), y_b] += 1 - lam
    bank = MedoidBank(CLASSES, min_share=min_share)
    bank.update(logits, target)
    bank.compute()
    assert bank.medoids.tolist() == brute_force_medoids(logits.half(), torch.tensor(expected))


def test_a_triple_with_a_number_for_lam():
    logits, labels = make_rows()
    for lam, expected in ((1.0, labels), (0.0, labels.roll(1))):
        bank = MedoidBank(CLASSES)
        bank.update(logits, (labels, labels.roll(1), lam))
        bank.compute()
        assert bank.medoids.tolist() == brute_force_medoids(logits.half(), expected)


def test_int32_labels():
    logits, labels = make_rows()
    bank = filled_bank(logits, labels.int(), correct_only=True)
    bank.compute()
    right = torch.where(logits.argmax(1) == labels, labels, -100)
    assert bank.medoids.tolist() == brute_force_medoids(logits.half(), right)


def test_dense_prediction_pools_every_position():
    logits, labels = make_rows(2 * 3 * 4)
    bank = MedoidBank(CLASSES)
    bank.update(logits.reshape(2, 3, 4, CLASSES).movedim(-1, 1), labels.reshape(2, 3, 4))
    bank.compute()
    assert bank.num_rows == 24
    assert bank.medoids.tolist() == brute_force_medoids(logits.half(), labels)


def test_the_pool_is_a_copy_without_a_graph():
    logits, labels = make_rows()
    expected = brute_force_medoids(logits.half(), labels)
    leaf = logits.clone().requires_grad_()
    output = leaf * 1
    bank = MedoidBank(CLASSES, dtype=torch.float32, pool_dtype=torch.float32)
    bank.update(output, labels)
    with torch.no_grad():
        output.zero_()
    table = bank.compute()
    assert bank.medoids.tolist() == expected
    assert not table.values.requires_grad
    torch.testing.assert_close(table.dense(), logits[expected].softmax(1))


def test_reset_empties_the_pool_and_keeps_its_memory():
    bank = filled_bank(*make_rows(seed=1))
    memory = bank._logits.data_ptr()
    bank.reset()
    assert bank.num_rows == 0
    with pytest.raises(RuntimeError, match=r"the pool is empty: compute\(\) needs an update"):
        bank.compute()
    logits, labels = make_rows(40)
    bank.update(logits, labels)
    bank.compute()
    assert bank.medoids.tolist() == brute_force_medoids(logits.half(), labels)
    assert bank._logits.data_ptr() == memory


def test_growing_copies_a_linear_number_of_rows():
    bank = MedoidBank(2)
    copied, before = 0, 0
    for step in range(2000):
        memory = bank._logits.data_ptr()
        bank.update(torch.full((1, 2), float(step)), torch.tensor([step % 2]))
        if bank._logits.data_ptr() != memory:
            copied += before
        before = bank.num_rows
    assert copied < 4 * 2000
    assert bank._logits[:2000, 0].tolist() == list(range(2000))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_with_pool_rows_the_pool_stays_where_it_is(dtype):
    logits, labels = make_rows(dtype=dtype)
    bank = MedoidBank(CLASSES, pool_rows=60)
    places = set()
    for _ in range(2):
        bank.reset()
        for rows, target in zip(logits.split(7), labels.split(7), strict=True):
            bank.update(rows, target)
            places.add((bank._logits.data_ptr(), bank._labels.data_ptr(), bank._count.data_ptr()))
        assert bank.num_rows == 60
        bank.compute()
        assert bank.medoids.tolist() == brute_force_medoids(logits.half(), labels)
    assert len(places) == 1
    assert bank._logits.shape == (60, CLASSES)


def test_a_full_pool_is_an_error_on_the_cpu():
    logits, labels = make_rows(8)
    bank = MedoidBank(CLASSES, pool_rows=10)
    bank.update(logits, labels)
    with pytest.raises(RuntimeError, match="pool_rows = 10 rows fit into the pool, not 8 and 8 more"):
        bank.update(logits + 1, labels)
    assert bank.num_rows == 8
    bank.update(logits[:2], labels[:2])
    bank.compute()
    bank.reset()
    bank.update(logits, labels)
    assert bank.num_rows == 8


def test_a_pool_that_overflowed_on_a_gpu_says_so_at_compute():
    """There the rows are counted on, and not written."""
    logits, labels = make_rows(8)
    bank = filled_bank(logits, labels, pool_rows=10)
    bank._count += 8
    message = "pool_rows = 10 rows fit into the pool, and 16 came"
    resumed = MedoidBank(CLASSES, pool_rows=10)
    resumed.load_state_dict(bank.state_dict())
    for part in (bank, resumed):
        with pytest.raises(RuntimeError, match=message):
            part.compute()


@pytest.mark.parametrize(("before", "after"), [(None, 100), (100, None), (100, 70)], ids=str)
def test_state_goes_from_pools_to_pools_of_another_size(before, after):
    logits, labels = make_rows()
    bank, resumed = MedoidBank(CLASSES, pool_rows=before), MedoidBank(CLASSES, pool_rows=after)
    bank.update(logits[:31], labels[:31])
    resumed.load_state_dict(bank.state_dict())
    assert resumed.num_rows == 31
    for part in (bank, resumed):
        part.update(logits[31:], labels[31:])
        part.compute()
    assert bank.medoids.tolist() == resumed.medoids.tolist() == brute_force_medoids(logits.half(), labels)
    with pytest.raises(ValueError, match="the state's pool must have at most pool_rows = 59 rows, got 60"):
        MedoidBank(CLASSES, pool_rows=59).load_state_dict(bank.state_dict())


def test_state_survives_a_file_in_the_middle_of_an_epoch():
    logits, labels = make_rows()
    bank = filled_bank(*make_rows(5000))
    bank.reset()
    for rows, target in zip(logits[:35].split(7), labels[:35].split(7), strict=True):
        bank.update(rows, target)
    bank.compute()
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    assert file.tell() < 35 * (2 * CLASSES + 8) + 4000  # the rows in use, not the buffer behind them
    file.seek(0)
    resumed = MedoidBank(CLASSES)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(resumed.medoids, bank.medoids)
    for part in (bank, resumed):
        part.update(logits[35:].bfloat16(), labels[35:])
    one, two = bank.compute(), resumed.compute()
    assert torch.equal(bank.medoids, resumed.medoids)
    assert torch.equal(one.values, two.values)
    assert one.values.dtype == two.values.dtype == torch.float32  # the first logits decide


def test_state_is_a_copy_both_ways():
    logits, labels = make_rows()
    bank = filled_bank(logits, labels)
    expected = bank.compute().values.clone()
    state = bank.state_dict()
    for _ in range(2):
        bank.reset()
        bank.update(torch.zeros(60, CLASSES), labels)  # over the rows that the state was taken from, or loaded from
        bank.load_state_dict(state)
        assert torch.equal(bank.compute().values, expected)


def test_state_of_another_number_of_classes_is_refused():
    bank = filled_bank(*make_rows())
    with pytest.raises(ValueError, match="the state's pool must have C = 4 classes, got 5"):
        MedoidBank(4).load_state_dict(bank.state_dict())


LOGITS, LABELS = make_rows(8)
BAD_CALLS = {
    "classes": (lambda: MedoidBank(0), "num_classes must be an int >= 1, got 0"),
    "min_share": (lambda: MedoidBank(5, min_share=0.5), r"min_share must be in \(0.5, 1\], got 0.5"),
    "pool_dtype": (lambda: MedoidBank(5, pool_dtype=torch.int8), "pool_dtype must be a floating-point dtype"),
    "pool_rows": (lambda: MedoidBank(5, pool_rows=0), "pool_rows must be None or an int >= 1, got 0"),
    "temperature": (lambda: MedoidBank(5, temperature=float("nan")), "temperature must be a finite number > 0"),
    "top_k": (lambda: MedoidBank(5, top_k=6), r"top_k must be an int in \[1, 5\]"),
    "C": (lambda: MedoidBank(4).update(LOGITS, LABELS), r"logits must have shape .* with C = 4, got \[8, 5\]"),
    "int": (lambda: MedoidBank(5).update(LOGITS.int(), LABELS), "logits must be a floating-point tensor, got"),
    "1-d": (lambda: MedoidBank(5).update(LOGITS[0], LABELS[0]), r"logits must have shape .*, got \[5\]"),
    "rows": (
        lambda: MedoidBank(5).update(LOGITS, LABELS[1:]),
        r"target must have shape \[8\] \(from logits\), got \[7",
    ),
    "label": (lambda: MedoidBank(5).update(LOGITS, LABELS + 5), r"target must be in \[0, 5\) or ignore_index = -100"),
    "negative": (lambda: MedoidBank(5).update(LOGITS, LABELS - 9), r"target must be in \[0, 5\)"),
    "metric": (lambda: filled_bank(LOGITS, LABELS, metric="hamming").compute(), "metric"),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_arguments_are_named(call, message):
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        call()
