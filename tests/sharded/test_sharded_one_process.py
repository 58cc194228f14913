"""What losses over a process group do, or do not, in a process that is all of it."""

import re

import pytest
import torch
import torch.distributed as dist
from torch.fx.experimental.proxy_tensor import make_fx

from toast_kernels import linear_toast_loss, toast_loss

pytestmark = pytest.mark.usefixtures("world_of_one")
LABELS = torch.tensor([0, 3, -100, 2])
LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
CALLS = {
    "toast_loss": lambda z, group="world": toast_loss(z, LABELS, past=LOGITS, process_group=group),
    "linear_toast_loss": lambda z, group="world": linear_toast_loss(z, LOGITS, LABELS, process_group=group),
}
GIVEN = {"toast_loss": LOGITS * 2, "linear_toast_loss": LOGITS * 3}


@pytest.fixture(params=CALLS)
def name(request):
    return request.param


@pytest.fixture
def call(name):
    return CALLS[name]


@pytest.fixture
def z(name):
    return GIVEN[name].clone().requires_grad_()


def test_a_compiler_leaves_them_alone(call, z):
    compiled = torch.compile(lambda x: 2 * call(2 * x), backend="eager")
    for found, wanted in zip(gradient(compiled, z), gradient(lambda x: 2 * call(2 * x), z), strict=True):
        torch.testing.assert_close(found, wanted)


def test_one_rank_has_the_loss_of_no_group(call, z):
    for found, wanted in zip(gradient(call, z), gradient(lambda x: call(x, None), z), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_row_of_nothing_but_minus_infinity_is_nan(name):
    z = torch.zeros(4, 5)
    z[0] = -torch.inf
    of = {
        "toast_loss": lambda z, group: toast_loss(z, LABELS, process_group=group),
        "linear_toast_loss": lambda z, group: linear_toast_loss(LOGITS, z.mT.new_zeros(5, 5), LABELS, z[0],
            process_group=group),
    }[name]  # fmt: skip
    found, wanted = (gradient(lambda x, group=group: of(x, group), z.requires_grad_()) for group in ("world", None))
    torch.testing.assert_close(found, wanted, equal_nan=True)
    assert found[1][0].isnan().all()


def gradient(function, z):
    loss = function(z)
    return loss.detach(), torch.autograd.grad(loss, z)[0]


def test_no_second_derivative(call, z):
    with pytest.raises(RuntimeError, match="create_graph=True is for a second derivative"):
        torch.autograd.grad(call(z), z, create_graph=True)


def test_no_batched_upstream(call, z):
    with pytest.raises(NotImplementedError, match="one upstream gradient at a time"):
        torch.autograd.grad(call(z), z, torch.ones(3), is_grads_batched=True)


def test_not_traced(call, z):
    with pytest.raises(RuntimeError, match="over a process group runs eagerly"):
        make_fx(lambda x: call(x))(z.detach())


def test_a_process_outside_of_the_group(call, z):
    with pytest.raises(ValueError, match="must be a group that this process is a member of"):
        call(z, dist.GroupMember.NON_GROUP_MEMBER)


@pytest.mark.parametrize("group", ["everyone", 3])
def test_no_process_group(call, z, group):
    with pytest.raises(ValueError, match=re.escape(f'must be a process group, "world" or None, got {group!r}')):
        call(z, group)


def test_no_process_group_yet(call, z, monkeypatch):
    """Each process would take its own slice for all of the classes."""
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match=r"process_group must be None .*init_process_group was not called"):
        call(z)
    assert call(z, None).isfinite()


def test_no_classes():
    with pytest.raises(ValueError, match="logits must have at least one class on one of the ranks"):
        toast_loss(LOGITS[:, :0], LABELS, process_group="world")
