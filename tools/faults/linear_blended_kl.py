"""Faults of the loss in chunks."""

VALUES = "tests/linear_blended_kl/test_linear_toast_loss.py::"
AUTOGRAD = "tests/linear_blended_kl/test_linear_toast_loss_autograd.py::"
COMPILE = "tests/linear_blended_kl/test_linear_toast_loss_compile.py::"
ODD = VALUES + "test_odd_sizes_and_chunks"

FAULTS = {
    "toast_kernels/linear_blended_kl/chunks.py": [
        (
            "a chunk's last row is dropped",
            "rows = slice(start, min(start + settings.chunk_rows, len(x)))",
            "rows = slice(start, min(start + max(1, settings.chunk_rows - 1), len(x)))",
            ODD,
        ),
        (
            "the last rows, less than a chunk, are dropped",
            "for start in range(0, len(x), settings.chunk_rows):",
            "for start in range(0, len(x) - len(x) % settings.chunk_rows or 1, settings.chunk_rows):",
            ODD,
        ),
        ("each chunk is divided by its own weights", 'if problem.reduction != "mean":', "if True:", ODD),
        (
            "the past is divided by what the labels are",
            "number(problem.past_weight * divisor / rows_with_past.clamp(min=1))",
            "problem.past_weight",
            VALUES + "test_every_dtype_reduction_and_past",
        ),
        (
            "the bias gets the gradient of one chunk",
            "if settings.need_bias:",
            "if settings.need_bias and start == 0:",
            ODD,
        ),
        (
            "the weight gets the gradient of the last chunk",
            "beta=0 if is_first else 1",
            "beta=0",
            ODD,
        ),
        (
            "a chunk's past is that of the first rows",
            "past_index=past_index,",
            "past_index=problem.past_index,",
            VALUES + "test_every_dtype_reduction_and_past",
        ),
        (
            "ignored rows count in the mean over chunks",
            "row_weight += torch.where(kept, share, 0)",
            "row_weight += share",
            VALUES + "test_weights_and_smoothing",
        ),
        (
            "a weight that is not finite counts where its label has no share",
            "torch.where(share != 0, share * of_label, 0)",
            "share * of_label",
            VALUES + "test_the_weight_of_a_label_without_a_share_does_not_count",
        ),
        (
            "smoothing gives mass where no row has weight",
            "torch.where(nothing, 0, problem.weight)",
            "problem.weight",
            VALUES + "test_nothing_to_average",
        ),
        (
            "a chunk's gradient takes memory of its own",
            "Launch(problem, _OverLogits)",
            "Launch(problem)",
            AUTOGRAD + "test_memory_is_that_of_the_gradients_and_a_chunk",
        ),
        (
            "a chunk's gradient is held while the next one is computed",
            "        del gradient",
            "        pass",
            AUTOGRAD + "test_memory_where_the_gradient_has_its_own",
        ),
        (
            "products of another dtype are added whole",
            "step = max(1, gradient.numel() * gradient.element_size() // max(1, bytes_a_class))",
            "step = len(total)",
            AUTOGRAD + "test_products_of_another_dtype_are_added_in_blocks",
        ),
        (
            "the first product of another dtype is added to what was in memory",
            "block.copy_(product) if is_first else block.add_(product)",
            "block.add_(product)",
            AUTOGRAD + "test_products_of_another_dtype_are_added_in_blocks",
        ),
        (
            "logsumexps are all at 1",
            "logsumexp = softmax_statistics(z, temperature)[0]",
            "logsumexp = softmax_statistics(z, 1.0)[0]",
            VALUES + "test_stats_and_predictions",
        ),
    ],
    "toast_kernels/linear_blended_kl/op.py": [
        (
            "the gradients of the chunks do not see the upstream",
            "times_upstream(kept(ctx), upstream, ctx.settings.backend)",
            "kept(ctx)",
            AUTOGRAD + "test_upstream_and_retain_graph",
        ),
        (
            "an upstream in negative memory is read as it lies where the chunks run again",
            "upstream = upstream.resolve_neg().to(problem.dtype)",
            "upstream = upstream.to(problem.dtype)",
            "tests/library/test_operands.py::test_negated_upstream",
        ),
        (
            "the chunks run again without the upstream",
            "problem._replace(upstream=upstream,",
            "problem._replace(upstream=None,",
            AUTOGRAD + "test_upstream_and_retain_graph",
        ),
        (
            "a second derivative of the chunked loss is 0 in silence",
            '        reject_second_derivative("linear_toast_loss")\n        if',
            "        if",
            AUTOGRAD + "test_a_second_derivative_raises",
        ),
        (
            "compilers think that the loss is float64",
            "return none_as_empty(result._replace(loss=result.loss.to(problem.dtype)), problem.logits)",
            "return none_as_empty(result, problem.logits)",
            COMPILE + "test_opcheck",
        ),
        (
            "the device meta runs the chunks",
            "if is_traced() or problem.logits.is_meta:",
            "if is_traced():",
            COMPILE + "test_the_device_meta",
        ),
    ],
    "toast_kernels/linear.py": [
        (
            "labels without values are looked at",
            'if x.device.type == "cpu" and not is_traced():',
            'if x.device.type == "cpu" and not torch.compiler.is_compiling():',
            COMPILE + "test_fake_tensors",
        ),
        (
            "a learned weight silently gets no gradient",
            "if grad and (names := learned(given)):",
            "if False:",
            "tests/linear_blended_kl/test_linear_toast_loss_errors.py::test_the_message_names_argument_expectation_and_value",
        ),
        (
            "frozen tensors get gradients",
            "[grad and tensor is not None and tensor.requires_grad for",
            "[grad and tensor is not None for",
            AUTOGRAD + "test_what_is_frozen_costs_nothing",
        ),
        (
            "sums over chunks are rounded to the features' dtype",
            "return acc_dtype or wide",
            "return acc_dtype or dtype",
            VALUES + "test_1024_chunks_in_bfloat16",
        ),
        (
            "position t is scored against its own label",
            "= x[..., shift:]",
            "= x[..., : max(0, shape[-1] - shift)]",
            VALUES + "test_shift",
        ),
        (
            "temperatures are exchanged",
            "[1.0, problem.temperature, soft_temperature]",
            "[1.0, soft_temperature, problem.temperature]",
            VALUES + "test_stats_and_predictions",
        ),
        (
            "the budget is overrun by a row",
            "most = chunk_bytes // row",
            "most = chunk_bytes // row + 8",
            AUTOGRAD + "test_forward_alone_holds_a_chunk",
        ),
    ],
}
