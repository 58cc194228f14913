"""Faults of the losses whose classes lie over ranks."""

LOSS = "tests/sharded/test_sharded_toast_loss.py::"
LINEAR = "tests/sharded/test_sharded_linear.py::"
ONE_PROCESS = LOSS + "test_ranks_have_the_loss_of_one_process_and_their_slice_of_its_gradient"
SPECIAL = LOSS + "test_special_values"
DTENSORS = "tests/sharded/test_sharded_dtensors.py::"
SAID = "tests/sharded/test_sharded_failures.py::test_what_is_wrong_on_a_rank_is_an_error_on_all"

FAULTS = {
    "toast_kernels/sharded/exchange.py": [
        (
            "the features' gradient is left to each rank",
            "return own if self.size == 1 else self.ranks.all_reduce(own)",
            "return own",
            LINEAR + "test_ranks_have_the_loss_and_gradients_of_one_process",
        ),
        (
            "without a process group a slice is all of the classes",
            "if not (dist.is_available() and dist.is_initialized()):",
            "if False:",
            "tests/sharded/test_sharded_one_process.py::test_no_process_group_yet",
        ),
        ("a rank's own part is taken for the loss", "return parts[:, 1:].sum(0)", "return own", ONE_PROCESS),
        ("a rank that fails keeps it to itself", "if failed:", "if False:", SAID),
        ("ranks may be given different labels", "if differs:", "if False:", SAID),
        ("ranks may differ in settings", "if (digests != digest).any():", "if False:", SAID),
        (
            "what all ranks are told alike is not an error of its kind",
            "if len(set(said)) == 1:",
            "if False:",
            SAID,
        ),
    ],
    "toast_kernels/sharded/loss.py": [
        (
            "over ranks a second derivative is 0 in silence",
            "        reject_second_derivative()\n",
            "",
            "tests/sharded/test_sharded_one_process.py::test_no_second_derivative",
        ),
        (
            "slices begin where equal ones would",
            "slice_ = Slice(sum(widths[: exchange.rank]), width,",
            "slice_ = Slice(width * exchange.rank, width,",
            ONE_PROCESS,
        ),
        (
            "all rows are worked on at once",
            "return max(1, elements // max(1, logits.shape[1]))",
            "return max(1, len(logits))",
            "tests/sharded/test_sharded_memory.py::test_forward_and_backward_hold_one_gradient",
        ),
    ],
    "toast_kernels/sharded/rows.py": [
        (
            "each rank has a softmax of its own",
            'logsumexp = given["logsumexp"].logsumexp(0)',
            'logsumexp = given["logsumexp"][rank]',
            ONE_PROCESS,
        ),
        (
            "each rank has a softmax of its own at the temperature",
            'at_temperature, of_past = given["at_temperature"].logsumexp(0),',
            'at_temperature, of_past = given["at_temperature"][rank],',
            ONE_PROCESS,
        ),
        (
            "each rank's largest logit is the largest",
            'given["max"].argmax(0, keepdim=True)',
            'given["max"].argmax(0, keepdim=True).fill_(rank)',
            ONE_PROCESS,
        ),
        (
            "smoothing is spread over the slice",
            "eps / own.num_classes, eps\n",
            "eps / max(1, own.width), eps\n",
            ONE_PROCESS,
        ),
        (
            "class weights are those of the first slice",
            "smoothing * weight[own.start : own.start + own.width]",
            "smoothing * weight[: own.width]",
            ONE_PROCESS,
        ),
    ],
    "toast_kernels/sharded/tables.py": [
        (
            "a label of another rank falls on the first class",
            "return torch.where(here, column, 0), here",
            "return torch.where(here, column, 0), torch.ones_like(here)",
            ONE_PROCESS,
        ),
        (
            "soft targets are softened by each rank alone",
            "log_probabilities(mass, temperature, total)",
            "log_probabilities(mass, temperature, self.table.logsumexp[index].double())",
            ONE_PROCESS,
        ),
        (
            "a tail is shared with masked classes",
            "gradient -= tail if self.masked is None else torch.where(self.masked, 0, tail)",
            "gradient -= tail",
            SPECIAL,
        ),
        (
            "listed classes have a part of the tail too",
            "above = values - torch.where(has_tail, tail[:, None], 0)",
            "above = values",
            ONE_PROCESS,
        ),
        (
            "the entropy of a past is that of its listed classes",
            "torch.special.entr(self.values).sum(1) + self.unlisted * torch.special.entr(self.tail)",
            "torch.special.entr(self.values).sum(1)",
            ONE_PROCESS,
        ),
        (
            "ranks may differ in what a top-k table holds",
            "return torch.where(self.used, 1 + sum(held), 0)",
            "return self.used.double()",
            SAID,
        ),
        (
            "class weights may lie in another order on a rank",
            "((bits * places).sum(1) &",
            "(bits.sum(1) &",
            SAID,
        ),
    ],
    "toast_kernels/sharded/labels.py": [
        (
            "a row of -inf alone has a gradient of 0",
            " | ~known.logsumexp.isfinite())",
            ")",
            "tests/sharded/test_sharded_one_process.py::test_a_row_of_nothing_but_minus_infinity_is_nan",
        ),
        (
            "the kernel's softmax stays that of the slice",
            "upstream = of_class * known.mass * (known.own_logsumexp - known.logsumexp).exp()",
            "upstream = of_class * known.mass",
            ONE_PROCESS,
        ),
        (
            "the gradient at the label stays the kernel's",
            "gradient.scatter_(1, column[:, None], at_label[:, None])",
            "pass",
            ONE_PROCESS,
        ),
    ],
    "toast_kernels/sharded/dtensor.py": [
        (
            "any placement passes for the classes'",
            "if len(x.placements) != 1 or not x.placements[0].is_shard(dim):",
            "if len(x.placements) != 1:",
            DTENSORS + "test_other_placements_are_an_error",
        ),
        (
            "kernels get logits that are not there yet",
            'x.trigger_wait() if hasattr(x, "trigger_wait") else x',
            "x",
            DTENSORS + "test_dtensors_that_are_still_under_way",
        ),
    ],
    "toast_kernels/sharded/linear.py": [
        (
            "a group beside that of a DTensor's mesh is taken",
            'check_one_group("linear_weight", linear_weight, process_group)',
            "pass",
            LINEAR + "test_what_is_wrong_on_a_rank_is_an_error_on_all",
        ),
        (
            "a rank that fails in backward leaves others a gradient without its part",
            "    ctx.exchange.settle()\n    return gradients",
            "    return gradients",
            LINEAR + "test_what_is_wrong_on_a_rank_is_an_error_on_all",
        ),
        (
            "all chunks have the totals of the first",
            "return torch.cat(parts)",
            "return torch.cat(parts[:1] * len(parts))[: sum(map(len, parts))]",
            LINEAR + "test_ranks_have_the_loss_and_gradients_of_one_process",
        ),
    ],
}
