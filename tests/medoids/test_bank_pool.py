"""MedoidBank's pool: where it lies, what finds room in it, and how it is saved."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from test_bank import CLASSES, brute_force_medoids, filled_bank, make_rows

from toast_kernels.bank import MedoidBank


def test_reset_empties_the_pool_and_keeps_its_memory():
    bank = filled_bank(*make_rows(seed=1))
    memory = bank.pool.logits.data_ptr()
    bank.reset()
    assert bank.num_rows == 0
    with pytest.raises(RuntimeError, match=r"the pool is empty: compute\(\) needs an update"):
        bank.compute()
    logits, labels = make_rows(40)
    bank.update(logits, labels)
    bank.compute()
    assert bank.medoids.tolist() == brute_force_medoids(logits.half(), labels)
    assert bank.pool.logits.data_ptr() == memory


def test_growing_copies_a_linear_number_of_rows():
    bank = MedoidBank(2)
    copied, before = 0, 0
    for step in range(2000):
        memory = bank.pool.logits.data_ptr()
        bank.update(torch.full((1, 2), float(step)), torch.tensor([step % 2]))
        if bank.pool.logits.data_ptr() != memory:
            copied += before
        before = bank.num_rows
    assert copied < 4 * 2000
    assert bank.pool.logits[:2000, 0].tolist() == list(range(2000))
    assert len(bank.pool.logits) <= 3000


def test_a_large_pool_that_grows_is_warned_of_once(monkeypatch):
    monkeypatch.setattr("toast_kernels.pool.LARGE", 20 * CLASSES * 2)
    logits, labels = make_rows(40)
    with pytest.warns(UserWarning, match=rf"\[21, {CLASSES}\] of torch.float16, takes .* GiB and grows"):
        bank = filled_bank(logits, labels, batch=21)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bank.update(logits, labels)
        filled_bank(logits, labels, pool_rows=40)
    with pytest.warns(UserWarning, match=rf"\[{6 * CLASSES}, {CLASSES}\] .* GiB with max_rows_per_class of each class"):
        filled_bank(logits, labels, max_rows_per_class=6)


def test_a_growing_pool_has_no_room_for_ignored_rows():
    logits, labels = make_rows(600)
    labels[torch.arange(600) % 10 != 3] = -100
    bank = filled_bank(logits, labels, batch=20)
    assert len(bank.pool.logits) <= 120
    assert bank.num_rows == 600
    bank.compute()
    assert bank.medoids.tolist() == brute_force_medoids(logits.half(), labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", [{"pool_rows": 51}, {"max_rows_per_class": 20}], ids=["pool_rows", "reservoir"])
def test_a_pool_of_one_size_stays_where_it_is(dtype, settings):
    logits, labels = make_rows(dtype=dtype)
    labels[::7] = -100
    bank = MedoidBank(CLASSES, **settings)
    places = set()
    for _ in range(2):
        bank.reset()
        for rows, target in zip(logits.split(7), labels.split(7), strict=True):
            bank.update(rows, target)
            places.add(tuple(part.data_ptr() for part in bank.pool.memory))
        assert bank.num_rows == 60
        bank.compute()
        assert bank.medoids.tolist() == brute_force_medoids(logits.half(), labels)
    assert len(places) == 1
    assert bank.pool.logits.shape == (100 if "max_rows_per_class" in settings else 51, CLASSES)


def test_rows_beyond_pool_rows_are_dropped_counted_and_reported():
    logits, labels = make_rows(16)
    labels[3] = -100  # takes no room
    bank = filled_bank(logits, labels, pool_rows=10)
    assert bank.num_rows == 16
    with pytest.warns(UserWarning, match="pool_rows = 10 rows fit into the pool, and 15 came: the last 5 were dropped"):
        bank.compute()
    assert bank.medoids.tolist() == brute_force_medoids(logits[:11].half(), labels[:11])
    bank.reset()
    bank.update(logits[:11], labels[:11])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bank.compute()


def test_all_rows_ignored_fill_nothing():
    for settings in ({}, {"pool_rows": 4}, {"max_rows_per_class": 2}):
        bank = MedoidBank(CLASSES, **settings)
        bank.update(torch.randn(3, CLASSES), torch.full((3,), -100))
        assert not bank.compute().filled.any()
        assert bank.medoids.tolist() == [-1] * CLASSES


@pytest.mark.parametrize("settings", [{"pool_rows": 70}, {"max_rows_per_class": 4}], ids=["pool_rows", "reservoir"])
def test_a_saved_pool_goes_on_to_the_bit(settings):
    logits, labels = make_rows()
    bank = filled_bank(logits, labels, save_pool=True, **settings)
    bank.reset()
    bank.update(logits[:35], labels[:35])
    resumed = MedoidBank(CLASSES, save_pool=True, **settings)
    state = {name: x.clone() for name, x in bank.state_dict().items()}
    assert all(name.startswith("pool_of_rank_0.") for name in state)
    resumed.load_state_dict(state)
    assert resumed.num_rows == 35
    for part in (bank, resumed):
        part.update(logits[35:], labels[35:])
    assert torch.equal(bank.compute().values, resumed.compute().values)
    assert torch.equal(bank.medoids, resumed.medoids)
    assert torch.equal(
        state["pool_of_rank_0.counts"], torch.tensor([35, 35, 0]) * torch.tensor([not bank.pool.most, 1, 1])
    )
    assert MedoidBank(CLASSES, **settings).state_dict() == {}


def kept_positions(bank):
    _, labels, positions, _ = bank.pool.rows()
    return {c: sorted(positions[labels == c].tolist()) for c in range(CLASSES)}


@pytest.mark.parametrize("batch", [1, 7, 60])
def test_a_reservoir_is_the_same_whatever_the_batches(batch):
    """And each place holds the row that its position says."""
    logits, labels = make_rows()
    labels[5] = -100
    bank = filled_bank(logits, labels, batch=batch, max_rows_per_class=4, pool_dtype=torch.float32)
    kept = kept_positions(bank)
    assert kept == kept_positions(filled_bank(logits, labels, max_rows_per_class=4))
    assert kept != kept_positions(filled_bank(logits, labels, max_rows_per_class=4, seed=1))
    for c in range(CLASSES):
        assert len(kept[c]) == min(4, int((labels == c).sum()))
        assert (labels[kept[c]] == c).all()
    values, found, positions, _ = bank.pool.rows()
    assert torch.equal(values[found >= 0], logits[positions[found >= 0]])
    bank.compute()
    chosen = torch.full_like(labels, -100)
    for c in range(CLASSES):
        chosen[kept[c]] = c
    expected = brute_force_medoids(logits, chosen)
    assert bank.medoids.tolist() == expected


def test_a_reservoir_keeps_every_row_as_likely():
    """30 rows of each of 30 classes, 6 places, 100 seeds: chi-square over rows, and over pairs that neighbour each
    other."""
    rows, classes, most, seeds = 30, 30, 6, 100
    kept = np.zeros(rows)
    together = np.zeros(rows - 1)
    logits, labels = torch.zeros(rows * classes, classes), torch.arange(rows * classes) % classes
    for seed in range(seeds):
        bank = MedoidBank(classes, max_rows_per_class=most, seed=seed)
        bank.update(logits, labels)
        _, found, positions, _ = bank.pool.rows()
        here = np.zeros(rows * classes)
        here[positions[found >= 0].numpy()] = 1
        here = here.reshape(rows, classes)
        assert (here.sum(axis=0) == most).all()
        kept += here.sum(axis=1)
        together += (here[1:] * here[:-1]).sum(axis=1)
    assert chisquare(kept).pvalue > 1e-4
    expected = seeds * classes * most * (most - 1) / (rows * (rows - 1))
    assert abs(together.mean() / expected - 1) < 0.05


def test_a_call_with_a_wrong_label_leaves_no_trace_in_a_reservoir():
    bank = MedoidBank(2, max_rows_per_class=2)
    with pytest.raises(IndexError, match="got 7"):
        bank.update(torch.zeros(4, 2), torch.tensor([0, 0, 0, 7]))
    assert bank.pool.seen.tolist() == [0, 0]
    bank.update(torch.zeros(2, 2), torch.tensor([0, 0]))
    assert bank.pool.rows()[2][:2].tolist() == [0, 1]


def test_a_seed_of_64_bits():
    """As torch.initial_seed() gives them."""
    banks = [MedoidBank(1, max_rows_per_class=4, seed=seed) for seed in (2**64 - 1, 2**63, -(2**63))]
    for bank in banks:
        bank.update(torch.zeros(100, 1), torch.zeros(100, dtype=torch.int64))
    assert len({tuple(bank.pool.rows()[2].tolist()) for bank in banks}) > 1


def test_no_two_rows_of_a_batch_go_to_one_place():
    pool = MedoidBank(2, max_rows_per_class=3).pool
    labels = torch.tensor([1] * 200 + [-100] + [0] * 2)
    places = pool._places(labels)
    taken = places[places >= 0].tolist()
    assert sorted(taken) == [0, 1, 3, 4, 5]
    assert places[200] == -1
    pool.add(torch.zeros(203, 2), labels)
    assert pool.seen.tolist() == [2, 200]
