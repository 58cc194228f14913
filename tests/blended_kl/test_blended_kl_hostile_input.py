"""Values and transforms nobody should pass, which must neither crash nor give a wrong number in silence."""

import pytest
import torch
import torch.nn.functional as F
from blended_kl_cases import toast_loss as toast_loss_on
from torch.autograd import forward_ad

from toast_kernels import SoftTargets, ToastLoss, toast_loss

LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2, 3, 4, 1])


@pytest.mark.parametrize("bad", [float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_class_weight_that_is_not_finite_is_taken_as_cross_entropy_takes_it(bad, reduction, backend):
    weight = torch.ones(5)
    weight[1] = bad
    expected = F.cross_entropy(LOGITS, TARGET, weight, reduction=reduction)
    loss = toast_loss(LOGITS, TARGET, weight, reduction=reduction, backend=backend)
    torch.testing.assert_close(loss, expected, equal_nan=True)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_the_weight_of_a_label_that_has_no_share_does_not_count(kernel, bad, reduction):
    weight = torch.tensor([bad, 1.0, 2.0, 0.5, 1.0])
    target, other = 1 + torch.arange(6) % 4, torch.zeros(6, dtype=torch.int64)
    expected = F.cross_entropy(LOGITS, target, weight, reduction=reduction)
    for pair in ((target, other, 1.0), (other, target, torch.zeros(6))):
        loss = toast_loss_on(LOGITS, pair, weight, reduction=reduction, backend=kernel)
        torch.testing.assert_close(loss, expected)


def test_tiny_class_weights_do_not_crash():
    loss = toast_loss(LOGITS.double(), TARGET, torch.full((5,), 1e-310, dtype=torch.float64))
    assert loss.dim() == 0


@pytest.mark.parametrize("lam", [float("nan"), float("inf"), -0.1, 2.0], ids=str)
def test_lam_out_of_range_is_refused_as_a_tensor_too(lam):
    for value in (torch.tensor(lam), torch.full((6,), lam)):
        with pytest.raises(ValueError, match=r"lam\) must be in \[0, 1\], got"):
            toast_loss(LOGITS, (TARGET, TARGET, value))


@pytest.mark.parametrize("name", ["temperature", "label_smoothing"])
def test_settings_to_be_learned_are_numbers_where_nothing_is(name):
    value = torch.tensor(0.5, requires_grad=True)
    with torch.no_grad():
        found = toast_loss(LOGITS, TARGET, past=LOGITS, **{name: value})
    assert found == toast_loss(LOGITS, TARGET, past=LOGITS, **{name: 0.5})


@pytest.mark.parametrize("name", ["alpha", "past_weight"])
def test_a_scalar_on_another_device_is_refused(name):
    soft = SoftTargets.from_logits(torch.randn(5, 5))
    numbers = {"alpha": 0.5, name: torch.tensor(0.5, device="meta")}
    with pytest.raises(ValueError, match=f"{name} must be on the device of logits"):
        toast_loss(LOGITS, TARGET, soft_targets=soft, past=LOGITS, **numbers)


def test_function_transforms_raise_and_do_not_drop_the_gradient():
    with pytest.raises(RuntimeError, match=r"have no torch\.func transforms"):
        torch.vmap(toast_loss)(LOGITS[None], TARGET[None])
    with pytest.raises(RuntimeError, match=r"have no torch\.func transforms"):
        torch.func.grad(lambda z: toast_loss(z, TARGET))(LOGITS)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError):
        toast_loss(forward_ad.make_dual(LOGITS, torch.ones_like(LOGITS)), TARGET)
    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(NotImplementedError):
        toast_loss(forward_ad.make_dual(LOGITS, torch.ones_like(LOGITS)), TARGET)


def test_a_damaged_table_is_refused():
    state = SoftTargets.from_logits(torch.randn(5, 5), top_k=2).state_dict()
    for name in ("filled", "entropy", "indices"):
        with pytest.raises(ValueError, match=f"{name} must have shape"):
            SoftTargets.from_state_dict(state | {name: state[name][:1]})


def test_the_module_names_a_wrong_shape():
    with pytest.raises(ValueError, match=r"logits must have shape \[N, C\]"):
        ToastLoss(5)(LOGITS[0], TARGET[0])
