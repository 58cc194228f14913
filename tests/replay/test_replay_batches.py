"""HardReplay: every kind of batch comes back as it was given, with the carried rows after it."""

import copy
from collections import OrderedDict, UserDict
from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from replay_cases import CLASSES, carried_rows, hardest, make_batch, make_logits

from toast_kernels import HardReplay

pytestmark = pytest.mark.usefixtures("kept_rows_backend")


def test_structured_inputs():
    def batch(step):
        x, y = make_batch(step)
        return {"image": x, "extra": (x[:, 0] + 0.5, [x.int()])}, y

    replay = HardReplay(0.25)
    x, y, _ = replay.extend(*batch(0))
    logits = make_logits(10, seed=7)
    replay.keep(x, y, logits)
    chosen = hardest(logits, y, 2)
    x2, _, _ = replay.extend(*batch(1))
    assert list(x2) == ["image", "extra"]
    assert torch.equal(x2["image"], torch.cat([make_batch(1)[0], make_batch(0)[0][chosen]]))
    assert x2["extra"][0].tolist() == [1.5] * 8 + [0.5] * 2
    assert x2["extra"][1][0].dtype == torch.int32


class Encoding(UserDict):
    """As transformers' BatchEncoding: made from a dict, and no dict itself."""

    def __init__(self, data, n_sequences=None):
        super().__init__(data)
        self.n_sequences = n_sequences


class Frozen(Mapping):
    """A mapping that is not made from a dict alone."""

    def __init__(self, ids, mask):
        self.parts = {"ids": ids, "mask": mask}

    def __getitem__(self, key):
        return self.parts[key]

    def __iter__(self):
        return iter(self.parts)

    def __len__(self):
        return len(self.parts)


@pytest.mark.parametrize("kind", [Encoding, Frozen, OrderedDict, MappingProxyType], ids=lambda kind: kind.__name__)
def test_mappings_of_any_kind(kind):
    def batch(step):
        ids = make_batch(step)[0]
        return Frozen(ids, ids < 3) if kind is Frozen else kind({"ids": ids, "mask": ids < 3})

    replay, y = HardReplay(0.5), make_batch(0)[1]
    plain, first = HardReplay(0.5), batch(0)
    for number in range(3):
        x, target, _ = replay.extend(batch(number), y)
        expected, plain_target, _ = plain.extend(batch(number)["ids"], y)
        assert type(x) is (dict if kind is Frozen else kind)
        assert torch.equal(x["ids"], expected)
        assert torch.equal(x["mask"], expected < 3)
        replay.keep(x, target, make_logits(12, number))
        plain.keep(expected, plain_target, make_logits(12, number))
    assert torch.equal(first["ids"], make_batch(0)[0])  # what was given stays as it is


def test_mappings_within_other_trees():
    replay, y = HardReplay(0.5), make_batch(0)[1]
    for number in range(2):
        ids = make_batch(number)[0]
        x, target, _ = replay.extend((Encoding({"text": [Encoding({"ids": ids})]}), ids.double()), y)
        assert torch.equal(x[0]["text"][0]["ids"].double(), x[1])
        replay.keep(x, target, make_logits(12, number))


def test_collate_pads_texts_of_another_length():
    def pad(batch, length):
        return Encoding({name: F.pad(rows, (0, length - rows.shape[1])) for name, rows in batch.items()})

    def collate(x, carried):
        assert type(x) is type(carried) is Encoding
        length = max(x["ids"].shape[1], carried["ids"].shape[1])
        return pad(x, length), pad(carried, length)

    replay, lengths = HardReplay(0.5, collate=collate), []
    for number, length in enumerate([3, 5, 2, 4]):
        ids = torch.arange(1, length + 1).repeat(8, 1)
        x, y, past = replay.extend(Encoding({"ids": ids, "mask": ids > 0}), make_batch(number)[1])
        lengths.append(x["ids"].shape[1])
        assert torch.equal(x["mask"], x["ids"] > 0)
        assert (x["mask"][:8].sum(1) == length).all()
        assert past.targets is None or past.targets.filled.all()
        replay.keep(x, y, make_logits(12, number))
    assert lengths == [3, 5, 5, 5]


def test_inputs_in_a_dict_are_told_apart_by_their_keys():
    replay = HardReplay(1.0)
    y = torch.arange(4) % CLASSES
    for step, names in enumerate([("a", "b"), ("b", "a"), ("a", "b")]):
        x = {name: torch.full((4, 1), 10.0 * step + (name == "b")) for name in names}
        x, target, _ = replay.extend(x, y)
        if step:
            assert x["a"][4:].tolist() == [[10.0 * (step - 1)]] * 4
            assert x["b"][4:].tolist() == [[10.0 * (step - 1) + 1]] * 4
        replay.keep(x, target, make_logits(8, step))


