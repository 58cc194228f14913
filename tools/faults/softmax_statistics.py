"""Faults of the kernels of softmax_statistics, in C++ and in Triton."""

CPP = "ctest softmax_statistics.generic"
OP = "tests/softmax_statistics/test_softmax_statistics.py::"
SCIPY = OP + "test_equals_scipy"
PEAKED = OP + "test_a_peaked_row_has_its_small_entropy"
AROUND = OP + "test_nothing_is_read_into_a_row_from_around_it"
INFINITY = OP + "test_minus_infinity_has_no_share_and_bad_rows_are_marked"
FURTHER = OP + "test_further_calls_of_one_layout_read_their_own_logits_and_temperature"

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
            INFINITY,
        ),
        (
            "only the last chunk's maximum counts",
            "max = std::max(max, chunk_max(in_buffer(z), n));",
            "max = chunk_max(in_buffer(z), n);",
            CPP,
        ),
        (
            "the maximum is not divided by T",
            "double(max) / p.temperature + log_sum",
            "double(max) + log_sum",
            SCIPY,
        ),
        ("a row of -inf alone is NaN", "infinity() ? Real(0) : max;", "infinity() ? max : max;", INFINITY),
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
            PEAKED,
        ),
    ],
    "toast_kernels/softmax_statistics/triton_kernels.py": [
        ("the largest logits swallow the small", "tl.where(whole < 1.5, 1.0 + others, whole", "(whole", PEAKED),
        (
            "a lane's largest is lost where another lane has a larger one",
            "rest = tl.where(distance < 0, whole, rest)",
            "rest = rest * 1.0",
            PEAKED,
        ),
        (
            "log(1 + x) loses x below float64's rounding",
            "whole < 1.00001",
            "whole < 1.0",
            OP + "test_entropies_that_even_a_float64_loses_beside_1",
        ),
        (
            "two largest count as one",
            "whole < 1.5",
            "whole < 3.0",
            OP + "test_several_largest_classes_share_the_probability",
        ),
        ("products keep their distance to an old maximum", "(product + distance * rest)", "product", SCIPY),
        ("the second vector is the first once more", "k = j + LANES * WIDTH", "k = j", SCIPY),
        ("what lies before the whole vectors is skipped", "lane < lead,", "lane < 0,", AROUND),
        ("the first logit behind a row counts", "(edge < C)", "(edge <= C)", AROUND),
        ("a lane of nothing but -inf is NaN", "tl.where(new == -INF, 0.0, new)", "new", INFINITY),
        ("in Triton 0 times -inf is NaN", "tl.maximum(d, -FAR) * e", "d * e", INFINITY),
        (
            "rows begin at 32-bit offsets",
            "tl.program_id(0).to(tl.int64)",
            "tl.program_id(0)",
            OP + "test_logits_beyond_2_to_the_31_elements",
        ),
        ("in Triton the maximum is not divided by T", "highest.to(tl.float64) / temperature", "highest", SCIPY),
    ],
    "toast_kernels/softmax_statistics/triton.py": [
        ("a further call has the first one's temperature", "scale, temperature)\n", "scale, 1.0)\n", FURTHER),
        ("a launch is kept for another number of rows", "layout = (rows, classes", "layout = (classes", FURTHER),
        (
            "logits that begin within a vector are taken from its begin",
            "stride, shift, logsumexp",
            "stride, 0, logsumexp",
            AROUND,
        ),
        ("a further call begins within a vector", "logits.data_ptr() - shift * size", "logits.data_ptr()", AROUND),
        ("a kept launch serves every dtype", "shift, logits.dtype, ", "shift, ", SCIPY),
    ],
    "toast_kernels/triton_launch.py": [
        ("launches are kept for ever", "if len(launches) >= MOST_LAUNCHES:", "if False:", FURTHER),
    ],
}
