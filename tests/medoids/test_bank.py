"""MedoidBank against SciPy: brute-force medoids in float64 of the pooled values, softened."""

import numpy as np
import pytest
import torch
from medoid_cases import METRICS, scipy_medoids
from scipy.special import softmax

from toast_kernels.bank import MedoidBank

CLASSES = 5


def make_rows(rows=60, dtype=torch.float32, seed=0, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(classes, (rows,), generator=generator)


def brute_force_medoids(logits, labels, metric="euclidean", num_classes=CLASSES):
    return scipy_medoids(logits, labels, num_classes, metric).tolist()


def filled_bank(logits, labels, batch=7, **settings):
    bank = MedoidBank(CLASSES, **settings)
    for rows, target in zip(logits.split(batch), labels.split(batch), strict=True):
        bank.update(rows, target)
    return bank


@pytest.mark.parametrize("metric", METRICS)
def test_soft_targets_are_the_softened_medoids(metric):
    logits, labels = make_rows()
    bank = filled_bank(logits, labels, metric=metric, temperature=2.0, pool_dtype=torch.float32, dtype=torch.float32)
    table = bank.compute()

    expected = brute_force_medoids(logits, labels, metric)
    assert bank.medoids.dtype == torch.int64
    assert bank.medoids.tolist() == expected
    assert table.filled.all()
    assert table.temperature == 2.0
    np.testing.assert_allclose(table.dense(), softmax(logits[expected].numpy() / 2, axis=1), rtol=1e-5)


def test_the_pool_is_float16_unless_told_otherwise():
    logits, labels = make_rows()
    bank = filled_bank(logits, labels, dtype=torch.float32)
    table = bank.compute()
    pooled = logits.half()
    expected = brute_force_medoids(pooled, labels)
    assert bank.medoids.tolist() == expected
    np.testing.assert_allclose(table.dense(), softmax(pooled[expected].double().numpy(), axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        (torch.float32, {}, torch.bfloat16),
        (torch.bfloat16, {}, torch.bfloat16),
        (torch.float64, {}, torch.bfloat16),
        (torch.float64, {"top_k": 2}, torch.float32),
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


LOGITS, LABELS = make_rows(8)
BAD_CALLS = {
    "classes": (lambda: MedoidBank(0), "num_classes must be an int >= 1, got 0"),
    "min_share": (lambda: MedoidBank(5, min_share=0.5), r"min_share must be a number in \(0.5, 1\], got 0.5"),
    "share text": (lambda: MedoidBank(5, min_share="a"), r"min_share must be a number in \(0.5, 1\], got 'a'"),
    "T text": (lambda: MedoidBank(5, temperature="1"), r"temperature must be a number in \(0, inf\), got '1'"),
    "ignored": (lambda: MedoidBank(5, ignore_index=2.5), "ignore_index must be an int, got 2.5"),
    "pool_dtype": (lambda: MedoidBank(5, pool_dtype=torch.int8), "pool_dtype must be one of torch.float64, .*, got"),
    "float8": (lambda: MedoidBank(5, pool_dtype=torch.float8_e4m3fn), "pool_dtype must be one of torch.float64"),
    "dtype": (lambda: MedoidBank(5, dtype=torch.float16), "dtype must be one of torch.bfloat16"),
    "max_rows": (lambda: MedoidBank(5, max_rows_per_class=0), "max_rows_per_class must be an int >= 1 or None, got 0"),
    "both": (lambda: MedoidBank(5, max_rows_per_class=2, pool_rows=3), r"num_classes \* max_rows_per_class already"),
    "save_pool": (lambda: MedoidBank(5, save_pool=True), "save_pool needs pool_rows or max_rows_per_class"),
    "backend": (lambda: MedoidBank(5, backend="gpu"), "backend must be one of 'auto', .*, got 'gpu'"),
    "pool_rows": (lambda: MedoidBank(5, pool_rows=0), "pool_rows must be an int >= 1 or None, got 0"),
    "temperature": (lambda: MedoidBank(5, temperature=float("nan")), r"temperature must be a number in \(0, inf\)"),
    "top_k": (lambda: MedoidBank(5, top_k=6), r"top_k must be an int in \[1, 5\]"),
    "C": (lambda: MedoidBank(4).update(LOGITS, LABELS), r"logits must have shape .* with C = 4, got \[8, 5\]"),
    "int": (lambda: MedoidBank(5).update(LOGITS.int(), LABELS), "logits must be a floating-point tensor, got"),
    "1-d": (lambda: MedoidBank(5).update(LOGITS[0], LABELS[0]), r"logits must have shape .*, got \[5\]"),
    "rows": (
        lambda: MedoidBank(5).update(LOGITS, LABELS[1:]),
        r"target must have shape \[8\] \(from logits\), got \[7",
    ),
    "other classes": (
        lambda: MedoidBank(5).update(LOGITS[:4], torch.eye(7)[:4]),
        r"target of class probabilities must have shape \[4, 5\] \(from logits\), got \[4, 7\]",
    ),
    "no target": (lambda: MedoidBank(5).update(LOGITS, None), "target must be a tensor or a triple .*, got NoneType"),
    "pair": (
        lambda: MedoidBank(5).update(LOGITS, (LABELS, LABELS)),
        "target must be a tensor or a .*, got tuple",
    ),
    "float labels": (
        lambda: MedoidBank(5).update(LOGITS, LABELS.float()),
        r"target of class probabilities must have shape \[8, 5\] \(from logits\), got \[8\]",
    ),
    "triple of shares": (
        lambda: MedoidBank(5).update(LOGITS, (LABELS, LABELS.float(), 0.5)),
        r"target\[1\] must hold int64, int32 or uint8 labels, got a torch.float32 tensor",
    ),
    "triple of rows": (
        lambda: MedoidBank(5).update(LOGITS, (LABELS, LABELS[1:], 0.5)),
        r"target\[1\] must have shape \[8\] \(from logits\), got \[7\]",
    ),
    "lam": (
        lambda: MedoidBank(5).update(LOGITS, (LABELS, LABELS, None)),
        r"target\[2\] \(lam\) must be a number in \[0, 1\], got None",
    ),
    "lam of bools": (
        lambda: MedoidBank(5).update(LOGITS, (LABELS, LABELS, torch.tensor(True))),
        r"target\[2\] \(lam\) must be a number or a real tensor, got a torch.bool tensor",
    ),
    "labels of 16 bits": (lambda: MedoidBank(5).update(LOGITS, LABELS.short()), "target must hold int64, int32 or"),
    "no int64": (
        lambda: MedoidBank(5, ignore_index=2**63),
        "ignore_index must fit into int64, got 9223372036854775808",
    ),
    "lam rows": (
        lambda: MedoidBank(5).update(LOGITS, (LABELS, LABELS, torch.ones(7))),
        r"target\[2\] \(lam\) must be a number or have shape \[8\], got \[7\]",
    ),
    "label": (lambda: MedoidBank(5).update(LOGITS, LABELS + 5), r"target must be in \[0, 5\) or ignore_index = -100"),
    "negative": (lambda: MedoidBank(5).update(LOGITS, LABELS - 9), r"target must be in \[0, 5\)"),
    "correct_only": (
        lambda: MedoidBank(5, correct_only=True).update(LOGITS, LABELS + 5),
        r"target must be in \[0, 5\) or ignore_index = -100",
    ),
    "seed": (lambda: MedoidBank(5, seed=1.5), "seed must be an int, got 1.5"),
    "metric": (lambda: MedoidBank(5, metric="hamming"), "metric must be one of 'euclidean', .*, got 'hamming'"),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_arguments_are_named(call, message):
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        call()
