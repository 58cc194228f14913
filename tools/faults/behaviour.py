"""Faults of what the modules take and refuse."""

MIXUP = "tests/toast_loss/test_mixup.py::"
REPLAY = "tests/replay/test_replay_batches.py::"
REPLAY_ERRORS = "tests/replay/test_replay_errors.py::"

OPERANDS = "tests/library/test_operands.py::"

FAULTS = {
    "toast_kernels/native.py": [
        (
            "devices: float64 everywhere",
            "if device.type in WITHOUT_FLOAT64",
            "if False",
            "tests/library/test_without_float64.py",
        ),
        (
            "operands: rows in negative memory are read as they lie",
            "tensor = tensor.resolve_neg()",
            "pass",
            OPERANDS + "test_negated_operands",
        ),
    ],
    "toast_kernels/arguments.py": [
        (
            "operands: lam in negative memory is read as it lies",
            "tensor = tensor.resolve_neg() if tensor.dtype == dtype else tensor.to(dtype)",
            "tensor = tensor if tensor.dtype == dtype else tensor.to(dtype)",
            OPERANDS + "test_negated_operands",
        ),
    ],
    "toast_kernels/blended_kl/op.py": [
        (
            "operands: an upstream in negative memory is read as it lies",
            "    upstream = upstream.resolve_neg()\n",
            "",
            OPERANDS + "test_negated_upstream",
        ),
    ],
    "toast_kernels/mixup.py": [
        (
            "operands: an ignored uint8 label wraps to another class",
            "return target.long()",
            "return target",
            OPERANDS + "test_uint8_labels_in_the_modules",
        ),
        (
            "mixup: a small second share passes for a rounding",
            "single = second - floor <= floor_rounding",
            "single = second - floor <= rounding",
            MIXUP + "test_a_small_share_is_no_rounding",
        ),
        (
            "mixup: shares are not divided by their sum",
            "torch.where(mixed, a / (a + b), torch.nan)",
            "torch.where(mixed, a, torch.nan)",
            MIXUP + "test_roundings_of_the_targets_are_no_other_mixture",
        ),
        (
            "mixup: subnormal floors have the roundings of normal ones",
            "floor.clamp(min=number.smallest_normal)",
            "floor",
            MIXUP + "test_roundings_of_the_targets_are_no_other_mixture",
        ),
        (
            "mixup: all rows were smoothed",
            "smoothing = (low > 0).to(wide) * label_smoothing",
            "smoothing = torch.full_like(low, label_smoothing)",
            MIXUP + "test_targets_that_were_not_smoothed_are_taken_as_they_are",
        ),
        (
            "mixup: a row that is no mixture has labels where nothing waits",
            "torch.where(mixed, a / (a + b), torch.nan)",
            "a / (a + b)",
            MIXUP + "test_where_nothing_may_wait_a_row_that_is_no_mixture_has_a_nan_loss",
        ),
    ],
    "toast_kernels/checks.py": [
        (
            "checks: NumPy's ints are kept as they come",
            "return value if isinstance(value, _INTS) else operator.index(value)",
            "return value",
            "tests/toast_loss/test_toast_loss_errors.py::test_numpys_numbers_are_numbers",
        ),
    ],
    "toast_kernels/soft_targets.py": [
        (
            "checks: classes are looked at before they are ints",
            "classes.long().sort(dim=1)",
            "classes.sort(dim=1)",
            "tests/softmax_statistics/test_soft_targets_errors.py::test_bad_arguments_are_named",
        ),
    ],
    "toast_kernels/prediction_memory.py": [
        (
            "memory: whether a row is finite is summed in its dtype",
            "softmax_statistics(logits, 1.0)[0].isfinite()",
            "logits.logsumexp(dim=1).isfinite()",
            "tests/toast_loss/test_prediction_memory.py::test_half_precision_rows_of_very_many_classes_are_kept",
        ),
    ],
    "toast_kernels/pool.py": [
        (
            "pool: a large one of so many rows a class comes without a warning",
            "if self.most is not None and self.predictions is None:",
            "if False:",
            "tests/medoids/test_bank_pool.py::test_a_large_pool_that_grows_is_warned_of_once",
        ),
    ],
    "toast_kernels/carried_rows.py": [
        (
            "replay: a mapping comes back as a dict",
            "return type(leaf)(items)",
            "return items",
            REPLAY + "test_mappings_of_any_kind",
        ),
    ],
    "toast_kernels/replay.py": [
        (
            "replay: a state of another kind is loaded",
            'if carried is not None and not isinstance(carried.get("x"), dict):',
            "if False:",
            REPLAY_ERRORS + "test_bad_arguments_are_named",
        ),
        (
            "replay: a state of other settings is taken",
            "if of_state != getattr(self, name):",
            "if False:",
            "tests/replay/test_replay_state.py::test_a_state_of_other_settings_is_refused",
        ),
        (
            "replay: extend forgets that it was called",
            "self._num_new, self._num_rows = rows, rows + slots",
            "self._num_new, self._num_rows = rows, None",
            REPLAY_ERRORS + "test_bad_arguments_are_named",
        ),
        (
            "replay: a batch is waited for after a call that was refused",
            '        leaves, rows = _rows_of("x", x)\n',
            '        leaves, rows = _rows_of("x", x)\n        self._num_rows = rows\n',
            REPLAY_ERRORS + "test_after_a_call_that_was_refused_the_next_one_is_taken",
        ),
        (
            "replay: the temperature is not told before there are targets",
            "rows, self.ignore_index, self.temperature)",
            "rows, self.ignore_index)",
            REPLAY_ERRORS + "test_another_temperature_than_the_losss_is_refused_from_the_first_step_on",
        ),
    ],
    "toast_kernels/loss.py": [
        (
            "ToastLoss hands dense targets on",
            "if dense and self.max_alpha > 0:",
            "if False:",
            MIXUP + "test_toast_loss_as_a_module_takes_dense_targets_in_every_epoch",
        ),
        (
            "ToastLoss.linear ignores a bias in the place of past in evaluation",
            "if isinstance(past, Tensor):  #",
            "if False:  #",
            "tests/toast_loss/test_toast_loss_linear_errors.py::test_bad_input_is_named",
        ),
    ],
}
