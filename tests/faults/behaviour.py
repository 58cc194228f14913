"""Faults of what the modules take and refuse."""

MIXUP = "tests/test_mixup.py::"

FAULTS = {
    "toast_kernels/mixup.py": [
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
    "toast_kernels/loss.py": [
        (
            "ToastLoss hands dense targets on",
            "if dense and self.max_alpha > 0:",
            "if False:",
            MIXUP + "test_toast_loss_as_a_module_takes_dense_targets_in_every_epoch",
        ),
    ],
}
