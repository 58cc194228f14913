"""ToastLoss on several ranks: under DistributedDataParallel, resumed, in groups of its own, and under DataParallel."""

import copy
import io
import re
import sys
import warnings

import pytest
import ranks
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel, replicate

from toast_kernels import MedoidBank, PredictionMemory, SoftTargets, ToastLoss, class_medoids

CLASSES, FEATURES, EPOCHS, SIZE = 5, 3, 4, 3
STOP = 2  # the epoch at whose begin a checkpoint is written
EARLY = ToastLoss(CLASSES)  # made before there is a process group


def batches(epoch, rank):
    """Two of a rank. In epoch 0 no row has the last class, and in epoch 1 all rows of rank 1 are ignored."""
    generator = torch.Generator().manual_seed(100 * epoch + rank)
    for size in (4, 8 + 9 * rank):
        labels = torch.randint(CLASSES - (epoch == 0), (size,), generator=generator)
        x = torch.randn(size, FEATURES, generator=generator)
        yield x, torch.full_like(labels, -100) if (epoch, rank) == (1, 1) else labels


class Training:
    def __init__(self):
        torch.manual_seed(0)
        self.model = DistributedDataParallel(nn.Linear(FEATURES, CLASSES))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.criterion = ToastLoss(CLASSES, alpha=0.6, reduction="sum")

    def parts(self):
        return self.model, self.optimizer, self.criterion

    def run(self, rank, first, at_begin=lambda _: None):
        """[(what was pooled, the table after it), ...] for the epochs from `first` on."""
        epochs, seen = [], []
        for epoch in range(first, EPOCHS):
            self.criterion.set_epoch(epoch, EPOCHS)
            if epoch > first:
                table = self.criterion.soft_targets
                epochs.append((seen, table.values.clone(), table.filled.clone(), self.criterion.bank.medoids.clone()))
            at_begin(epoch)
            seen = []
            for x, labels in batches(epoch, rank):
                logits = self.model(x)
                seen.append((logits.detach().clone(), labels))
                self.optimizer.zero_grad()
                self.criterion(logits, labels).backward()
                self.optimizer.step()
        return epochs

    def end(self):
        return [*self.model.parameters(), self.criterion.soft_targets.values, self.criterion.alpha]


def trained_and_resumed(rank):
    training, saved = Training(), [b""]

    def save(epoch):
        if (epoch, rank) == (STOP, 0):
            buffer = io.BytesIO()
            torch.save([part.state_dict() for part in training.parts()], buffer)
            saved[0] = buffer.getvalue()

    epochs = training.run(rank, 0, save)
    dist.broadcast_object_list(saved)
    resumed = Training()
    for part, state in zip(resumed.parts(), torch.load(io.BytesIO(saved[0])), strict=True):
        part.load_state_dict(state)
    resumed.run(rank, STOP)
    return {"epochs": epochs, "end": training.end(), "resumed": resumed.end()}


def rows_of(rank):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(20, CLASSES, generator=generator), torch.randint(CLASSES, (20,), generator=generator)


def table_of(criterion, rank, without=None):
    criterion.set_epoch(0, 3)
    if rank != without:
        criterion(*rows_of(rank))
    criterion.set_epoch(1, 3)
    return criterion.soft_targets.values, criterion.bank.medoids


HEAD = torch.linspace(-2, 2, CLASSES * 3).view(CLASSES, 3).sin()


def linear_table_of(rank, without):
    """Of features; no batch comes to one of the ranks."""
    criterion = ToastLoss(CLASSES, top_k=2)
    criterion.set_epoch(0, 3)
    if rank != without:
        x, labels = rows_of(rank)
        criterion.linear(x[:, :3], HEAD, labels)
    criterion.set_epoch(1, 3)
    return criterion.soft_targets, criterion.bank.medoids


