"""toast_loss of logits whose classes lie over ranks, on real ranks, against one process."""

from unittest import mock

import pytest
import ranks
import torch
import torch.distributed as dist
from blended_kl_cases import Case, assert_runs_as_good, in_truth, run
from sharded_cases import CLASSES, IMAGE, LABELS, ROWS, WIDTHS, slice_of, slice_of_table

from toast_kernels import SoftTargets, toast_loss
from toast_kernels.sharded import loss as sharded_loss

GROUPS = {"two": [1, 3], "three": [0, 2, 3], "four": [0, 1, 2, 3]}  # of the four processes


CASES = {
    "labels": Case(ROWS, CLASSES),
    "labels, weights": Case(ROWS, CLASSES, weighted=True, reduction="sum"),
    "smoothing": Case(ROWS, CLASSES, label_smoothing=0.2),
    "smoothing, weights": Case(ROWS, CLASSES, weighted=True, label_smoothing=0.2, reduction="none"),
    "probabilities": Case(ROWS, CLASSES, target="probabilities", weighted=True, label_smoothing=0.1),
    "pairs": Case(ROWS, CLASSES, soft="dense", target="mixup", weighted=True, label_smoothing=0.1),
    "pairs of logits": Case(ROWS, CLASSES, soft="logits", target="mixup", past="dense"),
    "past logits": Case(ROWS, CLASSES, soft="dense", past="logits", past_weight=0.7),
    "past logits at 1": Case(ROWS, CLASSES, past="logits", temperature=1.0, reduction="none"),
    "past of bfloat16": Case(ROWS, CLASSES, soft="bfloat16", past="bfloat16", reduction="sum"),
    "top-k": Case(ROWS, CLASSES, soft="top-k", past="top-k", label_smoothing=0.1),
    "top-k pairs": Case(ROWS, CLASSES, soft="top-k", past="logits", target="mixup", weighted=True),
    "float64": Case(ROWS, CLASSES, torch.float64, soft="top-k", past="dense"),
    "bfloat16": Case(ROWS, CLASSES, torch.bfloat16, soft="logits", past="logits", label_smoothing=0.1),
    "float16": Case(ROWS, CLASSES, torch.float16, soft="dense", past="logits"),
    "no rows": Case(0, CLASSES, soft="dense", past="logits"),
    "one row": Case(1, CLASSES, past="top-k"),
}
SPECIAL = (
    "one rank's labels",
    "masked",
    "a masked slice",
    "large",
    "NaN",
    "ignored NaN",
    "all ignored",
    "zero weights",
)


def special(name):
    """logits, target and keywords that no Case has."""
    case = CASES["top-k"] if name in ("masked", "a masked slice") else CASES["labels"]
    logits, target, keywords = case.arguments()
    if name == "one rank's labels":
        target = torch.where(target < 0, target, CLASSES - 1)
    elif name == "masked":
        logits[
            torch.arange(ROWS)[:, None], (target.clamp(min=0)[:, None] + torch.tensor([1, 5, 6])) % CLASSES
        ] = -torch.inf
        keywords |= {"label_smoothing": 0.0, "alpha": 0.0}
        keywords["past"] = SoftTargets.from_logits(logits[:4].clone(), 3.0, top_k=3)
        keywords["past_index"] = torch.arange(ROWS).where(torch.arange(ROWS) < 4, -1)
    elif name == "a masked slice":
        target = torch.where(target < 0, target, target % 6 + 7)
        logits[:, :6] = -torch.inf
        keywords = {"past": logits.clone(), "past_weight": 2.0}
    elif name == "large":
        logits += 1e4
        keywords = {"past": logits.flip(0), "temperature": 2.0}
    elif name == "NaN":
        logits[4, 2], logits[6, 12] = torch.nan, torch.inf
        keywords["reduction"] = "none"
    elif name == "ignored NaN":
        logits[1], logits[2, 0] = torch.nan, -torch.inf
        target[2] = 4
    elif name == "all ignored":
        target = torch.full_like(target, -100)
    elif name == "zero weights":
        keywords |= {"weight": torch.zeros(CLASSES), "label_smoothing": 0.1}
    return logits, target, keywords


def of_slice(own, logits, target, keywords):
    """What a rank is given of these."""
    if isinstance(target, torch.Tensor) and target.is_floating_point():
        target = target[:, own]
    return logits[:, own], target, {key: slice_of_table(x, own) for key, x in keywords.items()}


