"""Faults of blended_kl's Triton backend."""

TESTS = "tests/blended_kl/test_blended_kl_triton.py::"
LAUNCHES = "tests/blended_kl/test_blended_kl_triton_launch.py::"
ROWS = "tests/blended_kl/test_blended_kl_rows.py::"
EXTREMES = "tests/blended_kl/test_blended_kl_extremes.py::"
# Single cases, seconds each in the interpreter; where an id would hold a space, all of the test.
DENSE = TESTS + "test_every_pair_of_encodings[rows-float32-soft-dense-past-dense]"
TOP_K = TESTS + "test_every_pair_of_encodings[row-float32-soft-top-k-past-top-k]"
BLOCKS = TESTS + "test_every_pair_of_encodings[blocks-float32-soft-dense-past-dense]"
WIDTHS = TESTS + "test_widths_around_tiles"
MASKED_TOP_K = "tests/blended_kl/test_blended_kl_masked_top_k.py::"
ROWS_WRITTEN_OUT = MASKED_TOP_K + "test_loss_and_gradient_are_those_of_the_rows_written_out[triton-float32-140-3]"
LISTED_MASKED = MASKED_TOP_K + "test_listed_mass_on_a_masked_class[triton-6]"
MASKED = TESTS + "test_top_k_mass_on_masked_classes"
MANY = LAUNCHES + "test_more_rows_than_one_program_or_group_adds_up[mean]"
KEPT = LAUNCHES + "test_a_launch_is_kept_for_problems_of_its_layout"
OUT_OF_RANGE = ROWS + "test_on_a_gpu_an_index_out_of_range_is_nan_in_its_row_alone[triton-5]"

LISTS = TESTS + "test_lists_longer_than_a_block"
ANYWHERE = TESTS + "test_tables_whose_rows_begin_anywhere[bfloat16-2051-same-logits-labels]"
USERS = TESTS + "test_the_configurations_that_users_get"
FAR = EXTREMES + "test_logits_far_from_0"
NOT_FILLED = TESTS + "test_rows_that_are_not_filled_may_hold_anything"
VERY_FAR = TESTS + "test_logits_very_far_from_0[row-1.0]"