def either_form(rank):
    criterion = ToastLoss(CLASSES, top_k=2)
    criterion.set_epoch(0, 3)
    x, labels = rows_of(rank)
    criterion.linear(x[:, :3], HEAD, labels) if rank else criterion(x, labels)
    criterion.set_epoch(1, 3)


def error_of(function, *arguments):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        function(*arguments)
    return f"{type(caught.value).__name__}: {caught.value}"


def groups(rank):
    """The last two ranks together and the first alone, in three ways; and all, though the loss was there before."""
    pair, hasty = dist.new_group([1, 2]), dist.new_group(timeout=ranks.seconds(1))
    found = {"before": table_of(EARLY, rank), "group": table_of(ToastLoss(CLASSES, process_group=pair), rank)}
    found["copy"] = table_of(copy.deepcopy(ToastLoss(CLASSES, process_group=pair)), rank)
    found["empty pool"] = table_of(ToastLoss(CLASSES, dtype=torch.float32), rank, without=1)
    found["top-k"] = table_of(ToastLoss(CLASSES, top_k=2, max_rows_per_class=2), rank)
    found["linear"] = linear_table_of(rank, without=1)
    found["either form"] = error_of(either_form, rank)
    if rank == 0:
        found["alone"] = table_of(ToastLoss(CLASSES, process_group=None), rank)
    bank = MedoidBank(CLASSES)
    bank.update(*rows_of(rank))
    found["bank"] = bank.compute().values, bank.medoids
    found["empty pools"] = error_of(MedoidBank(CLASSES).compute)
    criterion = ToastLoss(CLASSES)
    found["differ"] = error_of(criterion.set_epoch, rank, 3)
    bank = MedoidBank(CLASSES, temperature=1.0 + rank)
    bank.update(*rows_of(rank))
    found["temperatures"] = error_of(bank.compute)
    if rank:
        criterion = ToastLoss(CLASSES, process_group=hasty)
        found["lost"] = error_of(criterion.set_epoch, 0, 3)
    return found


