"""Faults of the medoids of rows on several ranks."""

TESTS = "tests/test_distributed_medoids.py::"
LOSS = "tests/test_toast_loss_ranks.py::"
MEDOIDS = TESTS + "test_every_rank_has_the_medoids_of_all_rows_in_rank_order"

FAULTS = {
    "toast_kernels/distributed.py": [
        (
            "an owner leaves out the rows of the first rank",
            "metric=metric,\n                    ignore_index=-1,",
            "metric=metric,\n                    ignore_index=-1, mask=places >= sizes[0],",
            MEDOIDS,
        ),
        ("positions are counted on each rank", "sum(spans[: ranks.rank])", "0", MEDOIDS),
        ("rows are numbered on each rank", "sum(sizes[: ranks.rank])", "0", MEDOIDS),
        (
            "rows are named by the classes of the first rank",
            "own.repeat(ranks.size).repeat_interleave(numbers)",
            "own.repeat_interleave(numbers.view(ranks.size, -1).sum(0))",
            MEDOIDS,
        ),
        ("the medoids' rows stay where they are", "rows = ranks.all_reduce(rows)", "rows = rows.clone()", MEDOIDS),
        (
            "a rank may send more than a slab",
            "received[owner] + total[c] > limit or sent + most[c] > limit",
            "received[owner] + total[c] > limit",
            TESTS + "test_a_slab_is_bounded",
        ),
        (
            "an owner may receive more than a slab",
            "received[owner] + total[c] > limit or sent + most[c] > limit",
            "sent + most[c] > limit",
            TESTS + "test_a_slab_is_bounded",
        ),
        (
            "what failed on a rank is kept from all",
            'if self.all_reduce(torch.tensor(error is not None, dtype=torch.int64, device="cpu"), "MAX"):',
            "if False:",
            TESTS + "test_a_failure_on_one_rank_is_an_error_on_all_that_names_it",
        ),
        (
            "a rank is named by its number in its group",
            "dist.get_global_rank(group, rank)",
            "rank",
            TESTS + "test_a_failure_on_one_rank_is_an_error_on_all_that_names_it",
        ),
        (
            "ranks may differ in dtype",
            "C=x.shape[1], dtype=x.dtype,",
            "C=x.shape[1],",
            TESTS + "test_a_failure_on_one_rank_is_an_error_on_all_that_names_it",
        ),
    ],
    "toast_kernels/bank.py": [
        (
            "each rank chooses alone",
            "self._of_all_ranks() if self.ranks.size > 1",
            "self._of_all_ranks() if False",
            LOSS + "test_every_rank_has_the_soft_targets_of_all_ranks_rows",
        ),
        (
            "ranks may differ in temperature",
            "self.ranks.agree(temperature=self.temperature, top_k=self.top_k, dtype=self.dtype)",
            "pass",
            LOSS + "test_ranks_of_different_temperatures_are_an_error_on_all",
        ),
        (
            "a replica's pool is thrown away in silence",
            'getattr(self, "_is_replica", False)',
            "False",
            LOSS + "test_data_parallel_replicas_cannot_pool",
        ),
    ],
    "toast_kernels/loss.py": [
        (
            "a rank without rows does not come",
            "self.bank.has_rows()",
            "self.bank.num_rows",
            LOSS + "test_the_ranks_of_a_group_choose_together",
        ),
        (
            "ranks may be in different epochs",
            "self.bank.ranks.agree(epoch=epoch, num_epochs=num_epochs,",
            "self.bank.ranks.agree(num_epochs=num_epochs,",
            LOSS + "test_ranks_in_different_epochs_are_an_error_on_all",
        ),
    ],
    "toast_kernels/prediction_memory.py": [
        (
            "a memory warns at every step",
            "self._warned = True",
            "pass",
            LOSS + "test_a_prediction_memory_warns_once",
        ),
    ],
}
