"""Which of its calls' rows ToastLoss pools."""

import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from toast_loss_cases import CLASSES, equal, exact, make_rows
from torch.utils.checkpoint import checkpoint

from toast_kernels import PredictionMemory, ToastLoss


@pytest.mark.parametrize("how", ["eval", "no_grad", "inference_mode"])
def test_an_evaluation_pools_nothing_and_is_plain_cross_entropy(how):
    weight = torch.rand(CLASSES, dtype=torch.float64)
    criterion = exact(weight=weight, label_smoothing=0.1)
    logits, labels = make_rows()
    labels[3] = -100
    criterion.set_epoch(0, 2)
    criterion(logits, labels)
    criterion.set_epoch(1, 2)
    trained = criterion(logits, labels)
    criterion.bank.reset()
    past = PredictionMemory(5, CLASSES).past(torch.zeros(40, dtype=torch.int64))
    modes = {"eval": nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    criterion.train(how != "eval")
    with modes[how]():
        loss = criterion(logits, labels, past)
    equal(loss, F.cross_entropy(logits, labels, weight, label_smoothing=0.1))
    assert criterion.bank.num_rows == 0
    logits.requires_grad_()
    again = criterion.train()(logits, labels)
    again.backward()
    assert torch.equal(again, trained)
    assert criterion.bank.num_rows == 40


def test_a_checkpointed_loss_pools_its_rows_once():
    criterion = exact()
    criterion.set_epoch(0, 2)
    logits, labels = make_rows()
    logits.requires_grad_()
    checkpoint(lambda z: criterion(z * 1, labels), logits, use_reentrant=False).backward()
    assert criterion.bank.num_rows == 40


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_a_loss_in_a_reentrant_checkpoint_warns_that_nothing_is_pooled():
    criterion = exact()
    criterion.set_epoch(0, 2)
    logits, labels = make_rows()
    loss = checkpoint(lambda z: criterion(z * 1, labels), logits.requires_grad_(), use_reentrant=True)
    with pytest.warns(UserWarning, match="in a reentrant checkpoint"):
        loss.backward()
    assert criterion.bank.num_rows == 0


def test_without_alpha_nothing_is_pooled():
    criterion = ToastLoss(CLASSES, alpha=0.0)
    logits, labels = make_rows()
    criterion(logits, labels)
    assert criterion.bank.num_rows == 0


def test_the_graph_is_not_kept_alive():
    criterion = ToastLoss(CLASSES)
    logits, labels = make_rows()
    logits.requires_grad_()
    criterion(logits * 1, labels)
    assert not criterion.bank.pool.logits.requires_grad


def test_training_without_set_epoch_warns_of_the_growing_pool():
    logits, labels = make_rows()
    criterion = exact()
    with pytest.warns(UserWarning, match="until set_epoch is called") as warned:
        criterion(logits, labels)
    assert warned[0].filename == __file__
    told = exact()
    told.set_epoch(0, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(logits, labels)  # once is enough
        told(logits, labels)
        exact().eval()(logits, labels)