def sharded(own, group, logits, target, keywords, upstream):
    z, target, keywords = of_slice(own, logits, target, keywords)
    z = z.detach().clone().requires_grad_()
    loss, stats = toast_loss(z, target, return_stats=True, process_group=group, **keywords)
    loss.backward(upstream.to(loss.dtype))
    return loss.detach(), z.grad, stats


def every_case(rank, size):
    """All that is looked at below: to start processes takes longest."""
    torch.set_num_threads(1)
    groups = {name: dist.new_group(members) for name, members in GROUPS.items()}
    found = {}
    with mock.patch.dict(sharded_loss.CHUNK, cpu=20):  # of two rows to no more than five
        for name, members in GROUPS.items():
            if rank in members:
                own = slice_of(WIDTHS[name], members.index(rank))
                for case in CASES.values():
                    found[name, case] = sharded(own, groups[name], *case.arguments(), case.upstream())
                for what in SPECIAL:
                    found[name, what] = sharded(own, groups[name], *special(what), upstream_of(what))
    found["shapes"] = shapes(slice_of(WIDTHS["four"], rank), groups["four"])
    return found


def upstream_of(what):
    rows = (ROWS,) if what == "NaN" else ()
    return torch.linspace(0.5, 1.5, ROWS)[: ROWS if rows else 1].reshape(rows)


def shapes(own, group):
    """Of images and of one row: loss and gradient."""
    found = []
    for logits, labels, classes in ((IMAGE, LABELS, 1), (IMAGE[0, :, 0, 0], LABELS[0, 0, 0], 0)):
        z = logits.narrow(classes, own.start, own.stop - own.start).clone().requires_grad_()
        loss, stats = toast_loss(
            z, labels, past=z.detach() * 2, reduction="none", return_stats=True, process_group=group
        )
        twice = [torch.autograd.grad(loss.sum(), z, retain_graph=True)[0] for _ in range(2)]
        found.append((loss.detach(), twice[0], stats))
        assert torch.equal(*twice)
    return found


@pytest.fixture(scope="module")
def found():
    return ranks.run(__name__, "every_case", 4)


def of_all(found, group, what):
    """Loss, gradient and stats, of all ranks: the first and the last of them must be the same, bit for bit."""
    losses, gradients, stats = zip(*(found[rank][group, what] for rank in GROUPS[group]), strict=True)
    for others in ([loss[None] for loss in losses], *zip(*stats, strict=True)):
        assert all(torch.equal(x.nan_to_num(7), others[0].nan_to_num(7)) for x in others)
    return losses[0], torch.cat(gradients, 1), stats[0]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_ranks_have_the_loss_of_one_process_and_their_slice_of_its_gradient(found, group, case):
    logits, target, keywords = case.arguments()
    naive = run(logits, target, case.upstream(), keywords, "reference")
    assert_runs_as_good(of_all(found, group, case), naive, in_truth(logits, target, case.upstream(), keywords), case)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("what", SPECIAL)
def test_special_values(found, group, what):
    logits, target, keywords = special(what)
    loss, gradient, stats = of_all(found, group, what)
    wanted = run(logits.double(), target, upstream_of(what), keywords, "reference")
    tolerance = {"rtol": 1e-5, "atol": 1e-2 if what == "large" else 1e-5, "equal_nan": True, "check_dtype": False}
    torch.testing.assert_close(loss, wanted[0], **tolerance)
    torch.testing.assert_close(gradient, wanted[1], **tolerance | {"atol": 2e-4 if what == "large" else 1e-6})
    wanted[2].logsumexp[wanted[2].logsumexp == torch.inf] = torch.nan  # as kernels have it
    torch.testing.assert_close(tuple(stats), tuple(wanted[2]), **tolerance)


@pytest.mark.parametrize("which", [0, 1], ids=["images", "one row"])
def test_shapes(found, which):
    logits, labels = ((IMAGE, LABELS), (IMAGE[0, :, 0, 0], LABELS[0, 0, 0]))[which]
    z = logits.clone().requires_grad_()
    loss, stats = toast_loss(z, labels, past=2 * logits, reduction="none", return_stats=True, backend="reference")
    loss.sum().backward()
    for rank in range(4):
        own_loss, _, own_stats = found[rank]["shapes"][which]
        torch.testing.assert_close((own_loss, *own_stats), (loss.detach(), *stats))
    gradient = torch.cat([found[rank]["shapes"][which][1] for rank in range(4)], 1 - which)
    torch.testing.assert_close(gradient, z.grad)
