"""Faults of the accuracy study: of its methods, its regimes, its choices and its numbers."""

METHODS = "tests/training/test_study_methods.py::"
STUDY = "tests/training/test_study.py::"
STUDY_PAGE = "tests/training/test_study_page.py::"

FAULTS = {
    "python/study_methods.py": [
        (
            "study: PS-KD's past term is not scaled down",
            "return (1 - self.share) * loss, stats",
            "return loss, stats",
            METHODS + "test_ps_kd_blends_each_rows_own_last_prediction",
        ),
        (
            "study: PS-KD's weight is the share itself",
            "self.past_weight = self.share / (1 - self.share)",
            "self.past_weight = self.share",
            METHODS + "test_ps_kd_blends_each_rows_own_last_prediction",
        ),
        (
            "study: OLS averages wrong rows too",
            "right = stats.argmax == y",
            "right = stats.argmax >= 0",
            METHODS + "test_ols_takes_the_mean_of_the_rows_that_were_right",
        ),
        (
            "study: an image is its own classmate",
            "ahead = 1 + (draw",
            "ahead = (draw",
            METHODS + "test_cs_kd_distils_from_another_image_of_the_class",
        ),
        (
            "study: the nearest classmate alone comes",
            "(draw * (count - 1)).long()",
            "(draw * 0).long()",
            METHODS + "test_every_classmate_comes_and_one_that_is_alone_is_its_own",
        ),
        (
            "study: TF-KD's teacher spreads its rest over all classes",
            "(1 - correct) / (num_classes - 1)",
            "(1 - correct) * 9 / num_classes",
            METHODS + "test_tf_kd_has_the_virtual_teacher",
        ),
    ],
    "python/study_regimes.py": [
        (
            "study: some noise leaves the label",
            "torch.randint(1, num_classes,",
            "torch.randint(0, 2,",
            METHODS + "test_noise_changes_as_many_labels_as_it_says_and_only_training_ones",
        ),
        (
            "study: imbalance falls linearly",
            "regime.rarest**rank",
            "(1 - (1 - regime.rarest) * rank)",
            METHODS + "test_imbalance_goes_down_to_a_tenth",
        ),
    ],
    "python/study_run.py": [
        (
            "study: less data is fewer steps",
            "as_many_steps = len(data.train) / len(under.train)",
            "as_many_steps = 1",
            METHODS + "test_a_share_of_every_class_stays",
        ),
        (
            "study: forward rows without gradient are not counted",
            "return self.forward(self.inputs(self.data.train.images[rows]))",
            "return self.model(self.inputs(self.data.train.images[rows]))",
            METHODS + "test_the_forward_rows_of_each_method[cs-kd]",
        ),
        (
            "study: a mixed image is a hit by its first label alone",
            "hits(stats.argmax, y)",
            "hits(stats.argmax, y if isinstance(y, Tensor) else y[0])",
            METHODS + "test_a_mixed_image_is_a_hit_by_the_share_of_its_label",
        ),
    ],
    "python/study_plan.py": [
        (
            "study: settings are chosen by the test images",
            'done[trials[i]]["val_top1"]',
            'done[trials[i]]["test_top1"]',
            STUDY + "test_settings_are_chosen_by_validation_and_never_by_test",
        ),
        (
            "study: of equal accuracies the higher NLL",
            '-done[trials[i]]["val_nll"]',
            'done[trials[i]]["val_nll"]',
            STUDY + "test_of_equal_accuracies_the_lower_nll_is_chosen",
        ),
    ],
    "python/study_report.py": [
        (
            "study: what cannot be told apart counts as won",
            "if difference.sign > 0",
            "if difference.sign >= 0",
            STUDY_PAGE + "test_the_best_other_method_has_the_best_average_over_the_most_regimes",
        ),
    ],
    "python/seeds.py": [
        (
            "study: the normal's interval for Student's",
            "stdtrit(n - 1, (1 + CONFIDENCE) / 2)",
            "1.96",
            STUDY + "test_the_interval_is_students",
        ),
        (
            "study: a verdict from two seeds",
            "self.pairs < FEW_SEEDS",
            "self.pairs < 2",
            STUDY + "test_the_interval_is_students",
        ),
    ],
    "python/study_table.py": [
        (
            "study: a line that was cut short stays",
            "file.truncate(len(whole[0] + whole[1]))",
            "pass",
            STUDY + "test_a_table_keeps_its_whole_lines_and_types",
        ),
    ],
}
