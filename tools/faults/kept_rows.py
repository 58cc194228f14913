"""Faults of what a step keeps: the kernels of kept_rows, HardReplay and MedoidBank's pool."""

TESTS = "tests/kept_rows/test_kept_rows.py::"
SORT = TESTS + "test_the_rows_carried_are_those_of_a_plain_sort"
LAYOUTS = TESTS + "test_dtypes_and_layouts"
POOL_TESTS = "tests/kept_rows/test_kept_rows_pool.py::"
POOL = POOL_TESTS + "test_the_pool_gets_the_rows_that_are_not_ignored"
AGES = TESTS + "test_the_ages_may_lie_where_the_new_ones_go"
TILES = TESTS + "test_more_rows_and_classes_than_a_tile"
POOL_TILES = POOL_TESTS + "test_more_rows_and_classes_than_a_tile"
AGAIN = TESTS + "test_the_same_memory_is_filled_again"
OVERFLOW = POOL_TESTS + "test_rows_go_behind_those_of_the_last_call_and_beyond_the_pool_nothing_is_written"
PLACES = POOL_TESTS + "test_rows_go_to_places_that_are_given"
REPLAY = "tests/replay/test_replay.py::"
STEP = "tests/library/test_step.py::"
BANK = "tests/medoids/test_bank.py::"
BANK_POOL = "tests/medoids/test_bank_pool.py::"
LOSS = "tests/toast_loss/test_toast_loss_module.py::"
PAST = "tests/toast_loss/test_toast_loss_past.py::"
STATE = "tests/toast_loss/test_toast_loss_state.py::"
REPLAY_STATE = "tests/replay/test_replay_state.py::"
BATCHES = "tests/replay/test_replay_batches.py::"

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
            "moves[k].row * p.stride",
            "moves[k].row * p.width",
            POOL,
        ),
        ("ignored rows take room", "if (p.labels[i] == p.ignore_index) continue;", "", POOL),
        (
            "a row beyond the pool is written",
            "if (to < 0 || to >= p.capacity) continue;",
            "if (to < 0) continue;",
            "ctest kept_rows.generic",
        ),
        (
            "given places are not looked at",
            "p.places != nullptr ? p.places[i] : p.counts[0]++",
            "p.counts[0]++",
            PLACES,
        ),
        ("positions begin anew in each step", "p.counts[1] + i;", "i;", POOL),
        ("rows that are ignored have no number", "p.counts[1] += p.rows;", "p.counts[1] += moves.size();", POOL),
        (
            "only a row's first chunk is converted",
            "as_real(in_dtype, in, from + k, some, buffer)",
            "as_real(in_dtype, in, from, some, buffer)",
            POOL,
        ),
        (
            "a label out of range is pooled",
            "|| p.labels[i] >= p.num_classes)",
            ")",
            POOL_TESTS + "test_a_label_out_of_range_is_an_error_and_nothing_is_written",
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
            "the logsumexp of a row of -inf alone is NaN, Triton",
            "masked = top ==",
            "masked = top !=",
            TESTS + "test_masked_classes_have_no_share_and_bad_rows_are_marked",
        ),
        (
            "equal scores go to the last row, Triton",
            "(value == mine) & (other < row)",
            "(value == mine) & (other > row)",
            SORT,
        ),
        ("rows of infinite score are carried, Triton", 'tl.abs(value) < float("inf")', "value == value", SORT),
        (
            "only the first tile of rows is ranked",
            "rank, total = row * 0, row * 0\n    for first in tl.range(0, N, ROWS)",
            "rank, total = row * 0, row * 0\n    for first in tl.range(0, ROWS, ROWS)",
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
        ("the logsumexp lacks the largest logit", "top / TEMPERATURE + log_sum))", "log_sum))", LAYOUTS),
        ("rows beyond the pool are written", "width = tl.where(fits, C, 0)", "width = C", OVERFLOW),
        (
            "labels beyond the pool are written",
            "tl.store(pool_labels + to, label, mask=fits)",
            "tl.store(pool_labels + to, label)",
            POOL_TESTS + "test_the_triton_kernel_touches_only_what_it_is_given",
        ),
        ("ignored rows are written, Triton", "fits = (label != ignore_index) & ", "fits = ", POOL),
        ("the rows before are counted in the first tile only", "before += tl.sum(", "before = tl.sum(", POOL_TILES),
        ("the counts stay", "if increment(counts + 2) == N:", "if increment(counts + 2) > N:", OVERFLOW),
        ("the number of finished programs stays", "tl.store(counts + 2, row * 0)", "pass", OVERFLOW),
    ],
    "toast_kernels/kept_rows/triton.py": [
        ("ages are read where they are written", "ages = ages.clone()", "pass", AGES),
    ],
    "toast_kernels/kept_rows/reference.py": [
        (
            "the reference overwrites the pool's first row where no row fits",
            "torch.where(found, logits[row].to(pool.dtype), pool[0])",
            "logits[row].to(pool.dtype)",
            OVERFLOW,
        ),
        ("the reference's counts stay", "counts[0] += kept.sum()", "pass", OVERFLOW),
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
            PAST + "test_keep_writes_over_the_past_and_a_backward_that_needs_it_notices",
        ),
        (
            "the ages are not saved",
            '"age": c.slots.age}',
            '"age": c.slots.age * 0 + 1}',
            REPLAY_STATE + "test_the_state_says_how_often_a_row_was_carried",
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
            "torch.compile looks into the pooling",
            'leave_uncompiled(MedoidBank, "update")',
            "leave_uncompiled(MedoidBank)",
            STEP + "test_compiled_once_for_all_steps_of_an_epoch",
        ),
        (
            "medoids are rows of the pool and not those that were given",
            "self.medoids[classes] = positions[found[classes]]",
            "self.medoids = found",
            BANK + "test_a_class_without_a_row_is_not_filled",
        ),
    ],
    "toast_kernels/pool.py": [
        (
            "a reservoir counts rows of a call that failed",
            "        memory = self.memory\n",
            "        if self.seen is not None:\n            self.seen.add_(1)\n        memory = self.memory\n",
            BANK_POOL + "test_a_call_with_a_wrong_label_leaves_no_trace_in_a_reservoir",
        ),
        (
            "a dry run makes a pool of its own",
            "(rows.is_meta and not self.memory.counts.is_meta) or is_fake(rows)",
            "is_fake(rows)",
            STATE + "test_a_dry_run_leaves_no_trace",
        ),
        (
            "a fake tensor is pooled",
            "not self.memory.counts.is_meta) or is_fake(rows)",
            "not self.memory.counts.is_meta)",
            STATE + "test_a_dry_run_leaves_no_trace",
        ),
        (
            "a growing pool has room for ignored rows",
            "self.at_most = int(self.memory.counts[0])",
            "self.at_most += 0",
            BANK_POOL + "test_a_growing_pool_has_no_room_for_ignored_rows",
        ),
        (
            "a reservoir keeps its first rows",
            "torch.where(k < most, k, ",
            "torch.where(k >= 0, k, ",
            BANK_POOL + "test_a_reservoir_keeps_every_row_as_likely",
        ),
        (
            "a reservoir draws from one row too few",
            "% (k + 1)",
            "% k.clamp(min=1)",
            BANK_POOL + "test_a_reservoir_keeps_every_row_as_likely",
        ),
        (
            "two rows go to one place",
            "place == torch.cat([place[1:], place.new_full((1,), -2)])",
            "place < -1",
            BANK_POOL + "test_no_two_rows_of_a_batch_go_to_one_place",
        ),
        (
            "a reset makes new counters",
            "self.memory.counts.zero_()",
            "self.memory = self.memory._replace(counts=torch.zeros_like(self.memory.counts))",
            BANK_POOL + "test_a_pool_of_one_size_stays_where_it_is",
        ),
        (
            "a pool made in inference mode stays so",
            "@torch.inference_mode(False)\n    @torch.no_grad()\n    def _resize",
            "@torch.no_grad()\n    def _resize",
            STATE + "test_what_is_made_in_inference_mode_poisons_nothing",
        ),
    ],
    "toast_kernels/loss.py": [
        (
            "a past with another ignore_index is taken",
            "if past.ignore_index not in (None, self.ignore_index):",
            "if False:",
            PAST + "test_a_past_with_another_ignore_index_is_refused",
        ),
        (
            "the ramp goes on beyond its end",
            "self.max_alpha * min((epoch + 1) / num_epochs, 1)",
            "self.max_alpha * (epoch + 1) / num_epochs",
            LOSS + "test_alpha_ramps_up_linearly_to_its_value_in_the_last_epoch",
        ),
    ],
    "toast_kernels/soft_targets.py": [
        (
            "of equal probabilities the last classes are kept",
            "equal.cumsum(dim=1) <= room",
            "equal.flip(1).cumsum(dim=1).flip(1) <= room",
            "tests/softmax_statistics/test_soft_targets.py",
        ),
    ],
}
