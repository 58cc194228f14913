"""Faults of the C++ kernel of softmax_statistics."""

CPP = "ctest softmax_statistics.generic"
OP = "tests/test_softmax_statistics.py::"
SCIPY = OP + "test_equals_scipy"

FAULTS = {
    "csrc/cpu/softmax_statistics.cpp": [
        (
            "the lanes beyond a row's end count as logits of 0",
            "step(load_first(z + j, rest, -std::numeric_limits<Real>::infinity()));",
            "step(load_first(z + j, rest, Real(0)));",
            SCIPY,
        ),
        (
            "the row's last lanes are read whole",
            "step(load_first(z + j, rest, -std::numeric_limits<Real>::infinity()));",
            "step(V::load(z + j));",
            CPP,
        ),
        (
            "0 times -inf is NaN",
            "products.add(fma_nonzero(e, d, zero));",
            "products.add(e * d);",
            OP + "test_minus_infinity_has_no_share_and_bad_rows_are_marked",
        ),
        (
            "only the last chunk's maximum counts",
            "max = std::max(max, chunk_max(z, n));",
            "max = chunk_max(z, n);",
            CPP,
        ),
        (
            "the maximum is not divided by T",
            "double(max) / p.temperature + log_sum",
            "double(max) + log_sum",
            SCIPY,
        ),
        ("rows are taken for contiguous", "i * p.stride + k * kChunk", "i * p.classes + k * kChunk", CPP),
        (
            "the maximum's digits are lost in float",
            "p.logsumexp[i] = double(max) / p.temperature + log_sum;",
            "p.logsumexp[i] = float(double(max) / p.temperature + log_sum);",
            CPP,
        ),
    ],
    "csrc/cpu/simd.h": [
        (
            "sums of an entropy are kept in float",
            "lane[i] += double(x[i]);",
            "lane[i] = float(lane[i] + double(x[i]));",
            OP + "test_a_peaked_row_has_its_small_entropy",
        ),
    ],
}
