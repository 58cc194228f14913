"""Faults of the Python around the kernels."""

AUTOGRAD = "tests/blended_kl/test_blended_kl_autograd.py::"
PLAN = "tests/blended_kl/test_blended_kl_plan.py::"
RETAIN = AUTOGRAD + "test_retain_graph_gives_the_same_gradient_twice_and_leaves_the_first_alone"

FAULTS = {
    "toast_kernels/blended_kl/op.py": [
        (
            "compilers go into the backward pass",
            "    @staticmethod\n    @run_as_is\n",
            "    @staticmethod\n",
            "tests/blended_kl/test_blended_kl_compile.py::test_a_backward_pass_in_a_compiled_function_is_not_compiled",
        ),
        (
            "a fake upstream gradient is looked at",
            "batched or torch._C._len_torch_dispatch_stack() > 0",
            "batched",
            "tests/blended_kl/test_blended_kl_compile.py::test_a_backward_pass_under_a_mode_of_a_loss_that_came_before_it",
        ),
        (
            "the gradient that was handed over is scaled again",
            "    if _graph_is_kept():",
            "    if False:",
            RETAIN,
        ),
        (
            "function transforms take the loss for a constant",
            "if torch._C._are_functorch_transforms_active():",
            "if False:",
            "tests/blended_kl/test_blended_kl_hostile_input.py",
        ),
        (
            "backward ignores the upstream",
            '            implementation("blended_kl", backend).scale_(gradient, upstream)',
            "            pass",
            AUTOGRAD + "test_scalar_upstream",
        ),
        (
            "a second derivative is 0 in silence",
            "        reject_second_derivative()\n        return BlendedKL",
            "        return BlendedKL",
            AUTOGRAD + "test_a_second_derivative_raises",
        ),
        (
            "float16 gradients are rounded before they are scaled",
            'reduction != "none" and logits.dtype != torch.float16',
            'reduction != "none"',
            AUTOGRAD + "test_float16_gradients_survive_under_a_grad_scaler",
        ),
        (
            "what autograd keeps is hidden from its hooks",
            "            keep(ctx, flatten(problem))",
            "            ctx.save_for_backward()\n            ctx.arguments = flatten(problem)",
            AUTOGRAD + "test_saved_tensor_hooks_see_what_is_kept",
        ),
    ],
    "toast_kernels/blended_kl/plan.py": [
        (
            "a number that is learned has the plan of one that is not",
            'return (kind, "learned") if x.requires_grad else kind',
            "return kind",
            "tests/blended_kl/test_blended_kl_learned.py::test_a_plan_for_constants_is_not_taken_for_what_is_learned[cpu]",
        ),
        (
            "the reference gets the number of an alpha that is learned",
            "problem._replace(**values)",
            "problem",
            "tests/blended_kl/test_blended_kl_learned.py::test_the_reference_gives_all_of_them_the_gradient_of_finite_differences",
        ),
        (
            "a plan is found for tensors of other strides",
            "return x.shape, x.stride(), x.dtype,",
            "return x.shape, x.dtype,",
            PLAN + "test_any_sequence_of_calls_gives_the_bits_of_calls_looked_at_anew",
        ),
        (
            "a plan is found for another grad mode",
            "_of_tensor(logits), torch.is_grad_enabled(),",
            "_of_tensor(logits),",
            PLAN + "test_any_sequence_of_calls_gives_the_bits_of_calls_looked_at_anew",
        ),
        (
            "a plan is found for other settings",
            "            temperature, type(ignore_index),",
            "            type(ignore_index),",
            PLAN + "test_any_sequence_of_calls_gives_the_bits_of_calls_looked_at_anew",
        ),
        (
            "a plan is found for another encoding of the soft targets",
            "None if soft is None else _of_table(soft),",
            "soft is None,",
            PLAN + "test_any_sequence_of_calls_gives_the_bits_of_calls_looked_at_anew",
        ),
        (
            "values are checked in the first call of a kind only",
            "        alpha, past_weight = numbers(given)",
            "        alpha, past_weight = (0.5, 1.0) if self.launch else numbers(given)",
            PLAN + "test_a_call_that_finds_a_plan_raises_what_a_first_call_does",
        ),
        (
            "plans are kept without a limit",
            "if len(_plans) >= MOST_PLANS:",
            "if False:",
            PLAN + "test_there_are_only_so_many_plans_and_threads_may_make_them",
        ),
        (
            "a plan is found for an ignore_index that is no int",
            "type(ignore_index), ",
            "",
            PLAN + "test_a_call_that_finds_a_plan_raises_what_a_first_call_does",
        ),
        (
            "a plan is found for logits that are to be negated",
            "x.requires_grad, x.is_neg()",
            "x.requires_grad",
            PLAN + "test_a_plan_of_plain_logits_is_not_that_of_negated_ones",
        ),
        (
            "labels of another dtype go to the kernel as they are",
            "problem.logits is given[0] and problem.target is given[1] and",
            "problem.logits is given[0] and",
            PLAN + "test_any_sequence_of_calls_gives_the_bits_of_calls_looked_at_anew",
        ),
        (
            "a launch in backward is found for tensors of other strides",
            "strides = tuple(x.stride() for x in flatten(problem) if isinstance(x, Tensor))",
            "strides = ()",
            PLAN + "test_hooks_may_give_back_what_lies_otherwise_in_memory",
        ),
    ],
    "toast_kernels/native.py": [
        (
            "columns of another stride are read as contiguous",
            "if tensor.stride(1) == 1 or tensor.shape[1] == 1 else tensor.contiguous()",
            "",
            "tests/blended_kl/test_blended_kl_layouts.py",
        ),
    ],
    "toast_kernels/arguments.py": [
        (
            "a lam that is learned passes for a constant",
            '{"lam": target[2]}',
            "{}",
            "tests/blended_kl/test_blended_kl_learned.py::test_auto_raises_too",
        ),
        (
            "integer tables of another layout are read as contiguous",
            "return tensor if tensor.is_contiguous() else tensor.contiguous()",
            "return tensor",
            "tests/blended_kl/test_blended_kl_layouts.py",
        ),
    ],
    "toast_kernels/blended_kl/reference.py": [
        (
            "the loss has torch's default dtype",
            "row_weight.new_ones(())",
            "1",
            "tests/library/test_defaults.py",
        ),
        (
            "the reference's past term lacks T^2",
            "past_rows = temperature**2 *",
            "past_rows = temperature *",
            "tests/blended_kl/test_blended_kl_formula.py::test_loss_and_gradient_by_hand",
        ),
        (
            "the reference's mean over weights of 0 has a gradient",
            "row_loss.sum() / torch.where(nothing, 1, divisor)",
            "row_loss.sum() / divisor",
            "tests/blended_kl/test_blended_kl_cross_entropy.py::"
            "test_the_mean_over_weights_of_0_is_nan_and_has_no_gradient",
        ),
    ],
    "toast_kernels/medoids/reference.py": [
        (
            "the reference takes the largest cost",
            "cost.min() * (1 + TIE)",
            "cost.max() * (1 + TIE)",
            "tests/medoids/test_medoids.py::test_equals_scipy",
        ),
    ],
}
