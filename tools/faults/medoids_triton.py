"""Faults of class_medoids' Triton backend."""

TESTS = "tests/medoids/test_medoids_triton.py::"
SCIPY = TESTS + "test_equals_scipy_and_the_cpu_backend[torch.float32-euclidean]"
MEMORY = "tests/medoids/test_medoids_triton_memory.py::"
DECIDE = "tests/medoids/test_medoids_triton_decide.py::"
DUPLICATES = DECIDE + "test_of_equal_rows_one_is_scored[euclidean]"
ALONE = DECIDE + "test_without_bounds_exact_costs_alone_decide"
ZERO_ROW = DECIDE + "test_a_zero_row_is_at_cosine_distance_1_from_every_other"
BOUNDS = "tests/medoids/test_medoids_triton_bounds.py::"
PAIRS = BOUNDS + "test_bounds_of_pair_sums_hold[gaussian-euclidean]"
FAR = BOUNDS + "test_bounds_of_classes_far_from_each_other[1-euclidean]"
PANELS = BOUNDS + "test_bounds_of_classes_far_from_each_other[2-euclidean]"
ALL_PRODUCTS = BOUNDS + "test_the_errors_of_all_products_are_in_the_bound"
ROUNDING = BOUNDS + "test_what_rounding_took_off_is_measured"
PRODUCTS = BOUNDS + "test_squared_distances_from_products_err_by_less_than_kappa"
CLOUDS = BOUNDS + "test_bounds_of_pair_sums_hold"
TERM = BOUNDS + "test_each_term_alone_is_in_the_bound"
MEANS = BOUNDS + "test_bounds_of_costs_from_means_hold[gaussian-sqeuclidean]"

