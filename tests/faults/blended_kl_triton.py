"""Faults of blended_kl's Triton backend."""

TESTS = "tests/test_blended_kl_triton.py::"
ROWS = "tests/test_blended_kl_rows.py::"
EXTREMES = "tests/test_blended_kl_extremes.py::"
# Single cases, seconds each in the interpreter; where an id would hold a space, all of the test.
DENSE = TESTS + "test_every_pair_of_encodings[rows-float32-soft-dense-past-dense]"
TOP_K = TESTS + "test_every_pair_of_encodings[rows-float32-soft-top-k-past-top-k]"
BLOCKS = TESTS + "test_every_pair_of_encodings[blocks-float32-soft-dense-past-dense]"
WIDTHS = TESTS + "test_widths_around_tiles"
MASKED = TESTS + "test_top_k_mass_on_masked_classes"
MANY = TESTS + "test_more_rows_than_one_program_or_group_adds_up[mean]"
KEPT = TESTS + "test_a_launch_is_kept_for_problems_of_its_layout"
OUT_OF_RANGE = ROWS + "test_on_a_gpu_an_index_out_of_range_is_nan_in_its_row_alone[triton-5]"

FAULTS = {
    "toast_kernels/blended_kl/triton_parts.py": [
        ("ignored rows count", "kept = active & (y != ignore_index)", "kept = active", DENSE),
        (
            "labels beyond the last class are taken",
            "bad = kept & ((y < 0) | (y >= C))",
            "bad = kept & (y < 0)",
            OUT_OF_RANGE,
        ),
        ("past rows beyond the last are taken", "(r < -1) | (r >= past_rows)", "r < -1", OUT_OF_RANGE),
        ("both labels of a pair get the first's share", "first if FIRST else 1.0 - first", "first", DENSE),
        (
            "T = 3 takes the square",
            "for _ in tl.static_range(POWER - 1)",
            "for _ in tl.static_range(POWER - 2)",
            TESTS + "test_temperatures[rows-dense-3.0]",
        ),
        (
            "old logits lose the lower part of their logsumexp",
            "exp2(((z - high) - low)",
            "exp2((z - high)",
            EXTREMES + "test_logits_far_from_0[triton-logits-1000.0]",
        ),
        (
            "a listed class gets its share unscaled",
            "tl.where(found, scale * value, tail)",
            "tl.where(found, value, tail)",
            TOP_K,
        ),
        (
            "the tail is spread over all classes",
            "tl.maximum(1.0 - listed, 0.0) / tl.maximum(C - table.width, 1)",
            "tl.maximum(1.0 - listed, 0.0) / C",
            TOP_K,
        ),
        (
            "a tail on a masked class is not seen",
            "(tail != 0) & (masked > listed_masked)",
            "(tail != 0) & (tail < 0)",
            MASKED,
        ),
        (
            "mass listed on a masked class is not seen",
            "infinite & (value != 0)",
            "infinite & (value < 0)",
            MASKED + "[rows-soft_targets-listed]",
        ),
        (
            "a class without a soft target is blended",
            "a = tl.where(tl.load(soft_filled + y, mask=kept, other=0) != 0, alpha, 0.0)",
            "a = tl.where(kept, alpha, 0.0)",
            WIDTHS + "[rows-float32-3]",
        ),
        (
            "smoothing takes no class weights",
            "class_mass = (class_mass + masses.smooth) * w",
            "class_mass = class_mass * w + masses.smooth",
            WIDTHS + "[rows-float32-3]",
        ),
        (
            "0 * -inf is NaN",
            "mass * tl.where(mass != 0, d, 0.0)",
            "mass * d",
            EXTREMES + "test_no_weight_on_a_masked_class_is_no_mass[triton]",
        ),
        (
            "ignored rows keep a gradient",
            "return tl.where(used, g, 0.0)",
            "return g",
            ROWS + "test_a_nan_logit_poisons_its_row_only[triton-None-first-3-float32]",
        ),
    ],
    "toast_kernels/blended_kl/triton_kernels.py": [
        (
            "the cross-entropy is of a rounded logsumexp",
            "share_a * (log_p + (shift - z_a))",
            "share_a * (logsumexp - z_a)",
            EXTREMES + "test_logits_far_from_0[triton-None-5000.0]",
        ),
        (
            "the padding of a row in one tile is not cut off",
            "at = tl.arange(0, BLOCK)[None, :]\n        mask = active if EXACT else active & (at < C)",
            "at = tl.arange(0, BLOCK)[None, :]\n        mask = active & (at < BLOCK)",
            WIDTHS + "[row-float32-255]",
        ),
        (
            "the padding of the last block is not cut off",
            "            mask = active if EXACT else active & (at < C)\n            z =",
            "            mask = active & (at < C + BLOCK)\n            z =",
            WIDTHS + "[blocks-float32-63]",
        ),
        (
            "gradients go to the row before",
            "gradient_row = outputs.gradient + row * C",
            "gradient_row = outputs.gradient + tl.where(row > 0, row - 1, N - 1) * C",
            DENSE,
        ),
        (
            "the origin of the dots moves",
            "origin = tl.where(origin == -INF, new_top, origin)",
            "origin = new_top",
            BLOCKS,
        ),
        (
            "sums at T are not brought to the new maximum",
            "sum_e = sum_e * old_e + add_e",
            "sum_e = sum_e + add_e",
            BLOCKS,
        ),
        (
            "the past term is divided by the sum of weights",
            "past_term_scale *= tl.where(past_count == 0, 0.0, tl.div_rn(1.0, past_count))",
            "past_term_scale *= tl.where(total_weight == 0, 0.0, tl.div_rn(1.0, total_weight))",
            DENSE,
        ),
        (
            "the first class of a block is the argmax",
            "best = tl.where(tile_top > top,",
            "best = tl.where(tile_top < top,",
            BLOCKS,
        ),
        ("a group forgets its last program", "tl.minimum(programs - group * GROUP, GROUP)", "GROUP", MANY),
        (
            "only the first group is added up",
            "for start in range(0, groups, GROUP)",
            "for start in range(0, 1, GROUP)",
            MANY,
        ),
        (
            "counters are not set to 0",
            "tl.store(finished + i, i * 0, mask=i < counters)",
            "pass",
            ROWS + "test_every_output_is_written_for_every_row[triton-mean-narrow]",
        ),
        (
            "the gradient is not scaled",
            "if factor != 1:",
            "if factor == 0:",
            "tests/test_blended_kl_autograd.py::test_scalar_upstream[triton-float32-0.375]",
        ),
        (
            "sparse classes lack the label's mass",
            "sparse_mass += tl.where(sparse == y_a, hard_a, 0.0)",
            "sparse_mass += tl.where(sparse == y_b, hard_a, 0.0)",
            DENSE,
        ),
    ],
    "toast_kernels/blended_kl/triton.py": [
        (
            "every row is taken for aligned",
            "ALIGN=math.gcd(16, num_classes, *strides)",
            "ALIGN=16",
            WIDTHS + "[rows-float32-255]",
        ),
        (
            "T = 2.5 is taken for 2",
            "int(temperature) if temperature in (1, 2, 3, 4) else 0",
            "int(temperature)",
            TESTS + "test_temperatures[rows-dense-2.5]",
        ),
        (
            "a kept launch has everything at the workspace's start",
            "[start + offset for offset in self.offsets]",
            "[start for offset in self.offsets]",
            KEPT + "[dense-mean-False]",
        ),
        (
            "a kept launch is given the past for the soft targets",
            "*labels, *soft, *alpha, *past, problem.past_index",
            "*labels, *past, *alpha, *soft, problem.past_index",
            KEPT + "[dense-none-False]",
        ),
    ],
}
