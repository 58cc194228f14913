"""The state of ToastLoss: what is in it, what it survives, and what it refuses."""

import copy
import io

import numpy as np
import pytest
import torch
from toast_loss_cases import CLASSES, make_rows
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from toast_kernels import HardReplay, MedoidBank, PredictionMemory, ToastLoss


def run(criterion, steps, replay, start=0, model=None):
    """A few training steps over epochs of 3 steps; the losses."""
    losses = []
    for step in range(start, steps):
        if step % 3 == 0:
            criterion.set_epoch(step // 3, 4)
        x, labels = make_rows(16, seed=step, dtype=torch.float32)
        x, labels, past = replay.extend(x, labels)
        logits = model(x)
        loss = criterion(logits, labels, past)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        replay.keep(x, labels, logits)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("stop", [2, 3, 5, 8], ids=lambda step: f"after step {step}")
@pytest.mark.parametrize("top_k", [None, 2])
def test_training_resumes_to_the_bit(stop, top_k):
    def made(weight):
        return ToastLoss(CLASSES, top_k=top_k, weight=weight, pool_rows=60, save_pool=True)

    def make():
        torch.manual_seed(0)
        return made(torch.rand(CLASSES)), HardReplay(), nn.Linear(CLASSES, CLASSES)

    criterion, replay, model = make()
    expected = run(criterion, 11, replay, model=model)

    criterion, replay, model = make()
    run(criterion, stop, replay, model=model)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (criterion, replay, model)], file)
    file.seek(0)
    fresh = (made(torch.zeros(CLASSES)), HardReplay(), nn.Linear(CLASSES, CLASSES))
    for part, state in zip(fresh, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)  # strict
    criterion, replay, model = fresh
    if stop % 3:
        criterion.set_epoch(stop // 3, 4)  # what a resumed program does
    assert run(criterion, 11, replay, start=stop, model=model) == expected[stop:]


def trained(**settings):
    """A loss in its second epoch, with soft targets."""
    criterion = ToastLoss(CLASSES, num_epochs=3, **settings)
    criterion.set_epoch(0)
    criterion(*make_rows())
    criterion.set_epoch(1)
    return criterion


def assert_same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name, part in one.items():
        assert part.dtype == other[name].dtype, name
        assert torch.equal(part, other[name]), name


@pytest.mark.parametrize("top_k", [None, 2])
def test_the_state_is_tensors_whose_shapes_the_arguments_tell(top_k):
    new, old = ToastLoss(CLASSES, top_k=top_k), trained(top_k=top_k)
    names = {"alpha", "epoch", "values", "entropy", "filled", "soft_temperature"} | ({"indices"} if top_k else set())
    for criterion in (new, old):
        assert set(criterion.state_dict()) == names
        assert all(isinstance(x, torch.Tensor) and x.is_contiguous() for x in criterion.state_dict().values())
    kinds = [{name: (x.shape, x.dtype) for name, x in part.state_dict().items()} for part in (new, old)]
    assert kinds[0] == kinds[1]
    assert new.values.dtype == (torch.float32 if top_k else torch.bfloat16)
    assert int(new.epoch) == -1
    assert int(old.epoch) == 1
    assert not new.filled.any()
    assert set(ToastLoss(CLASSES, alpha=0.0).state_dict()) == {"alpha", "epoch"}


def test_loading_copies_and_leaves_the_pool_alone():
    source, other = trained(), trained()
    other(*make_rows(7))
    source.values.mul_(0.5)
    other.load_state_dict(source.state_dict())
    assert_same(other, source)
    assert other.bank.num_rows == 7
    other.load_state_dict({name: x.clone() for name, x in source.state_dict().items()}, assign=True)
    assert other.soft_targets.values is other.values
    other.soft_targets.values.zero_()
    assert source.soft_targets.dense().sum() > 0


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "to"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_casts_leave_the_dtypes(cast, top_k):
    criterion, weight = trained(top_k=top_k), torch.ones(CLASSES)
    expected = copy.deepcopy(criterion)
    model = nn.Sequential(criterion, ToastLoss(CLASSES, weight=weight), nn.Linear(2, 2))
    model = model.to(torch.float16) if cast == "to" else getattr(model, cast)()
    assert_same(criterion, expected)
    assert model[2].weight.dtype == model[1].weight.dtype != torch.float32
    assert criterion.bank.pool.logits.dtype == torch.float16
    assert criterion(*make_rows(dtype=torch.float32)).isfinite()


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("save_pool", [False, True])
def test_made_on_meta_then_to_empty(top_k, save_pool):
    with torch.device("meta"):
        model = nn.Sequential(ToastLoss(CLASSES, num_epochs=3, top_k=top_k, pool_rows=50, save_pool=save_pool))
    assert all(x.is_meta for x in model.buffers())
    model.to_empty(device="cpu")
    criterion = model[0]
    assert_same(criterion, ToastLoss(CLASSES, top_k=top_k, pool_rows=50, save_pool=save_pool))
    criterion.set_epoch(0)
    criterion(*make_rows())
    criterion.set_epoch(1)
    assert_same(criterion, trained(top_k=top_k, pool_rows=50, save_pool=save_pool))


def test_reset_parameters_makes_it_as_new():
    for top_k in (None, 2):
        criterion = trained(top_k=top_k)
        criterion(*make_rows(5))
        criterion.to_empty(device="cpu")
        criterion.reset_parameters()
        assert_same(criterion, ToastLoss(CLASSES, top_k=top_k))
        assert criterion.bank.num_rows == 0


def test_a_numpy_epoch_is_saved_as_a_number():
    criterion = ToastLoss(CLASSES, num_epochs=5)
    criterion.set_epoch(np.int64(3))
    file = io.BytesIO()
    torch.save(criterion.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["epoch"] == 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_classes": 5}, "num_classes = 4, and here it is 5"),
        ({"top_k": 3}, "top_k = 2, and here it is 3"),
        ({"top_k": None}, "top_k = 2, and here it is None"),
        ({"soft_temperature": 2.0}, "soft_temperature = 1.0, and here it is 2.0"),
    ],
)
def test_a_state_of_other_settings_says_so(other, message):
    state = nn.ModuleDict({"loss": trained(top_k=2)}).state_dict()
    fresh = ToastLoss(**{"num_classes": CLASSES, "top_k": 2, **other})
    before = copy.deepcopy(fresh)
    with pytest.raises(RuntimeError, match=rf"loss.is of a loss with {message}"):
        nn.ModuleDict({"loss": fresh}).load_state_dict(state)
    assert_same(fresh, before)


