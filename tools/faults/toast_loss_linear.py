"""Faults of ToastLoss.linear: features that are pooled, and predictions of the k largest probabilities."""

TESTS = "tests/toast_loss/test_toast_loss_linear.py::"
DENSE = TESTS + "test_with_the_identity_for_a_head_it_is_the_dense_form"
SOFT = TESTS + "test_soft_targets_are_the_medoids_predictions_and_medoids_those_of_the_features"
REPLAY = "tests/toast_loss/test_toast_loss_linear_replay.py::test_replay_of_predictions_is_that_of_logits"
MEMORY = "tests/toast_loss/test_toast_loss_linear_replay.py::test_a_memory_of_predictions_is_that_of_logits"
STATE = "tests/toast_loss/test_toast_loss_linear_state.py::"
RANKS = "tests/toast_loss/test_toast_loss_ranks.py::"

FAULTS = {
    "csrc/cpu/kept_rows.cpp": [
        (
            "labels are held against the number of features",
            "|| p.labels[i] >= p.num_classes)",
            "|| p.labels[i] >= p.width)",
            "tests/kept_rows/test_kept_rows_pool.py::test_features_may_have_fewer_columns_than_there_are_classes",
        ),
    ],
    "toast_kernels/pool.py": [
        (
            "predictions count as rows",
            "logits=self.predictions, counts=memory.counts.clone()",
            "logits=self.predictions",
            DENSE,
        ),
        (
            "a pool that grows loses its predictions",
            "            self.predictions[: len(kept)] = kept[:capacity]\n",
            "",
            DENSE,
        ),
        (
            "predictions are not saved with the pool",
            '"predictions": self.predictions, "seen"',
            '"seen"',
            STATE + "test_training_resumes_to_the_bit",
        ),
    ],
    "toast_kernels/bank.py": [
        (
            "linear: a row is right whose last listed class is its label",
            "predictions.indices[:, 0]",
            "predictions.indices[:, -1]",
            DENSE,
        ),
        (
            "linear: rows without a finite prediction are pooled",
            "            labels = torch.where(logsumexp.isfinite(), labels, self.ignore_index)\n",
            "",
            TESTS + "test_rows_without_a_finite_prediction_are_not_pooled",
        ),
        (
            "linear: soft targets are at temperature 1",
            "predictions.packed(self.top_k, self.temperature, logsumexp)",
            "predictions.packed(self.top_k, 1.0, predictions.logsumexp)",
            SOFT,
        ),
        (
            "linear: a rank without a batch expects logits",
            "if told and self.num_rows == 0",
            "if not told and self.num_rows == 0",
            RANKS + "test_the_linear_form_chooses_among_the_features_of_all_ranks",
        ),
        (
            "linear: a dry run tells the number of features",
            "if self.pool.is_dry_run(rows):",
            "if False:",
            STATE + "test_a_dry_run_leaves_no_trace",
        ),
        (
            "linear: a rejected update tells the number of features",
            "                pool = self._new_pool(rows.shape[1])\n",
            "                pool = self.pool = self._new_pool(rows.shape[1])\n",
            STATE + "test_a_rejected_update_leaves_the_bank_as_it_was",
        ),
        (
            "linear: features survive reset_parameters",
            "if self.num_features != self._num_features:",
            "if False:",
            STATE + "test_reset_parameters_makes_it_as_new",
        ),
        (
            "linear: ranks may pool features and logits",
            "        self.ranks.agree(num_features=self.num_features)\n",
            "",
            RANKS + "test_ranks_of_different_forms_are_an_error_on_all",
        ),
    ],
    "toast_kernels/soft_targets.py": [
        ("listed classes leave their probabilities behind", "probs.gather(1, order), classes", "probs, classes", SOFT),
    ],
    "toast_kernels/top_predictions.py": [
        ("the smallest of the listed are kept", "self.logits[..., :top_k]", "self.logits[..., -top_k:]", MEMORY),
    ],
    "toast_kernels/replay.py": [
        (
            "listed predictions are carried at temperature 1",
            "logits.packed(self.top_k, self.temperature, logits.logsumexp_at_temperature)",
            "logits.packed(self.top_k, 1.0, logits.logsumexp)",
            REPLAY,
        ),
    ],
    "toast_kernels/prediction_memory.py": [
        (
            "a listed prediction that is not finite is kept",
            "finite = logits.logsumexp.isfinite()",
            "finite = torch.ones_like(logits.logsumexp, dtype=torch.bool)",
            MEMORY,
        ),
    ],
    "toast_kernels/loss.py": [
        (
            "the linear form pools replayed rows",
            "predictions = None if predictions is None else predictions.first(past.num_new)",
            "pass",
            REPLAY,
        ),
        (
            "linear pools in evaluations",
            "return self.max_alpha > 0 and self._trains()",
            "return self.max_alpha > 0",
            TESTS + "test_an_evaluation_pools_nothing_and_is_plain_cross_entropy",
        ),
    ],
}
