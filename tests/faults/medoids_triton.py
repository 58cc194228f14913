"""Faults of class_medoids' Triton backend."""

TESTS = "tests/test_medoids_triton.py::"
SCIPY = TESTS + "test_equals_scipy_and_the_cpu_backend"
BOUNDS = TESTS + "test_bounds_of_pair_sums_hold"
MEANS = TESTS + "test_bounds_of_costs_from_means_hold"
DUPLICATES = TESTS + "test_of_equal_rows_one_is_scored"

FAULTS = {
    "toast_kernels/medoids/triton_kernels.py": [
        ("a scan takes infinity for finite", "(tl.abs(value) < INF)", "(value == value)", TESTS + "test_left_out_rows"),
        ("-0 and 0 hash differently", "tl.where(value == 0, 0.0, value)", "value", DUPLICATES),
        ("a piece adds rows of the next class", "inside = (position < end)[:, None] & (column < width)[None, :]\n"
         "            first, second", "inside = (column < width)[None, :]\n            first, second", MEANS),
        ("sums by class leave out a row", "for start in range(tl.load(offsets + c), end, ROWS)",
         "for start in range(tl.load(offsets + c) + 1, end, ROWS)", MEANS),
        ("deviations are from the origin", "f - tl.load(mean + column, column < width, other=0.0)[None, :]", "f",
         MEANS),
        ("row numbers are multiplied in 32 bits", "row = rows * (x.row_stride // ALIGN * ALIGN)",
         "row = rows.to(tl.int32) * (x.row_stride // ALIGN * ALIGN)", TESTS + "test_addresses_past_31_bits"),
    ],
    "toast_kernels/medoids/triton_pairs.py": [
        ("rounding of the rows is not measured", "tl.store(errors + position, (error * (1 + 1e-6) + PADDING)",
         "tl.store(errors + position, (error * 0)", BOUNDS),
        ("pairs of a diagonal tile count twice", "tl.minimum(j - i, 1).to(tl.int32) * TILE", "TILE", BOUNDS),
        ("column sums of a triangle are forgotten", "add_fixed(costs + start_b + local, tl.sum(total, 0), inside_b)",
         "pass", BOUNDS),
        ("columns past the end of a class count", "(local[:, None] < after[None, :]) & inside_b[None, :]",
         "local[:, None] < after[None, :]", BOUNDS),
        ("tiles of a triangle are found wrongly", "i = inner - j * (j + 1) // 2", "i = inner - j * (j - 1) // 2",
         TESTS + "test_a_triangle_of_hundreds_of_tiles"),
        ("cityblock lacks its absolute value", "tl.abs(a[:, None] - b[None, :])", "a[:, None] - b[None, :]", BOUNDS),
        ("rows that hash alike are equal", "same = tl.minimum(same, 1 - tl.max(differs.to(tl.int32), 1))", "pass",
         TESTS + "test_rows_that_only_hash_alike_are_both_scored"),
        ("duplicates are not found", "same = equal.to(tl.int32)", "same = equal.to(tl.int32) * 0", DUPLICATES),
        ("exact euclidean costs lack their square root", "distance = tl.sqrt(distance)", "pass",
         TESTS + "test_without_bounds_exact_costs_alone_decide"),
        ("a zero row is at cosine distance 0.5", "tl.where(zero, 1.0, 0.5 * distance)", "0.5 * distance",
         TESTS + "test_a_zero_row_is_at_cosine_distance_1_from_every_other"),
        ("exact costs stop at a run's first tile", "for start in range(first_position, end, ROWS):",
         "for start in range(first_position, tl.minimum(end, first_position + ROWS), ROWS):",
         TESTS + "test_without_bounds_exact_costs_alone_decide"),
    ],
    "toast_kernels/medoids/triton.py": [
        ("a metric without a fast formula gets that of the means", "if self.metric in FROM_MEANS:", "if True:",
         TESTS + "test_a_metric_without_a_fast_formula_gets_exact_costs"),
        ("the mask is ignored", "used = used & mask", "pass", TESTS + "test_left_out_rows"),
        ("the last of equals wins", 'self.order.double().where(tied, math.inf), "min")',
         '(-self.order.double()).where(tied, math.inf), "min").neg()',
         TESTS + "test_a_tie_of_different_rows_gives_the_first"),
        ("bounds are not believed", "cost - reach <= self._tie(highest)", "cost <= self._tie(highest - highest)",
         TESTS + "test_near_ties_are_decided_in_float64"),
        ("the product's error is left out of the bound", "math.sqrt(2 * (width + 32) * UNIT)", "0.0", BOUNDS),
        ("rows may begin anywhere", "return math.gcd(16, x.stride(0), x.shape[1]) if x.stride(1) == 1 else 1",
         "return 16", TESTS + "test_layouts"),
    ],
}  # fmt: skip
