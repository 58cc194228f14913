"""Bad input of linear_toast_loss: each message names the argument, what was expected and what came."""

import pytest
import torch
from torch.autograd import forward_ad

from toast_kernels import SoftTargets, linear_toast_loss

B, T, D, C = 2, 3, 4, 5
X = torch.zeros(B, T, D)
WEIGHT = torch.zeros(C, D)
BIAS = torch.zeros(C)
TARGET = torch.zeros(B, T, dtype=torch.int64)
PROBABILITIES = torch.full((B, T, C), 0.2)
PAST = SoftTargets.from_logits(torch.zeros(3, C), 3.0)
ROW = C * 4

# id: (arguments that differ from linear_toast_loss(X, WEIGHT, TARGET, BIAS), exception, message)
WRONG = {
    "input of integers": ({"input": X.long()}, TypeError, r"input must be a float64, .* got a torch.int64 tensor"),
    "input 0-d": ({"input": torch.tensor(1.0)}, ValueError, r"input must have shape \[..., D\], got \[\]"),
    "weight not a tensor": ({"linear_weight": None}, TypeError, r"linear_weight must be .* tensor, got NoneType"),
    "weight of another width": (
        {"linear_weight": torch.zeros(C, D + 1)}, ValueError,
        r"linear_weight must have shape \[C, D\] with C >= 1 and D = 4 \(from input\), got \[5, 5\]",
    ),
    "weight without classes": ({"linear_weight": torch.zeros(0, D)}, ValueError, r"C >= 1 .* got \[0, 4\]"),
    "weight of another dtype": (
        {"linear_weight": WEIGHT.bfloat16()}, TypeError,
        r"linear_weight must have the dtype of input, torch.float32, got torch.bfloat16",
    ),
    "weight elsewhere": (
        {"linear_weight": WEIGHT.to("meta")}, ValueError, r"linear_weight must be on the device of input, cpu, got meta"
    ),
    "bias of another size": (
        {"linear_bias": torch.zeros(C + 1)}, ValueError, r"linear_bias must have shape \[C\] with C = 5 .* got \[6\]"
    ),
    "bias of another dtype": ({"linear_bias": BIAS.double()}, TypeError, r"linear_bias must have the dtype of input"),
    "target flattened": ({"target": TARGET.flatten()}, ValueError, r"target must have shape \[2, 3\] .* got \[6\]"),
    "probabilities of another shape": (
        {"target": PROBABILITIES[..., :-1]}, ValueError,
        r"target of class probabilities must have shape \[2, 3, 5\] \(from input\), got \[2, 3, 4\]",
    ),
    "probabilities to be learned": (
        {"target": PROBABILITIES.clone().requires_grad_()}, ValueError, r"target must not require grad"
    ),
    "weight that requires grad": (
        {"weight": torch.ones(C).requires_grad_()}, ValueError,
        "weight must not require grad: linear_toast_loss gives it no gradient",
    ),
    "soft_targets without alpha": (
        {"soft_targets": SoftTargets.empty(C, C)}, ValueError, "alpha must be given with soft_targets"
    ),
    "alpha that requires grad": (
        {"alpha": torch.tensor(0.5, requires_grad=True), "soft_targets": SoftTargets.empty(C, C)}, ValueError,
        "alpha must not require grad",
    ),
    "past_weight that requires grad": (
        {"past_weight": torch.tensor(0.5, requires_grad=True), "past": PAST, "past_index": TARGET}, ValueError,
        "past_weight must not require grad",
    ),
    "lam that requires grad": (
        {"target": (TARGET, TARGET, torch.tensor(0.5, requires_grad=True))}, ValueError, "lam must not require grad"
    ),
    "a pair's labels flattened": (
        {"target": (TARGET, TARGET.flatten(), 0.5)}, ValueError, r"target\[1\] must have shape \[2, 3\] .* got \[6\]"
    ),
    "a pair of two": ({"target": (TARGET, TARGET)}, ValueError, r"target as a tuple must be \(y_a, y_b, lam\), got 2"),
    "target None": ({"target": None}, TypeError, r"target must be a tensor or a triple .* got NoneType"),
    "label out of range": (
        {"target": torch.tensor([[0, 1, 2], [3, 4, 5]])}, IndexError, r"target\[5\] = 5 is out of range \[0, 5\)"
    ),
    "past_index out of range": (
        {"past": PAST, "past_index": TARGET + 3}, IndexError, r"past_index\[0\] = 3 is out of range \[0, 3\)"
    ),
    "past_index flattened": (
        {"past": PAST, "past_index": TARGET.flatten()}, ValueError, r"past_index must have shape \[2, 3\] .* got \[6\]"
    ),
    "past of other classes": ({"past": torch.zeros(6, C + 1)}, ValueError, r"past must have C = 5 classes .* got 6"),
    "negative shift": ({"shift": -1}, ValueError, r"shift must be an int >= 0, got -1"),
    "shift of a fraction": ({"shift": 0.5}, TypeError, r"shift must be an int >= 0, got 0.5"),
    "shift of probabilities": (
        {"target": PROBABILITIES, "shift": 1}, ValueError, r"shift = 1 needs labels .* got a torch.float32 tensor"
    ),
    "top_k of more than all": (
        {"return_top_k": C + 1}, ValueError, r"return_top_k must be an int in \[1, 5\] or None, got 6"
    ),
    "top_k of nothing": ({"return_top_k": 0}, ValueError, r"return_top_k must be an int in \[1, 5\] .* got 0"),
    "top_k a bool": ({"return_top_k": True}, TypeError, r"return_top_k must be an int in \[1, 5\] .* got True"),
    "soft_temperature": ({"soft_temperature": 0.0}, ValueError, r"soft_temperature must be a number in .* got 0.0"),
    "a budget too small for one row": (
        {"chunk_bytes": ROW - 1}, ValueError,
        r"chunk_bytes must be at least 20, what one row of 5 logits needs, got 19",
    ),
    "a budget of text": ({"chunk_bytes": "1 MB"}, TypeError, r"chunk_bytes must be an int or None, got '1 MB'"),
    "acc_dtype": (
        {"acc_dtype": torch.bfloat16}, ValueError,
        r"acc_dtype must be torch.float32 where products are in torch.float32, or None, got torch.bfloat16",
    ),
    "soft targets of other classes": (
        {"soft_targets": SoftTargets.empty(C + 1, C + 1)}, ValueError, r"soft_targets must have one row .* C = 5"
    ),
    "backend": ({"backend": "quick"}, ValueError, r"backend must be one of 'auto', .* got 'quick'"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "exception", "message"), WRONG.values(), ids=WRONG)
def test_the_message_names_argument_expectation_and_value(changes, exception, message):
    good = {"input": X, "linear_weight": WEIGHT, "target": TARGET, "linear_bias": BIAS}
    linear_toast_loss(**good)
    with pytest.raises(exception, match=message):
        linear_toast_loss(**{**good, **changes})


def test_one_row_is_budget_enough():
    assert linear_toast_loss(X, WEIGHT, TARGET, BIAS, chunk_bytes=ROW).isfinite()


def test_transforms_are_refused():
    with pytest.raises(RuntimeError, match=r"no torch\.func transforms"):
        torch.func.grad(lambda x: linear_toast_loss(x, WEIGHT, TARGET))(X)


def test_forward_mode_is_refused():
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode AD"):
        linear_toast_loss(forward_ad.make_dual(X.clone().requires_grad_(), X), WEIGHT, TARGET)