def test_a_state_with_other_names_says_which_are_missing():
    state = {"alpha": torch.tensor(0.5), "_extra_state": {"epoch": 1, "soft_targets": None}}
    with pytest.raises(RuntimeError, match=r'Missing key.*"epoch", "values", "entropy".*\n.*Unexpected key.*_extra'):
        ToastLoss(CLASSES).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*_extra_state"):
        MedoidBank(CLASSES).load_state_dict({"_extra_state": {}})


def test_the_pool_of_another_rank_or_size_is_refused():
    saved = trained(pool_rows=50, save_pool=True).state_dict()
    assert saved["bank.pool_of_rank_0.logits"].shape == (50, CLASSES)
    with pytest.raises(RuntimeError, match=r"pool_of_rank_0.logits must have shape \[60, 4\] .* got \[50, 4\]"):
        ToastLoss(CLASSES, pool_rows=60, save_pool=True).load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*pool_of_rank_0"):
        ToastLoss(CLASSES).load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"Missing key.*pool_of_rank_0"):
        ToastLoss(CLASSES, pool_rows=50, save_pool=True).load_state_dict(ToastLoss(CLASSES).state_dict())
    other = {name.replace("rank_0", "rank_1"): x for name, x in saved.items()}
    with pytest.raises(RuntimeError, match=r"Missing key.*pool_of_rank_0.*\n.*Unexpected key.*pool_of_rank_1"):
        ToastLoss(CLASSES, pool_rows=50, save_pool=True).load_state_dict(other)


@pytest.mark.parametrize("where", ["made", "moved", "set_epoch", "all"])
def test_what_is_made_in_inference_mode_poisons_nothing(where):
    def within(step):
        return torch.inference_mode(step == where or where == "all")

    with within("made"):
        criterion, memory = ToastLoss(CLASSES, num_epochs=3), PredictionMemory(40, CLASSES)
    with within("moved"):
        criterion.double()
    logits, labels = make_rows()
    for epoch in range(2):
        with within("set_epoch"):
            criterion.set_epoch(epoch)
        leaf = logits.clone().requires_grad_()
        criterion(leaf, labels, memory.past(torch.arange(40))).backward()
        memory.keep(torch.arange(40), logits)
        assert leaf.grad.isfinite().all()
    assert_same(criterion, trained())
    with torch.inference_mode():
        criterion.bank.update(logits.repeat(3, 1), labels.repeat(3))  # the pool grows
    assert not any(x.is_inference() for x in (*criterion.buffers(), *criterion.bank.pool.memory))
    criterion(logits, labels)
    criterion.set_epoch(2)


def test_a_dry_run_leaves_no_trace():
    criterion = trained()
    criterion(*make_rows(7))
    before = copy.deepcopy(criterion)
    logits, labels = make_rows()
    with pytest.raises(IndexError, match="out of range"):
        criterion(logits, labels + 4)
    assert criterion(logits.to("meta"), labels.to("meta")).is_meta
    with FakeTensorMode(allow_non_fake_inputs=True):
        criterion.bank.update(torch.zeros(3, CLASSES), torch.zeros(3, dtype=torch.int64))
    assert_same(criterion, before)
    assert criterion.bank.num_rows == 7
    assert criterion(logits, labels).isfinite()