FAULTS = {
    "toast_kernels/blended_kl/triton_parts.py": [
        ("ignored rows count", "kept = active & (y != ignore_index)", "kept = active", DENSE),
        (
            "labels beyond the last class are taken",
            "bad = kept & (y.to(tl.uint64) >= C)",
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
            "the rounding of old logits' logsumexp is not made up for",
            "return high, scale * tl.exp2(-low * (LOG2E / table.temperature))",
            "return high, scale",
            FAR + "[triton-logits-1000.0]",
        ),
        (
            "the rounding of logits very far from 0 takes exponentials out of range",
            "tl.abs(top * factor) >= FAR",
            "tl.abs(top * factor) < 0",
            VERY_FAR,
        ),
        (
            "a class without a soft target is blended",
            "a = tl.where(tl.load(inputs.soft.filled + y, mask=kept, other=0) != 0, alpha, 0.0)",
            "a = tl.where(kept, alpha, 0.0)",
            WIDTHS + "[rows-float32-3]",
        ),
        (
            "a soft target that is not filled is read",
            "has_soft, soft = a * share_by_weight != 0, a * mass",
            "has_soft, soft = kept, a * mass",
            NOT_FILLED,
        ),
        (
            "a past that is not filled is read",
            "return r, has_past & (tl.load(past_filled + r, mask=has_past, other=0) != 0), bad",
            "return r, has_past, bad",
            NOT_FILLED,
        ),
        (
            "smoothing takes no class weights",
            "mass = (mass + wide(target.smooth, at)) * weight",
            "mass = mass * weight + wide(target.smooth, at)",
            WIDTHS + "[rows-float32-3]",
        ),
        (
            "the past term is divided by the sum of weights",
            "of_past = scale * tl.where(count == 0, 0.0, 1.0 / count)",
            "of_past = scale * tl.where(weight == 0, 0.0, 1.0 / weight)",
            DENSE,
        ),
    ],
    "toast_kernels/blended_kl/triton_lists.py": [
        (
            "the tail is spread over all classes",
            "rest / tl.maximum(sharing, 1)",
            "rest / C",
            TOP_K,
        ),
        (
            "the tail is spread over masked classes too",
            "(masked - listed_masked.to(tl.int32))",
            "0 * masked",
            ROWS_WRITTEN_OUT,
        ),
        (
            "listed masked classes count twice",
            "(masked - listed_masked.to(tl.int32))",
            "masked",
            LISTED_MASKED,
        ),
        (
            "the entropy is that of the rest spread over all classes",
            "rest * tl.log(more), 0.0)",
            "0.0 * more, 0.0)",
            ROWS_WRITTEN_OUT,
        ),
        (
            "mass listed on a masked class is not seen",
            "tl.where(value != 0, on_masked, 0.0)",
            "tl.where(value < 0, on_masked, 0.0)",
            MASKED + "[row-soft_targets-listed]",
        ),
        (
            "what another list has at a class is unscaled",
            "tl.where(found, scale * value - tail, 0.0)",
            "tl.where(found, value - tail, 0.0)",
            TOP_K,
        ),
        (
            "only the first block of a list is read",
            "    for start in range(0, table.width, LIST_BLOCK):\n        at, value, mask = list_block",
            "    for start in range(0, LIST_BLOCK, LIST_BLOCK):\n        at, value, mask = list_block",
            LISTS + "[row-150]",
        ),
    ],
    "toast_kernels/blended_kl/triton_sparse.py": [
        (
            "tails reach the gradient at masked classes",
            "C, PAST, POWER, ALIGN) + tails",
            "C, PAST, POWER, ALIGN) + 0 * tails",
            ROWS_WRITTEN_OUT,
        ),
        (
            "the gradient at a masked class lacks what the past's list has there",
            "g -= listed_beyond_tail(inputs.past, target.past_row, target.past, 0.0, at, masked)",
            "g -= 0.0",
            LISTED_MASKED,
        ),
        (
            "labels lack their mass",
            "value -= tl.where(at == target.a.y, target.a.hard, 0.0)",
            "value -= tl.where(at == target.b.y, target.b.hard, 0.0)",
            BLOCKS,
        ),
        (
            "labels lack their mass in all but the first segment of a tile",
            "segment == along(SEGMENTS) * WIDTH",
            "segment == along(SEGMENTS) * 0",
            DENSE,
        ),
        (
            "a list stores what smoothing and tails gave there too",
            "g -= scale * value - tail",
            "g -= scale * value",
            TOP_K,
        ),
        (
            "the second list forgets the first",
            "        if FIRST:\n            a = target.a\n            g -=",
            "        if FIRST:\n            a = target.a\n            g -= 0 *",
            TOP_K,
        ),
    ],
    "toast_kernels/blended_kl/triton_rows.py": [
        (
            "0 * -inf is not read again",
            "        if dot != dot:",
            "        if dot < dot:",
            TESTS + "test_dense_rows_without_mass_on_masked_classes[row]",
        ),
        (
            "read again, 0 * -inf is NaN",
            "tl.where(mass != 0, mass * scaled(z, origin), 0.0)",
            "mass * scaled(z, origin)",
            TESTS + "test_dense_rows_without_mass_on_masked_classes[blocks]",
        ),
        (
            "masked classes are not counted",
            "masked += tl.sum((z == -INF).to(tl.int32), 0)",
            "masked += tl.sum((z == INF).to(tl.int32), 0)",
            MASKED,
        ),
        (
            "the cross-entropy is of a rounded logsumexp",
            "surprise = log_p - below(z, top, scale)",
            "surprise = (log_p + top) - z",
            FAR + "[triton-None-5000.0]",
        ),
        (
            "a NaN is not the argmax",
            "return tl.where(found < C, found, argmax)",
            "return tl.where(found < C, argmax, argmax)",
            TESTS + "test_the_argmax_of_a_row_with_a_nan",
        ),
        (
            "the rounding of what exponentials are relative to is in the loss",
            "log_p = tl.log(sums.p / p_top)",
            "log_p = tl.log(sums.p)",
            TESTS + "test_logits_far_from_0[row]",
        ),
        (
            "the past's coefficient is the class term's",
            "coef_e = past_sum / sums.e",
            "coef_e = past_sum / sums.p",
            TESTS + "test_temperatures[row-dense-3.0]",
        ),
    ],
    "toast_kernels/blended_kl/triton_tiles.py": [
        (
            "the padding of a tile is not cut off",
            "mask = at < tl.where(allowed, C, 0)",
            "mask = at < tl.where(allowed, C + 1, 0)",
            WIDTHS + "[row-float32-255]",
        ),
        (
            "what lies before a shifted row is its own",
            "tl.where(inside(at, C), z, -INF)",
            "tl.where(at < C, z, -INF)",
            TESTS + "test_rows_that_begin_anywhere",
        ),
        (
            "what lies around a realigned row is its own",
            "return tl.where(inside(at, C), value, other)",
            "return value",
            ANYWHERE,
        ),
        (
            "a realigned vector lies in one",
            "high = tl.load(words + place + 4, mask=place + 4 < end",
            "high = tl.load(words + place, mask=place < end",
            ANYWHERE,
        ),
        (
            "the halves of a realigned word change places",
            "tl.join(value << 16, value & 0xFFFF0000)",
            "tl.join(value & 0xFFFF0000, value << 16)",
            ANYWHERE,
        ),
        ("a realigned row begins at a whole word", "bits = shift % 2 * 16", "bits = shift * 0", ANYWHERE),
        (
            "the last vector of a realigned row is not read",
            "tl.where(allowed, (lead + shift + C + WIDTH - 1) // WIDTH * 4, 0)",
            "tl.where(allowed, (lead + shift + C) // WIDTH * 4, 0)",
            ANYWHERE,
        ),
    ],
    "toast_kernels/blended_kl/triton_passes.py": [
        (
            "sums at T are not brought to the new maximum",
            "sum_e = sum_e * old_e + sums_along(e)",
            "sum_e = sum_e + sums_along(e)",
            BLOCKS,
        ),
        (
            "lanes are added without their maxima",
            "sums_of(inputs, sum_p * to_all_p, sum_e * to_all_e,",
            "sums_of(inputs, sum_p, sum_e * to_all_e,",
            BLOCKS,
        ),
        (
            "the first block with a lane's maximum is forgotten",
            "top_start = tl.where(new_top > top, start, top_start)",
            "top_start = tl.where(new_top < top, start, top_start)",
            BLOCKS,
        ),
        (
            "the edges of a shifted row are not stored",
            "g = sparse_gradient(inputs, target, gradient, z, at, C, PAST, POWER, ALIGN)\n    tl.store",
            "g = z * 0\n    tl.store",
            TESTS + "test_rows_that_begin_anywhere",
        ),
        (
            "the backward pass forgets the first block",
            "start = (blocks - 1 - i) * BLOCK",
            "start = tl.maximum(blocks - 1 - i, 1) * BLOCK",
            BLOCKS,
        ),
        (
            "the argmax is the last of equals",
            "argmax = tl.min(tl.where(z == highest, at, C), 0)",
            "argmax = tl.max(tl.where(z == highest, at, 0), 0)",
            TESTS + "test_the_first_of_equal_logits_is_the_argmax",
        ),
    ],
    "toast_kernels/blended_kl/triton_reduction.py": [
        ("a group forgets its last program", "tl.minimum(programs - group * GROUP, GROUP)", "GROUP", MANY),
        (
            "only the first group is added up",
            "for start in range(0, groups, GROUP)",
            "for start in range(0, 1, GROUP)",
            MANY,
        ),
    ],
    "toast_kernels/blended_kl/triton_kernels.py": [
        (
            "ignored rows keep a gradient",
            "tl.store(place, tl.zeros_like(g), mask=mine & wide(active & ~counts, at))",
            "tl.store(place, g, mask=mine & wide(active & ~counts, at))",
            ROWS + "test_a_nan_logit_poisons_its_row_only[triton-None-first-3-float32]",
        ),
        (
            "skipped rows are not written",
            "tl.zeros([BLOCK], tl.float32) + loss, mask=there(at, C, FULL))",
            "tl.zeros([BLOCK], tl.float32) + loss, mask=at < 0)",
            ROWS + "test_every_output_is_written_for_every_row[triton-mean-narrow]",
        ),
        (
            "gradients go to the row before",
            "        gradient_row = outputs.gradient + row * C\n        coef_p",
            "        gradient_row = outputs.gradient + tl.where(row > 0, row - 1, N - 1) * C\n        coef_p",
            DENSE,
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
            "tests/blended_kl/test_blended_kl_autograd.py::test_scalar_upstream[triton-float32-0.375]",
        ),
    ],
    "toast_kernels/blended_kl/triton.py": [
        (
            "a quarter of a tile that rows lack some of is taken for full",
            "full = num_classes // (size // 4) * (size // 4)",
            "full = (num_classes // (size // 4) + 1) * (size // 4)",
            WIDTHS + "[row-float32-255]",
        ),
        (
            "a segment that rows lack some of is taken for whole",
            "whole = num_classes // width * width",
            "whole = (num_classes // width + 1) * width",
            WIDTHS + "[rows-float32-255]",
        ),
        (
            "every row is taken for aligned",
            "align = math.gcd(16, num_classes, stride, *(values.stride(0) for values in dense))",
            "align = 16",
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
            "problem.logits, *labels, *soft, *past, problem.past_index",
            "problem.logits, *labels, *past, *soft, problem.past_index",
            KEPT + "[dense-none-False]",
        ),
    ],
}
