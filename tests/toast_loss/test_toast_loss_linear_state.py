"""What ToastLoss.linear keeps: checkpoints, resets, dry runs, rejected updates, and its bytes."""

import copy
import io

import pytest
import torch
from toast_loss_linear_cases import WEIGHT, Model, X, Y, after, head_of, nothing, predictions, rows_of
from torch._subclasses.fake_tensor import FakeTensorMode

from toast_kernels import MedoidBank, ToastLoss, TopPredictions, linear_toast_loss


@pytest.mark.parametrize("stop", [2, 3, 8], ids=lambda step: f"after step {step}")
def test_training_resumes_to_the_bit(stop):
    settings = {"num_features": 6, "pool_rows": 80, "save_pool": True}
    model = Model(**settings)
    expected = model.run(0, 11)
    model = Model(**settings)
    model.run(0, stop)
    file = io.BytesIO()
    torch.save([model.state_dict(), model.replay.state_dict()], file)
    file.seek(0)
    fresh = Model(**settings)
    state, replay_state = torch.load(file, weights_only=True)
    fresh.load_state_dict(state)
    fresh.replay.load_state_dict(replay_state)
    assert fresh.run(stop, 11) == expected[stop:]
    again = copy.deepcopy(fresh)
    assert again.run(11, 12) == fresh.run(11, 12)


def test_without_the_pool_the_state_is_that_of_the_dense_form():
    model = Model()
    model.run(0, 4)
    state = model.criterion.state_dict()
    assert state.keys() == ToastLoss(30, top_k=4).state_dict().keys()
    resumed = Model()
    resumed.criterion.load_state_dict(state)
    assert torch.equal(resumed.criterion.soft_targets.dense(), model.criterion.soft_targets.dense())


def test_a_dry_run_leaves_no_trace():
    criterion = after(nothing)
    with FakeTensorMode(allow_non_fake_inputs=True):
        logsumexp = torch.zeros(3, dtype=torch.float64)
        indices = torch.zeros(3, 3, dtype=torch.int64)
        fake = TopPredictions(torch.zeros(3, 3), indices, logsumexp, logsumexp, logsumexp, 30)
        criterion.bank.update(torch.zeros(3, 6), indices[:, 0], fake)
        assert criterion.linear(*(torch.zeros_like(x) for x in (X, WEIGHT, Y))).shape == ()
    assert criterion.linear(X.to("meta"), WEIGHT.to("meta"), Y.to("meta")).is_meta
    assert criterion.bank.num_features is None
    assert not criterion.alpha.is_meta
    criterion.linear(X, WEIGHT, Y)
    assert criterion.bank.num_rows == 24
    criterion.set_epoch(1)
    assert criterion.linear(X, WEIGHT, Y).isfinite()


@pytest.mark.parametrize("settings", [{}, {"pool_rows": 50}, {"max_rows_per_class": 2}], ids=str)
def test_a_rejected_update_leaves_the_bank_as_it_was(settings):
    rejected = {
        "predictions of too few classes": (X, Y, predictions(2)),
        "other rows": (X[1:], Y[1:], predictions()),
        "a target of other rows": (X, Y[1:], predictions()),
        "a label out of range": (X, Y + 9, predictions()),
    }
    for arguments in rejected.values():
        bank = MedoidBank(30, top_k=3, **settings)
        with pytest.raises((ValueError, IndexError)):
            bank.update(*arguments)
        assert bank.num_features is None
        bank.update(X @ WEIGHT.T, Y)
        assert bank.num_rows == 24
    bank = MedoidBank(30, top_k=3, **settings)
    with pytest.raises(IndexError):
        bank.update(X @ WEIGHT.T, Y + 9)
    bank.update(X, Y, predictions())
    assert (bank.num_features, bank.num_rows) == (6, 24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_features": 4}, r"pool_of_rank_0.logits must have shape \[10, 3\] \(from num_features\), got \[10, 4\]"),
        ({"top_k": 5}, r"pool_of_rank_0.predictions must have shape \[10, 6\] \(from 2 \* top_k\), got \[10, 10\]"),
        ({"pool_rows": 9}, r"pool_of_rank_0.labels must have shape \[10\] \(from pool_rows\), got \[9\]"),
    ],
    ids=["num_features", "top_k", "pool_rows"],
)
def test_a_pool_of_another_size_names_the_setting(settings, message):
    own = {"num_features": 3, "top_k": 3, "pool_rows": 10, "save_pool": True}
    state = MedoidBank(30, **{**own, **settings}).state_dict()
    with pytest.raises(RuntimeError, match=message):
        MedoidBank(30, **own).load_state_dict(state)


@pytest.mark.parametrize("settings", [{}, {"pool_rows": 50}], ids=str)
def test_reset_parameters_makes_it_as_new(settings):
    criterion = after(lambda c: c.linear(X, WEIGHT, Y), **settings)
    criterion.set_epoch(1)
    criterion.linear(X, WEIGHT, Y)
    criterion.reset_parameters()
    assert criterion.bank.num_rows == 0
    assert criterion.bank.num_features is None
    assert criterion.bank.medoids.tolist() == [-1] * 30
    criterion.set_epoch(0)
    criterion(X @ WEIGHT.T, Y)
    criterion.reset_parameters()
    criterion.linear(X[:, 1:], WEIGHT[:, 1:], Y)
    assert (criterion.bank.num_features, criterion.bank.num_rows) == (5, 24)

    told = after(lambda c: c.linear(X, WEIGHT, Y), num_features=6, **settings)
    told.reset_parameters()
    assert (told.bank.num_features, told.bank.num_rows) == (6, 0)


def bytes_of(criterion):
    """What a loss and its bank hold between two epochs, the pool apart."""
    return sum(x.nbytes for x in criterion.buffers()) + criterion.bank.medoids.nbytes


def expected_bytes(classes, top_k, value):
    scalars = 4 + 8 + 4  # alpha, epoch, soft_temperature
    return classes * (top_k * (value + 4) + 4 + 1 + 8) + scalars  # entropy, filled and the medoids' positions


@pytest.mark.parametrize(("dtype", "value", "limit"), [(torch.bfloat16, 2, 143e6), (torch.float32, 4, 190e6)])
def test_the_bytes_of_a_bank(dtype, value, limit):
    small = Model(dtype=dtype)
    small.run(0, 4)
    small.criterion.bank.medoids = small.criterion.bank.medoids.clone()
    assert bytes_of(small.criterion) == expected_bytes(30, 4, value)
    with torch.device("meta"):
        large = ToastLoss(360_000, top_k=64, dtype=dtype)
    assert bytes_of(large) == expected_bytes(360_000, 64, value) <= limit


def test_the_bytes_of_a_pool():
    """2 D + 8 k of a row, and its label and position."""
    bank = MedoidBank(30, top_k=4, num_features=6, pool_rows=100)
    x, y = rows_of(30, 6, dtype=torch.float32)
    bank.update(x, y, linear_toast_loss(x, head_of(30, 6, dtype=torch.float32), y, return_top_k=4)[1])
    assert sum(part.nbytes for part in bank.pool.state().values()) == 100 * (2 * 6 + 8 * 4 + 16) + 24
