"""Faults of the state that modules save, load and move."""

LOSS = "tests/toast_loss/test_toast_loss_module.py::"
STATE = "tests/toast_loss/test_toast_loss_state.py::"

FAULTS = {
    "toast_kernels/state.py": [
        (
            "a state of another temperature is loaded",
            "rel_tol=1e-2",
            "rel_tol=1e2",
            STATE + "test_a_state_of_other_settings_says_so",
        ),
        (
            "half() rounds the state",
            "fn(tensor) if like.dtype == tensor.dtype else tensor.to(like.device)",
            "fn(tensor)",
            STATE + "test_casts_leave_the_dtypes",
        ),
        (
            "a warning points into nn.Module",
            '(__package__, "torch")',
            "(__package__,)",
            LOSS + "test_warnings_point_at_the_users_line",
        ),
    ],
    "toast_kernels/epoch_state.py": [
        (
            "to_empty leaves what lay in memory",
            "if was_meta and not self.alpha.is_meta:",
            "if False:",
            STATE + "test_made_on_meta_then_to_empty",
        ),
        (
            "the soft targets are those of buffers that were exchanged",
            "parts = {name: buffers[name] for name in _TABLE}",
            "parts = {name: getattr(table or self, name) for name in _TABLE}",
            STATE + "test_loading_copies_and_leaves_the_pool_alone",
        ),
        (
            "a state made in inference mode stays so",
            '        with torch.inference_mode(False):\n            self.register_buffer("alpha"',
            '        if True:\n            self.register_buffer("alpha"',
            STATE + "test_what_is_made_in_inference_mode_poisons_nothing",
        ),
    ],
}
