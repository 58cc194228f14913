"""PredictionMemory: every sample's last prediction comes back."""

import io

import pytest
import torch

from toast_kernels import PredictionMemory

CLASSES = 4


def make_logits(rows, seed, dtype=torch.float32):
    return (2 * torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(seed))).to(dtype)


@pytest.mark.parametrize("top_k", [None, 2])
def test_memory_gives_back_each_samples_last_prediction(top_k):
    memory = PredictionMemory(10, CLASSES, temperature=2.0, top_k=top_k, dtype=torch.float32)
    sample = torch.tensor([7, 2, 5])
    past = memory.past(sample)
    assert past.index.tolist() == [-1, -1, -1]
    assert past.num_new == 3  # nothing is a replay: all are pooled

    logits = make_logits(3, 0).requires_grad_()
    memory.keep(sample, logits)
    past = memory.past(torch.tensor([5, 0, 7]))
    assert past.index.tolist() == [0, -1, 2]
    assert past.targets.temperature == 2.0
    exact = (logits.detach()[[2, 0]] / 2).softmax(1)
    found = past.targets.dense()[[0, 2]]
    torch.testing.assert_close(found.amax(1), exact.amax(1))
    if top_k is None:
        torch.testing.assert_close(found, exact)

    memory.keep(torch.tensor([7]), make_logits(1, 9))
    assert not torch.equal(memory.past(torch.tensor([7])).targets.dense(), found[1:])
    assert torch.equal(memory.past(torch.tensor([5])).targets.dense(), found[:1])
    memory.reset()
    assert memory.past(sample).index.tolist() == [-1, -1, -1]


def test_memory_what_was_handed_out_does_not_change():
    memory = PredictionMemory(4, CLASSES)
    sample = torch.arange(4)
    memory.keep(sample, make_logits(4, 0))
    past = memory.past(sample)
    before = past.targets.dense().clone()
    memory.keep(sample, make_logits(4, 1))
    assert torch.equal(past.targets.dense(), before)


def test_memory_keeps_the_last_finite_prediction():
    memory = PredictionMemory(4, CLASSES)
    memory.keep(torch.arange(3), make_logits(3, 0))
    before = memory.past(torch.arange(4)).targets.dense()
    diverged = make_logits(4, 1)
    diverged[1:, 0] = torch.nan
    memory.keep(torch.arange(4), diverged)
    past = memory.past(torch.arange(4))
    assert past.index.tolist() == [0, 1, 2, -1]
    assert torch.equal(past.targets.dense()[1:], before[1:])
    assert not torch.equal(past.targets.dense()[0], before[0])


@pytest.mark.parametrize("top_k", [None, 2])
def test_memory_state_survives_a_file(top_k):
    memory = PredictionMemory(6, CLASSES, top_k=top_k)
    memory.keep(torch.tensor([1, 4]), make_logits(2, 0))
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    resumed = PredictionMemory(6, CLASSES, top_k=top_k)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    one, two = (m.past(torch.arange(6)) for m in (memory, resumed))
    assert torch.equal(one.index, two.index)
    assert torch.equal(one.targets.values, two.targets.values)
    assert one.targets.values.dtype == (torch.bfloat16 if top_k is None else torch.float32)


def test_memory_of_another_size_is_refused():
    state = PredictionMemory(5, CLASSES).state_dict()
    with pytest.raises(ValueError, match=r"the state must have values \[6, 4\] .*, got \[5, 4\]"):
        PredictionMemory(6, CLASSES).load_state_dict(state)
    with pytest.raises(ValueError, match=r"the state must have temperature 2.0, got 3.0"):
        PredictionMemory(5, CLASSES, temperature=2.0).load_state_dict(state)
    with pytest.raises(ValueError, match=r"the state must have values, entropy, filled, indices, temperature .*, got"):
        PredictionMemory(5, CLASSES, top_k=2).load_state_dict(state)
    with pytest.raises(ValueError, match=r"the state must have values, entropy, filled, temperature .*, got targets"):
        PredictionMemory(5, CLASSES).load_state_dict({"targets": {}})


@pytest.mark.parametrize(
    ("sample", "logits", "message"),
    [
        (torch.tensor([0, 6]), torch.zeros(2, CLASSES), r"sample must be in \[0, 6\), got 0 to 6"),
        (torch.tensor([-1]), torch.zeros(1, CLASSES), r"sample must be in \[0, 6\), got -1 to -1"),
        (
            torch.tensor([0.0]),
            torch.zeros(1, CLASSES),
            r"sample must be an int64 tensor .* got a torch.float32 tensor",
        ),
        ([0], torch.zeros(1, CLASSES), r"sample must be an int64 tensor of shape \[N\], got \[0\]"),
        (torch.tensor([0]), torch.zeros(1, CLASSES).numpy(), "logits must be a floating-point tensor, got ndarray"),
        (torch.tensor([0]), torch.zeros(2, CLASSES), r"logits must have shape \[1, 4\] .* got \[2, 4\]"),
    ],
    ids=["beyond", "negative", "float", "list", "array", "rows"],
)
def test_memory_bad_arguments_are_named(sample, logits, message):
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        PredictionMemory(6, CLASSES).keep(sample, logits)


def test_memory_names_what_is_wrong_with_its_sizes_and_samples():
    for sizes, message in (
        ((10.5, 5), "num_samples must be an int >= 1, got 10.5"),
        ((5, 0), "num_classes must be .* 0"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            PredictionMemory(*sizes)
    with pytest.raises(ValueError, match=r"sample must be an int64 tensor of shape \[N\], got \[1, 2\]"):
        PredictionMemory(6, CLASSES).past([1, 2])


def test_half_precision_rows_of_very_many_classes_are_kept():
    """Their exponentials add up to more than the largest float16."""
    memory = PredictionMemory(2, 70_000, top_k=3)
    memory.keep(torch.arange(2), torch.zeros(2, 70_000, dtype=torch.float16))
    assert memory.past(torch.arange(2)).index.tolist() == [0, 1]
