"""The C++ kernel against the float64 truth, in every encoding, precision and width around its chunks and vectors."""

import pytest
import torch
from any_case import any_case
from blended_kl_cases import DTYPES, ENCODINGS, Case, check, name, run
from optional import given, settings
from optional import strategies as st

# The kernel works through a row in chunks of 2048 classes, a chunk in vectors of 16 (8 in float64). Of a row of up to
# 32,768 classes it keeps the exponentials, of a longer one it works them out twice.
WIDTHS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1000, 2047, 2048, 2049, 4095, 4096, 4097, 5003)


@pytest.mark.parametrize("past", ENCODINGS, ids=lambda e: f"past-{e}")
@pytest.mark.parametrize("soft", ENCODINGS, ids=lambda e: f"soft-{e}")
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_every_pair_of_encodings(dtype, soft, past):
    for classes in (3, 131):
        check(Case(6, classes, dtype, soft, past, weighted=True, reduction="none"))


@pytest.mark.parametrize("classes", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_widths_around_vectors_and_chunks(dtype, classes):
    check(Case(5, classes, dtype, reduction="none"))
    check(Case(5, classes, dtype, past="dense", temperature=2.0))
    check(Case(3, classes, dtype, past="top-k", label_smoothing=0.1))
    check(Case(5, classes, dtype, past="logits", target="mixup", temperature=2.5))
    check(Case(3, classes, dtype, target="probabilities", weighted=True, label_smoothing=0.2))


@pytest.mark.parametrize("soft", ENCODINGS[1:])
@pytest.mark.parametrize("classes", [2047, 2049, pytest.param(4097, marks=pytest.mark.more)])
def test_soft_targets_wider_than_a_chunk(classes, soft):
    check(Case(4, classes, torch.float32, soft, "top-k"))
    if classes < 4000:
        check(Case(4, classes, torch.bfloat16, soft, target="mixup", label_smoothing=0.1, weighted=True))


@pytest.mark.parametrize("past", ENCODINGS)
@pytest.mark.parametrize(("rows", "classes"), [(1, 33_003), (3, 20_001), (7, 6_001), (9, 32_769)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_wide_rows_are_shared_by_chunks_where_they_are_few(dtype, rows, classes, past):
    check(Case(rows, classes, dtype, past=past, reduction="none"))
    check(Case(rows, classes, dtype, past=past, weighted=True, label_smoothing=0.1, temperature=2.5))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("rows", "classes"), [(4001, 3), (300, 129), (20, 4099)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_many_rows(dtype, rows, classes, reduction):
    soft = "dense" if classes < 1000 else None
    check(Case(rows, classes, dtype, soft, "dense", reduction=reduction))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0])
@pytest.mark.parametrize("past", ENCODINGS[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_temperatures(dtype, past, temperature):
    check(Case(6, 133, dtype, "dense", past, temperature=temperature, reduction="none"))
    check(Case(3, 2100, dtype, None, past, temperature=temperature))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("past_weight", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("target", ["labels", "mixup"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_alpha_and_past_weight(dtype, target, past_weight, alpha):
    for soft, past in (("dense", "dense"), ("top-k", "logits")):
        check(Case(9, 37, dtype, soft, past, target, alpha=alpha, past_weight=past_weight, weighted=True))


@pytest.mark.parametrize(("rows", "classes"), [(7, 131), (4, 2051), (2100, 2051)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
def test_half_gradients_are_the_float32_ones_rounded_to_nearest_even(dtype, rows, classes):
    """Bit for bit, subnormal float16 included, and through the stores past the caches of a large gradient."""
    case = Case(rows, classes, dtype, past="dense", reduction="none")
    logits, target, keywords = case.arguments()
    upstream = torch.ones(rows)
    upstream[0] = 1e-3
    half, wide = (run(z, target, upstream, keywords, "cpu") for z in (logits, logits.float()))
    assert torch.equal(half[1], wide[1].to(dtype))
    assert torch.equal(half[0], wide[0])
    tiny = wide[1].abs() < torch.finfo(dtype).smallest_normal
    assert dtype == torch.bfloat16 or (tiny & (half[1] != 0)).any()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    any_case(
        rows=st.integers(0, 12),
        classes=st.sampled_from(WIDTHS[:17]) | st.integers(1, 300),
        dtype=st.sampled_from(DTYPES),
        target=st.sampled_from(["labels", "mixup"]),
    )
)
def test_any_combination(case):
    check(case)
