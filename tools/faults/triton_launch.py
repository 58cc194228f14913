"""Faults of the kept launch."""

TEST = "tests/library/test_triton_launch.py::"
SHORT = TEST + "test_the_compiled_kernel_is_handed_what_triton_hands_to_it"
LONG = TEST + "test_where_a_kept_kernel_might_be_wrong_triton_launches"

FAULTS = {
    "toast_kernels/triton_launch.py": [
        ("less aligned addresses reach an aligned kernel", "bits |= values[i]", "bits = 0", LONG),
        ("a kept launch tells no profiler", "or _hooks() or", "or", LONG),
        ("another device's kernel is launched", "or self.current_device() != self.device:", "or False:", LONG),
        ("a launch is kept on a Triton that nobody tried", "if VERSION in TRIED and", "if", LONG),
        ("AMD's launcher is taken for NVIDIA's", '.target.backend == "cuda"', ".target is not None", LONG),
        ("the stream of the first call is kept", "self.current_stream(self.device)", "7", SHORT),
        ("the grid's further dimensions are forgotten", "(*grid, 1, 1)[:3]", "(grid[0], 1, 1)", SHORT),
        ("nested tuples lose their type", "new({constant(type(value))}, ({items}))", "({items})", SHORT),
        ("defaults of constexprs are left out", "bound.apply_defaults()", "pass", SHORT),
        ("AMD's compiler is not told how far a pointer reaches", "def ptr_range", "def not_told", LONG),
        ("an empty tensor is written to", "if not address:", "if False:", TEST + "test_an_empty_tensor_has_no_address"),
    ],
}
