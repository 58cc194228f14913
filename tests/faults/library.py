"""Faults of the Python around the kernels."""

AUTOGRAD = "tests/test_blended_kl_autograd.py::"
RETAIN = AUTOGRAD + "test_retain_graph_gives_the_same_gradient_twice_and_leaves_the_first_alone"

FAULTS = {
    "toast_kernels/blended_kl/op.py": [
        (
            "the gradient that was handed over is scaled again",
            "gradient, ctx.gradient = ctx.gradient, None",
            "gradient = ctx.gradient",
            RETAIN,
        ),
        (
            "function transforms take the loss for a constant",
            "return BlendedKL.apply(settings, kernels, logits.requires_grad and torch.is_grad_enabled(), need_stats,"
            " *tensors)",
            (
                "loss, _, stats, argmax = _op(*tensors, None, *settings, False, need_stats, kernels)\n"
                "    return loss, stats, argmax"
            ),
            "tests/test_blended_kl_hostile_input.py",
        ),
        (
            "backward ignores the upstream",
            "_kernels(ctx.backend).scale_(gradient, upstream)",
            "pass",
            AUTOGRAD + "test_scalar_upstream",
        ),
        (
            "a second derivative is 0 in silence",
            "gradient = NoSecondDerivative.apply(gradient, ctx.saved_tensors[0])",
            "pass",
            AUTOGRAD + "test_a_second_derivative_raises",
        ),
        (
            "float16 gradients are rounded before they are scaled",
            "differentiate and tensors[0].dtype != torch.float16",
            "differentiate",
            AUTOGRAD + "test_float16_gradients_survive_under_a_grad_scaler",
        ),
    ],
    "toast_kernels/blended_kl/native.py": [
        (
            "columns of another stride are read as contiguous",
            "if tensor.stride(1) == 1 or tensor.shape[1] == 1 else tensor.contiguous()",
            "",
            "tests/test_blended_kl_layouts.py",
        ),
        (
            "integer tables of another layout are read as contiguous",
            "if tensor.dtype != dtype or not tensor.is_contiguous():",
            "if tensor.dtype != dtype:",
            "tests/test_blended_kl_layouts.py",
        ),
    ],
    "toast_kernels/blended_kl/reference.py": [
        (
            "the reference's past term lacks T^2",
            "past_rows = temperature**2 *",
            "past_rows = temperature *",
            "tests/test_blended_kl_formula.py::test_loss_and_gradient_by_hand",
        ),
    ],
    "toast_kernels/medoids/reference.py": [
        (
            "the reference takes the largest cost",
            "cost.min() * (1 + TIE)",
            "cost.max() * (1 + TIE)",
            "tests/test_medoids.py::test_equals_scipy",
        ),
    ],
    "toast_kernels/medoids/cpu.py": [
        (
            "the bound stays in the panels' scale",
            "return cost / scale, bound / scale",
            "return cost / scale, bound",
            "tests/test_medoids_certified.py::test_bounds_hold",
        ),
    ],
}