def warnings_of_a_memory():
    memory = PredictionMemory(4, CLASSES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            memory.keep(torch.arange(2), torch.zeros(2, CLASSES))
    return [(str(warning.message), warning.filename) for warning in caught]


def every_case(rank, size):
    return {**trained_and_resumed(rank), **groups(rank), "warnings": warnings_of_a_memory()}


@pytest.fixture(scope="module")
def found():
    return ranks.run(__name__, "every_case", SIZE)


def expected_of(parts):
    """The table and the medoids of the rows [(logits, labels), ...]."""
    logits, labels = map(torch.cat, zip(*parts, strict=True))
    pooled = logits.half()
    medoids = class_medoids(pooled, labels, CLASSES)
    return pooled[medoids].float().softmax(1), medoids


def test_every_rank_has_the_soft_targets_of_all_ranks_rows(found):
    last = torch.zeros(CLASSES, CLASSES)
    for epoch in range(EPOCHS - 1):
        expected, medoids = expected_of([part for rank in found for part in rank["epochs"][epoch][0]])
        last = torch.where((medoids >= 0)[:, None], expected, last)
        for rank in found:
            _, values, filled, found_medoids = rank["epochs"][epoch]
            assert found_medoids.tolist() == medoids.tolist()
            assert filled.tolist() == [*[True] * (CLASSES - 1), epoch > 0]
            torch.testing.assert_close(values.float()[filled], last.to(values.dtype).float()[filled])
            assert torch.equal(values, found[0]["epochs"][epoch][1])
    assert (medoids >= 8 + 12).any()  # not only of the first rank


def test_every_rank_goes_on_from_the_first_ones_checkpoint(found):
    for rank in found:
        for resumed, through, first in zip(rank["resumed"], rank["end"], found[0]["end"], strict=True):
            assert torch.equal(resumed, through)
            assert torch.equal(through, first)


@pytest.mark.parametrize(
    ("case", "members"),
    [
        ("before", [0, 1, 2]),
        ("bank", [0, 1, 2]),
        ("empty pool", [0, 2]),
        ("group", [1, 2]),
        ("copy", [1, 2]),
        ("group", [0]),
        ("alone", [0]),
    ],
)
def test_the_ranks_of_a_group_choose_together(found, case, members):
    expected, medoids = expected_of([rows_of(rank) for rank in members])
    everyone = range(SIZE) if case == "empty pool" else members
    for rank in everyone:
        values, found_medoids = found[rank][case]
        assert found_medoids.tolist() == medoids.tolist()
        torch.testing.assert_close(values.float(), expected.to(values.dtype).float())


def test_top_k_rows_of_a_choice_of_each_ranks_rows(found):
    logits, labels = map(torch.cat, zip(*map(rows_of, range(SIZE)), strict=True))
    values, medoids = found[0]["top-k"]
    assert torch.equal(labels[medoids], torch.arange(CLASSES))
    assert torch.equal(values, SoftTargets.from_logits(logits[medoids].half(), top_k=2).values)
    for rank in found:
        assert torch.equal(rank["top-k"][0], values)
        assert torch.equal(rank["top-k"][1], medoids)


def test_the_linear_form_chooses_among_the_features_of_all_ranks(found):
    x, labels = map(torch.cat, zip(*map(rows_of, [0, 2]), strict=True))
    medoids = class_medoids(x[:, :3].half(), labels, CLASSES)
    expected = SoftTargets.from_logits((x[:, :3] @ HEAD.T)[medoids], top_k=2)
    for rank in found:
        table, found_medoids = rank["linear"]
        assert found_medoids.tolist() == medoids.tolist()
        assert torch.equal(table.indices, expected.indices)
        torch.testing.assert_close(table.values, expected.values)
        torch.testing.assert_close(table.entropy, expected.entropy)


def test_ranks_of_different_forms_are_an_error_on_all(found):
    for rank in found:
        assert rank["either form"] == "ValueError: ranks differ in num_features: None on rank 0, 3 on rank 1"


def test_an_empty_pool_is_one_that_is_empty_on_every_rank(found):
    for rank in found:
        assert rank["empty pools"].startswith("RuntimeError: the pool is empty")


def test_ranks_in_different_epochs_are_an_error_on_all(found):
    for rank in found:
        assert rank["differ"] == "ValueError: ranks differ in epoch: 0 on rank 0, 1 on rank 1"


def test_ranks_of_different_temperatures_are_an_error_on_all(found):
    for rank in found:
        assert rank["temperatures"] == "ValueError: ranks differ in temperature: 1.0 on rank 0, 2.0 on rank 1"


def test_a_rank_that_never_calls_set_epoch_is_an_error_on_the_others(found):
    for rank in found[1:]:
        assert re.match("RuntimeError: a rank failed or did not come: set_epoch is collective", rank["lost"])
    assert "lost" not in found[0]


def test_a_prediction_memory_warns_once(found):
    for rank in found:
        ((message, filename),) = rank["warnings"]
        assert "knows the predictions of its own rank only" in message
        assert filename == __file__


def test_data_parallel_replicas_cannot_pool(monkeypatch):
    module = sys.modules[replicate.__module__]
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", lambda tensors, devices, detach=False: [tensors])
    (criterion,) = replicate(ToastLoss(CLASSES), [0], detach=True)
    with pytest.raises(RuntimeError, match=r"nn\.DataParallel"):
        criterion(*rows_of(0))
    criterion.eval()
    criterion(*rows_of(0))
    (criterion,) = replicate(ToastLoss(CLASSES, alpha=0.0), [0], detach=True)
    criterion(*rows_of(0))


@pytest.mark.parametrize("process_group", ["workd", 1, [0, 1]])
def test_what_is_no_group_is_an_error(process_group):
    with pytest.raises(ValueError, match='process_group must be a process group, "world" or None'):
        ToastLoss(CLASSES, process_group=process_group)