FAULTS = {
    "toast_kernels/medoids/triton_kernels.py": [
        ("a scan takes infinity for finite", "whole = tl.minimum(whole, tl.min((tl.abs(value) < INF)",
         "whole = tl.minimum(whole, tl.min((value == value)", TESTS + "test_left_out_rows[jeffreys]"),
        ("the mask is ignored", "used &= tl.load(mask + row * mask_stride, row < rows, other=0) != 0", "pass",
         TESTS + "test_left_out_rows[euclidean]"),
        ("labels of rows that are not finite are looked at", "for start in range(0, x.width * any_wrong, COLUMNS):",
         "for start in range(0, 0, COLUMNS):",
         TESTS + "test_the_label_of_a_row_that_is_not_finite_is_not_looked_at[euclidean]"),
        ("a class begins a row late", "(tl.load(keys + middle, open, other=0).to(tl.int32) < c)",
         "(tl.load(keys + middle, open, other=0).to(tl.int32) <= c)", SCIPY),
        ("a class without tiles has one", "at < span, other=0) <= number)", "at < span, other=0) < number)",
         TESTS + "test_the_class_of_a_tile"),
        ("row numbers are multiplied in 32 bits", "row = rows * (x.row_stride // ALIGN * ALIGN)",
         "row = rows.to(tl.int32) * (x.row_stride // ALIGN * ALIGN)", TESTS + "test_addresses_past_31_bits[euclidean]"),
    ],
    "toast_kernels/medoids/triton_pack.py": [
        ("a sample misses its class", "row = tl.load(x.order + begin + k * size // count, k < count, other=0)",
         "row = tl.load(x.order + k * size // count, k < count, other=0)", FAR),
        ("rounding of the rows is not measured", "moved = (moved + 1.2e-7 * length) * 1.001",
         "moved = 0 * moved", ROUNDING + "[gaussian-euclidean]"),
        ("rounding in float32 is not measured", "1.2e-7 * length", "0 * length",
         ROUNDING + "[gaussian-cityblock]"),
        ("subnormal float16 numbers are not in the bound", "tl.sqrt(padded * 1.0) * (2 * SMALLEST_HALF)", "0",
         ROUNDING + "[subnormal-in-float16-euclidean]"),
        ("subnormal float32 numbers are not in the bound", "moved = error + padded * 2.0**-31", "moved = error",
         ROUNDING + "[subnormal-cityblock]"),
        ("values that are cut off count as they are then", "z - y.to(z.dtype)",
         "tl.minimum(tl.maximum(z, -LIMIT), LIMIT) - y.to(z.dtype)", CLOUDS + "[mild-outlier-euclidean]"),
        ("squares that overflow in exact costs are bounded", "(radius > -RADIUS) & (radius < RADIUS)",
         "radius > -RADIUS", DECIDE + "test_extreme_magnitudes[600-euclidean]"),
        ("squares that underflow in exact costs are bounded", "(radius > -RADIUS) & (radius < RADIUS)",
         "radius < RADIUS", DECIDE + "test_extreme_magnitudes[-600-euclidean]"),
        ("rows that are not finite are packed as others", "tl.store(x.alive + position, finite.to(tl.int8), used)",
         "tl.store(x.alive + position, used.to(tl.int8), used)", TESTS + "test_left_out_rows[euclidean]"),
        ("a panel ends a row early", "return c, tl.maximum(tl.minimum(end, second + panel), second)",
         "return c, tl.maximum(tl.minimum(end, second + panel - 1), second)", PANELS),
        ("pairs of a class between two panels are forgotten",
         "end = tl.where(itself | (c < classes), end, second)", "end = tl.where(itself, end, second)", PANELS),
        ("small classes share a centre", "return begin // 3 if SPARSE else c", "return begin // 6 if SPARSE else c",
         BOUNDS + "test_bounds_of_many_small_classes[euclidean]"),
    ],
    "toast_kernels/medoids/triton_pairs.py": [
        ("pairs of a diagonal tile count twice", "after = tl.minimum(start_b - start_a, 1).to(tl.int32) * TILE",
         "after = TILE", PAIRS),
        ("column sums of a triangle are forgotten", "add_fixed(out + start_b + local, tl.sum(value, 0), units, inside)",
         "pass", PAIRS),
        ("columns past the end of a class count", "inside = start_b + local < end_b", "inside = start_b + local >= 0",
         FAR),
        ("rows that are not finite have pairs", "index_a = tl.where(square_a < 0, 2 * TILE, local)",
         "index_a = local", BOUNDS + "test_rows_that_are_not_finite_have_no_pairs[euclidean]"),
        ("a panel begins where its first class does", "begin = tl.maximum(tl.load(x.offsets + c), first)",
         "begin = tl.load(x.offsets + c)", PANELS),
        ("tiles of a triangle are found wrongly", "i = inner - j * (j + 1) // 2", "i = inner - j * (j - 1) // 2",
         TESTS + "test_a_triangle_of_a_hundred_tiles"),
        ("cityblock lacks its absolute value", "tl.abs(tl.load(a + k)[:, None] - tl.load(b + k)[None, :])",
         "tl.load(a + k)[:, None] - tl.load(b + k)[None, :]", PAIRS.replace("euclidean", "cityblock")),
        ("close pairs widen every bound", "close = most * most * CLOSE > near", "close = most < 0",
         BOUNDS + "test_one_pair_of_equal_rows_does_not_widen_the_bounds_of_others"),
        ("a tile takes the least length of its columns", "tl.max(square_b, 0)", "tl.min(square_b, 0)", ALL_PRODUCTS),
        ("squared distances may be 0", "length * length + FLOOR", "length * length",
         CLOUDS + "[one-row-many-times-euclidean]"),
        ("a row's own rounding counts once", "size * tl.load(errors", "tl.load(errors", TERM + "[rounded-rows]"),
        ("rounding of the other rows is forgotten", "common = tl.sum(lost, 0)", "common = 0 * tl.sum(lost, 0)",
         TERM + "[rounded-rows]"),
        ("rounding of the sums is forgotten", "relative * value", "0 * value", TERM + "[sums]"),
        ("truncation is forgotten", " + 2 * (end - begin + 64) / units", "", TERM + "[truncation]"),
        ("errors of close pairs are forgotten in the sums", "off += tl.load(sums + count + at",
         "off += 0 * tl.load(sums + count + at", TERM + "[close-pairs]"),
        ("errors of close pairs are forgotten", "value = inverse * tl.where(errors, near, square)",
         "value = inverse * tl.where(errors, 0 * near, square)", ALL_PRODUCTS),
        ("errors of pairs that are not close are forgotten", "tl.load(worst + c).to(tl.float64) * size",
         "tl.load(worst + c).to(tl.float64) * 0", ALL_PRODUCTS),
    ],
    "toast_kernels/medoids/triton_means.py": [
        (
            "norms beyond the last row are read",
            "            first, second = load_norms(x, tl.minimum(position, end - 1), METRIC)\n            dot",
            "            first, second = load_norms(x, position, METRIC)\n            dot",
            "tests/medoids/test_medoids_triton_addresses.py::test_kernels_touch_only_their_arguments",
        ),
        ("a piece adds rows of the next class",
         "return c, begin, tl.minimum(tl.load(x.offsets + c + 1), begin + PIECE)",
         "return c, begin, begin + PIECE", MEANS),
        ("pieces with a row that is not finite are not added up again", "end = tl.where(dead != 0, end, begin)",
         "end = begin", BOUNDS + "test_rows_that_are_not_finite_have_no_part_in_means[sqeuclidean]"),
        ("means leave out a piece", "for start in range(tl.load(piece_offsets + c), end, ROWS):",
         "for start in range(tl.load(piece_offsets + c) + 1, end, ROWS):", MEANS),
        ("deviations are from the origin", "f - tl.load(mean + column, column < width, other=0.0)[None, :]", "f",
         MEANS),
        ("rounding of the means is not in the bound", "(f * g + f * mean_g + g * mean_f)", "f * g",
         BOUNDS + "test_rounding_of_the_means_is_in_the_bound"),
        ("the mean counts zero rows", "counted &= tl.load(x.norms + 2 * position + 1, inside, other=0.0) > 0", "pass",
         ZERO_ROW),
    ],
    "toast_kernels/medoids/triton_decide.py": [
        ("-0 and 0 hash differently", "tl.where(value == 0, 0.0, value)", "value", DUPLICATES),
        ("rows that hash alike are equal", "same = tl.minimum(same, 1 - tl.max(tl.max(differs.to(tl.int32), 1), 0))",
         "pass", DECIDE + "test_rows_that_only_hash_alike_are_both_scored"),
        ("duplicates are not found", "same = (found < item).to(tl.int32)", "same = (found < 0).to(tl.int32)",
         DUPLICATES),
        ("exact euclidean costs lack their square root", "distance = tl.sqrt(distance)", "pass", ALONE),
        ("a zero row is at cosine distance 0.5", "tl.where(zero, 1.0, 0.5 * distance)", "0.5 * distance",
         ZERO_ROW),
        ("exact costs stop at a run's first tile",
         "for start in range(begin, end, ROWS):\n            position = start",
         "for start in range(begin, tl.minimum(end, begin + ROWS), ROWS):\n            position = start", ALONE),
        ("the last of equals wins", "found = tl.minimum(found, tl.min(tl.where((k < count) & (cost <= highest), k,",
         "found = tl.minimum(found, tl.min(tl.where((k < count) & (cost <= highest), count - 1 - k,",
         DECIDE + "test_a_tie_of_different_rows_gives_the_first[euclidean]"),
        ("bounds are not believed", "other=INF) + rounding * tl.abs(value)",
         "other=INF) * 0", DECIDE + "test_near_ties_are_decided_in_float64[euclidean]"),
    ],
    "toast_kernels/medoids/triton.py": [
        ("a metric without a fast formula gets that of the means", "if self.metric in FROM_MEANS:", "if True:",
         DECIDE + "test_a_metric_without_a_fast_formula_gets_exact_costs"),
        ("centres of small classes hold anything", "centres = torch.zeros(", "centres = torch.empty(",
         TESTS + "test_uninitialised_memory_is_never_read[euclidean]"),
        ("a chunk's rounding is forgotten", "+ 0.6 * width / chunk ", "", PRODUCTS),
        ("rounding of the lengths is forgotten", "+ depth + 4", "+ 4", PRODUCTS),
        ("how many rows are left is waited for", "slots = max(SLOTS, self.rows)",
         "slots = max(SLOTS, int(self.counter))", MEMORY + "test_nothing_is_waited_for[1-euclidean]"),
        ("rounding inside a chunk is forgotten", "2 * (chunk + 16) + ", "", PRODUCTS),
        ("rows may begin anywhere", "return math.gcd(16, x.stride(0), x.shape[1]) if x.stride(1) == 1 else 1",
         "return 16", TESTS + "test_layouts[euclidean]"),
    ],
}  # fmt: skip
