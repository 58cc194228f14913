"""toast_loss of DTensors sharded on the class dimension, on real ranks; other placements are an error."""

import re

import pytest
import ranks
import torch
from sharded_cases import CLASSES, IMAGE, LABELS, error_of
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh

from toast_kernels import toast_loss

OTHER_RANK = 2  # whose placement is not the others'


def every_case(rank, size):
    """Of 13 and of 5 classes, of which the last rank has 1 and none; and what is said of other placements."""
    mesh, found = init_device_mesh("cpu", (4,)), {}
    for classes in (CLASSES, 5):
        z = distribute_tensor(IMAGE[0, :classes].flatten(1).T.contiguous(), mesh, [Shard(1)]).requires_grad_()
        past = distribute_tensor(2 * IMAGE[0, :classes].flatten(1).T.contiguous(), mesh, [Shard(-1)])
        labels = distribute_tensor(LABELS[0].flatten() % classes, mesh, [Replicate()])
        loss = toast_loss(z, labels, past=past)
        loss.backward()
        assert z.grad.placements == (Shard(1),)
        found[classes] = loss.detach(), z.grad.full_tensor()
    x = IMAGE[0].flatten(1).T.div(4).requires_grad_()
    z = DTensor.from_local(x, mesh, [Partial()]).redistribute(placements=[Shard(1)], async_op=True)
    labels = distribute_tensor(LABELS[0].flatten(), mesh, [Shard(0)]).redistribute(
        placements=[Replicate()], async_op=True
    )
    loss = toast_loss(z, labels)
    found["under way"] = loss.detach(), torch.autograd.grad(loss, x)[0]
    plane = init_device_mesh("cpu", (2, 2))
    whole = torch.zeros(4, 8)
    for name, of, placements in (
        ("rows", mesh, [Shard(0)]),
        ("replicated", mesh, [Replicate()]),
        ("plane", plane, [Shard(0), Shard(1)]),
    ):
        z = distribute_tensor(whole, of, placements)
        found[name] = error_of(lambda z=z: toast_loss(z, torch.arange(4)))
    z = distribute_tensor(whole, mesh, [Shard(1)])
    found["two groups"] = error_of(lambda: toast_loss(z, torch.arange(4), process_group="world"))
    labels = distribute_tensor(torch.arange(4), mesh, [Shard(0)])
    found["labels"] = error_of(lambda: toast_loss(z, labels))
    z = DTensor.from_local(z.to_local(), mesh, [Replicate() if rank == OTHER_RANK else Shard(1)], run_check=False)
    found["one rank's"] = error_of(lambda: toast_loss(z, torch.arange(4)))
    return found


@pytest.fixture(scope="module")
def found():
    return ranks.run(__name__, "every_case", 4)


@pytest.mark.parametrize("classes", [CLASSES, 5])
def test_dtensors_sharded_on_the_class_dimension(found, classes):
    z = IMAGE[0, :classes].flatten(1).T.clone().requires_grad_()
    loss = toast_loss(z, LABELS[0].flatten() % classes, past=2 * z.detach(), backend="reference")
    loss.backward()
    for rank in range(4):
        torch.testing.assert_close(found[rank][classes], (loss.detach(), z.grad))


def test_dtensors_that_are_still_under_way(found):
    z = IMAGE[0].flatten(1).T.clone().requires_grad_()
    loss = toast_loss(z, LABELS[0].flatten(), backend="reference")
    loss.backward()
    for rank in range(4):
        torch.testing.assert_close(found[rank]["under way"], (loss.detach(), z.grad))


OTHER_DTENSORS = {
    "rows": r"logits must be a DTensor sharded on its class dimension, 1, got \(Shard\(dim=0\),\)",
    "replicated": r"logits must be a DTensor sharded on its class dimension, 1, got \(Replicate\(\),\)",
    "plane": "logits must be a DTensor on a mesh of one dimension, over which its classes lie, got one of 2; .*",
    "two groups": "process_group must be None where logits is a DTensor: it is that of the mesh",
    "labels": r"target must be a replicated DTensor or a tensor, got \(Shard\(dim=0\),\)",
}
ONE_RANKS = r"RuntimeError: rank 2 failed with ValueError: logits must be .*, 1, got \(Replicate\(\),\)"


@pytest.mark.parametrize("what", OTHER_DTENSORS)
def test_other_placements_are_an_error(found, what):
    for rank in range(4):
        assert re.fullmatch(f"ValueError: {OTHER_DTENSORS[what]}", found[rank][what])
        assert re.fullmatch(ONE_RANKS, found[rank]["one rank's"])