@pytest.mark.parametrize("lam", [0.3, torch.linspace(0, 1, 8)], ids=["number", "rows"])
def test_mixup_triples(lam):
    replay = HardReplay(0.5)
    x, y_a = make_batch(0)
    y_b = y_a.roll(1)
    x, y, _ = replay.extend(x, (y_a, y_b, lam))
    assert y[0][8:].tolist() == y[1][8:].tolist() == [-100] * 4
    logits = make_logits(12, seed=2)
    replay.keep(x, y, logits)

    rows = torch.as_tensor(lam, dtype=torch.float32).expand(8)
    loss = [F.cross_entropy(logits[:8], labels, reduction="none") for labels in (y_a, y_b)]
    chosen = (rows * loss[0] + (1 - rows) * loss[1]).argsort(descending=True)[:4]
    new_x, new_a = make_batch(1)
    x2, (got_a, got_b, got_lam), past = replay.extend(new_x, (new_a, new_a.flip(0), 0.75))
    assert torch.equal(x2[8:], x[chosen])
    assert torch.equal(got_a, torch.cat([new_a, y_a[chosen]]))
    assert torch.equal(got_b, torch.cat([new_a.flip(0), y_b[chosen]]))
    assert torch.equal(got_lam, torch.cat([torch.full((8,), 0.75), rows[chosen]]))
    assert past.num_new == 8


def test_labels_and_triples_mix():
    replay = HardReplay(0.5)
    x, y = make_batch(0)
    logits = make_logits(12, seed=2)
    chosen = hardest(logits, y, 4)
    for first, second in ((y, (y, y.roll(1), 0.75)), ((y, y, 1.0), y)):
        replay.reset()
        replay.keep(*replay.extend(x, first)[:2], logits)
        _, (y_a, y_b, lam), _ = replay.extend(x, second)
        assert torch.equal(y_a, torch.cat([y, y[chosen]]))
        assert torch.equal(y_b[8:], y[chosen])
        assert lam.tolist() == [0.75 if isinstance(second, tuple) else 1.0] * 8 + [1.0] * 4


def test_an_ignored_pair_is_not_carried_and_class_probabilities_are():
    replay = HardReplay(1.0)
    x, y = make_batch(0)
    y[3] = -100
    x, triple, _ = replay.extend(x, (y, torch.where(torch.arange(8) == 5, -100, y), 0.5))
    replay.keep(x, triple, make_logits(16, 0), torch.ones(16))
    x2, _, past = replay.extend(*make_batch(1))
    assert carried_rows(x2, past) == [(0, row) for row in (0, 1, 2, 4, 5, 6, 7)]  # row 5 has one label

    replay = HardReplay(0.5)
    x, _ = make_batch(0)
    probs = make_logits(8, 1).softmax(1)
    logits = make_logits(8, 2)
    replay.keep(*replay.extend(x, probs)[:2], logits)
    chosen = F.cross_entropy(logits, probs, reduction="none").argsort(descending=True)[:4]
    assert torch.equal(replay.extend(x, probs)[1], torch.cat([probs, probs[chosen]]))


def test_int32_labels():
    x, y = make_batch(0)
    logits = make_logits(12, 0)
    replays = HardReplay(), HardReplay()
    for replay, labels in zip(replays, (y, y.int()), strict=True):
        replay.keep(*replay.extend(x, labels)[:2], logits)
    one, two = (replay.extend(x, y) for replay in replays)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_half_precision_logits_stay_as_they_are():
    replay = HardReplay()
    x, y, _ = replay.extend(*make_batch(0))
    replay.keep(x, y, make_logits(12, 0, torch.bfloat16))
    past = replay.extend(*make_batch(1))[2]
    assert past.targets.values.dtype == torch.bfloat16
    assert past.targets.logsumexp.dtype == torch.float64


def test_logits_of_another_dtype_or_width_get_memory_of_their_own():
    replay = HardReplay()
    for number, (classes, dtype) in enumerate([(4, torch.float32), (4, torch.bfloat16), (6, torch.bfloat16)]):
        x, y, _ = replay.extend(*make_batch(number))
        logits = torch.randn(12, classes, generator=torch.Generator().manual_seed(number)).to(dtype)
        replay.keep(x, y, logits, torch.arange(12.0, 0, -1))
        past = copy.deepcopy(replay).extend(*make_batch(number + 1))[2]
        assert torch.equal(past.targets.values, logits[:4])
        assert past.targets.num_classes == classes


def test_inputs_in_channels_last_stay_so():
    """As torch.cat leaves them: what follows is not slowed down by a copy."""
    replay, y = HardReplay(), make_batch(0)[1]
    for number in range(3):
        x = torch.randn(8, 3, 5, 4, generator=torch.Generator().manual_seed(number))
        x, y_all, _ = replay.extend(x.to(memory_format=torch.channels_last), y)
        assert x.is_contiguous(memory_format=torch.channels_last)
        replay.keep(x, y_all, make_logits(12, number))
