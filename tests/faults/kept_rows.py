"""Faults of what a step keeps: the kernels of kept_rows, HardReplay and MedoidBank's pool."""

TESTS = "tests/test_kept_rows.py::"
SORT = TESTS + "test_the_rows_carried_are_those_of_a_plain_sort"
LAYOUTS = TESTS + "test_dtypes_and_layouts"
POOL = TESTS + "test_the_pool_gets_the_rows_and_no_more"
AGES = TESTS + "test_the_ages_may_lie_where_the_new_ones_go"
TILES = TESTS + "test_more_rows_and_classes_than_a_tile"
AGAIN = TESTS + "test_the_same_memory_is_filled_again"
OVERFLOW = TESTS + "test_rows_beyond_the_pool_are_not_written"
REPLAY = "tests/test_replay.py::"
STEP = "tests/test_step.py::"
BANK = "tests/test_bank.py::"
LOSS = "tests/test_toast_loss_module.py::"

STATE = "tests/test_replay_state.py::"
BATCHES = "tests/test_replay_batches.py::"
FAULTS = {
    "csrc/cpu/kept_rows.cpp": [
        (
            "equal scores go to the last row",
            "a.score == b.score && a.row < b.row",
            "a.score == b.score && a.row > b.row",
            SORT,
        ),
        ("rows of infinite score are carried", "std::isfinite(score)", "score == score", SORT),
        ("an ignored row is carried for its other label", "p.labels_b != nullptr &&", "p.labels_b == nullptr ||", SORT),
        ("a row may be carried once too often", "age < p.max_age)", "age <= p.max_age)", SORT),
        (
            "the new rows are as old as carried ones",
            "i < p.new_rows || p.ages == nullptr ? 0 : p.ages[i - p.new_rows]",
            "p.ages == nullptr || p.rows == p.new_rows ? 0 : p.ages[i % (p.rows - p.new_rows)]",
            SORT,
        ),
        (
            "an empty slot keeps its last label",
            "p.slot_labels[j] = filled ? p.labels[row] : p.ignore_index",
            "p.slot_labels[j] = filled ? p.labels[row] : p.slot_labels[j]",
            AGAIN,
        ),
        ("as many rows are distilled as there are slots", "j < p.distilled[count]", "j < p.distilled[p.slots]", SORT),
        ("carried rows are taken for contiguous", "chosen[j].row * p.stride", "chosen[j].row * p.classes", LAYOUTS),
        (
            "pooled rows are taken for contiguous",
            "i * p.stride, p.classes, p.pool_dtype",
            "i * p.classes, p.classes, p.pool_dtype",
            POOL,
        ),
        ("the pool is written from its first row on", "(p.start + i) * p.classes", "i * p.classes", POOL),
        (
            "only a row's first chunk is converted",
            "as_real(in_dtype, in, from + k, some, buffer)",
            "as_real(in_dtype, in, from, some, buffer)",
            POOL,
        ),
        (
            "a label out of range is pooled",
            "|| p.labels[i] >= p.classes)",
            ")",
            TESTS + "test_a_label_out_of_range_is_an_error_and_nothing_is_written",
        ),
        (
            "statistics are of as many rows as there are slots",
            "p.slot_logits, count, p.classes",
            "p.slot_logits, p.slots, p.classes",
            SORT,
        ),
    ],
    "toast_kernels/kept_rows/triton_kernels.py": [
        (
            "equal scores go to the last row, Triton",
            "(value == mine) & (other < row)",
            "(value == mine) & (other > row)",
            SORT,
        ),
        ("rows of infinite score are carried, Triton", 'tl.abs(value) < float("inf")', "value == value", SORT),
        (
            "only the first tile of rows is ranked",
            "for first in tl.range(0, N, ROWS)",
            "for first in tl.range(0, ROWS, ROWS)",
            TILES,
        ),
        (
            "a float64 score is compared in float32",
            "value if value.dtype == tl.float64 else value.to(tl.float32)",
            "value.to(tl.float32)",
            TESTS + "test_float64_scores_are_told_apart_by_all_of_their_digits",
        ),
        (
            "an empty slot keeps its last label, Triton",
            "tl.store(slot_labels + row, row * 0 + ignore_index, mask=empty)",
            "pass",
            AGAIN,
        ),
        (
            "empty slots are cleared beyond the last",
            "empty = (row >= chosen) & (row < K)",
            "empty = row >= chosen",
            TESTS + "test_the_triton_kernels_touch_only_what_they_are_given",
        ),
        (
            "a row of no slot is written",
            "taken = may & (rank < K)",
            "taken = may",
            TESTS + "test_the_triton_kernels_touch_only_what_they_are_given",
        ),
        (
            "classes past the row's end are read",
            'z = tl.load(source + at, mask=at < C, other=float("-inf"))\n            tl.store',
            "z = tl.load(source + at)\n            tl.store",
            TESTS + "test_the_triton_kernels_touch_only_what_they_are_given",
        ),
        (
            "ages of new rows are read",
            "mask=used & (row >= num_new), other=0",
            "mask=used, other=0",
            TESTS + "test_the_triton_kernels_touch_only_what_they_are_given",
        ),
        (
            "the largest logits are summed in float32",
            "e = tl.where(is_largest, 0.0, tl.exp(d))",
            "e = tl.exp(d) - tl.where(is_largest, 1.0, 0.0) * 0.99999",
            TESTS + "test_a_peaked_row_has_its_small_entropy",
        ),
        ("the logsumexp lacks the largest logit", "top.to(tl.float64) / TEMPERATURE + log_sum", "log_sum", LAYOUTS),
        ("rows beyond the pool are written", "width = tl.where(fits, C, 0)", "width = C", OVERFLOW),
        (
            "labels beyond the pool are written",
            "tl.load(labels + row), mask=fits",
            "tl.load(labels + row)",
            TESTS + "test_the_triton_kernels_touch_only_what_they_are_given",
        ),
    ],
    "toast_kernels/kept_rows/triton.py": [
        ("ages are read where they are written", "ages = ages.clone()", "pass", AGES),
    ],
    "toast_kernels/kept_rows/reference.py": [
        (
            "the reference's rows beyond the pool wrap around",
            "torch.where(fits[:, None], logits.to(pool.dtype), pool[to])",
            "logits.to(pool.dtype)",
            OVERFLOW,
        ),
        (
            "the reference's empty slots lose their logits",
            "torch.where(filled[:, None], logits[rows], slots.logits)",
            "logits[rows]",
            AGAIN,
        ),
        (
            "the reference waits",
            "chosen = may.sum().clamp(max=num_slots)",
            "chosen = may.sum().clamp(max=num_slots)\n    int(chosen)",
            STEP + "test_nothing_waits",
        ),
    ],
    "toast_kernels/replay.py": [
        (
            "an empty slot shows what lay there",
            "torch.where(filled.view(-1, *[1] * (new.dim() - 1)), kept, again)",
            "kept",
            REPLAY + "test_nothing_to_carry",
        ),
        (
            "memory is made anew in every step",
            "if before is None or not before.fits(count, x, y, logits):",
            "if True:",
            STEP + "test_from_step_to_step_only_tensors_change",
        ),
        (
            "a backward that reads the past again does not notice keep",
            "torch.autograd.graph.increment_version(carried.handed_out())",
            "pass",
            LOSS + "test_keep_writes_over_the_past_and_a_backward_that_needs_it_notices",
        ),
        (
            "the ages are not saved",
            '"age": c.slots.age}',
            '"age": c.slots.age * 0 + 1}',
            STATE + "test_the_state_says_how_often_a_row_was_carried",
        ),
    ],
    "toast_kernels/kept_rows/cpu.py": [
        (
            "empty slots are taken for filled ones",
            " == num_slots",
            " >= 0",
            REPLAY + "test_nothing_to_carry",
        ),
    ],
    "toast_kernels/carried_rows.py": [
        (
            "slots are as many as the new batch would have",
            "index_of_batch(self, num_new: int) -> Tensor:\n",
            "index_of_batch(self, num_new: int) -> Tensor:\n        num_new += 1\n",
            REPLAY + "test_the_hardest_rows_come_back_with_the_predictions_they_got",
        ),
        (
            "memory of other logits is written",
            "pairs = [(logits, self.slots.logits), *",
            "pairs = [*",
            BATCHES + "test_logits_of_another_dtype_or_width_get_memory_of_their_own",
        ),
        (
            "distilled rows are counted of the slots",
            "counts.mul_(distil_fraction)",
            "torch.full_like(counts, len(age)).mul_(distil_fraction)",
            REPLAY + "test_distil_fraction_distils_the_hardest_of_the_carried_rows",
        ),
    ],
    "toast_kernels/bank.py": [
        (
            "a full pool is written beyond its end",
            "if known + new_rows > self.pool_rows:",
            "if False:",
            BANK + "test_a_full_pool_is_an_error_on_the_cpu",
        ),
        (
            "an overflow is not noticed",
            "if num_rows > len(self._logits):",
            "if False:",
            BANK + "test_a_pool_that_overflowed_on_a_gpu_says_so_at_compute",
        ),
        (
            "a reset makes a new counter",
            "self._count.zero_()",
            "self._count = torch.zeros_like(self._count)",
            BANK + "test_with_pool_rows_the_pool_stays_where_it_is",
        ),
        (
            "torch.compile looks into the pooling",
            'leave_uncompiled(MedoidBank, "update")',
            "leave_uncompiled(MedoidBank)",
            STEP + "test_compiled_once_for_all_steps_of_an_epoch",
        ),
    ],
    "toast_kernels/loss.py": [
        (
            "a past with another ignore_index is taken",
            "if past.ignore_index not in (None, self.ignore_index):",
            "if False:",
            LOSS + "test_a_past_with_another_ignore_index_is_refused",
        ),
    ],
    "toast_kernels/soft_targets.py": [
        (
            "of equal probabilities the last classes are kept",
            "equal.cumsum(dim=1) <= room",
            "equal.flip(1).cumsum(dim=1).flip(1) <= room",
            "tests/test_soft_targets.py",
        ),
    ],
}
