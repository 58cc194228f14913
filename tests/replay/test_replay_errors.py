"""HardReplay: what it refuses, and what it says."""

import pytest
import torch
from replay_cases import CLASSES, make_batch, make_logits

from toast_kernels import HardReplay, ToastLoss

X, Y = make_batch(0)


def kept(x=X, y=Y, logits=None, score=None):
    replay = HardReplay(0.0)
    replay.extend(X, Y)
    replay.keep(x, y, torch.zeros(8, CLASSES) if logits is None else logits, score)


def after_a_step(x=X, **settings):
    replay = HardReplay(**settings)
    x, y, _ = replay.extend(x, Y)
    replay.keep(x, y, make_logits(12, 0))
    return replay


def keep_again():
    replay = HardReplay(0.0)
    for batch in [replay.extend(X, Y)] * 2:
        replay.keep(*batch[:2], torch.zeros(8, CLASSES))


def extend_again():
    replay = after_a_step()
    for _ in range(2):
        replay.extend(X, Y)


BAD_CALLS = {
    "fraction": (lambda: HardReplay(1.5), r"fraction must be a number in \[0, 1\], got 1.5"),
    "nan": (lambda: HardReplay(float("nan")), r"fraction must be a number in \[0, 1\], got nan"),
    "distil": (lambda: HardReplay(distil_fraction=-1), r"distil_fraction must be a number in \[0, 1\], got -1"),
    "fraction text": (lambda: HardReplay("a"), r"fraction must be a number in \[0, 1\], got 'a'"),
    "top_k": (lambda: HardReplay(top_k=0), "top_k must be an int >= 1 or None, got 0"),
    "top_k text": (lambda: HardReplay(top_k="a"), "top_k must be an int >= 1 or None, got 'a'"),
    "ignore_index": (lambda: HardReplay(ignore_index=None), "ignore_index must be an int, got None"),
    "ignore_index float": (lambda: HardReplay(ignore_index=2.5), "ignore_index must be an int, got 2.5"),
    "logits list": (lambda: kept(logits=[1.0]), "logits must be a floating-point tensor, got list"),
    "score list": (lambda: kept(score=[1.0]), r"cross_entropy must be a tensor of shape \[8\], got \[1.0\]"),
    "y an int": (lambda: kept(y=5), r"y must be a tensor or a triple \(y_a, y_b, lam\), got int"),
    "max_age": (lambda: HardReplay(max_age=0), "max_age must be an int >= 1, got 0"),
    "temperature": (lambda: HardReplay(temperature=0), r"temperature must be a number in \(0, inf\), got 0"),
    "state": (
        lambda: HardReplay().load_state_dict({"carried": {"x": X}}),
        r"state must be of HardReplay.state_dict, x a dict of tensors by name, got \['carried'\]",
    ),
    "state of another": (lambda: HardReplay().load_state_dict({"x": X}), r"state must be of .*, got \['x'\]"),
    "rows": (lambda: HardReplay().extend(X, Y[1:]), "y must have as many rows as x, 8, got 7"),
    "ragged": (
        lambda: HardReplay().extend((X, X[1:]), Y),
        r"the tensors in x must have as many rows .* got x\[0\]: 8, x\[1\]: 7",
    ),
    "no tensor": (
        lambda: HardReplay().extend({"x": "a"}, Y),
        r"x must be .* tuple, list or mapping of .*, got str at x\['x'\]",
    ),
    "empty": (lambda: HardReplay().extend({}, Y), "x must be a tensor with a row dimension, .* got an empty dict"),
    "y no triple": (lambda: HardReplay().extend(X, (Y, Y)), r"y must be a tensor or a triple .*, got tuple"),
    "y 2-d": (
        lambda: HardReplay().extend(X, Y[:, None]),
        r"y must be labels \[n\] .* class probabilities .* got torch.int64 \[8, 1\]",
    ),
    "another width": (lambda: after_a_step().extend(X[:, :1], Y), r"x must have rows of shape \[2\] .* got \[1\]"),
    "probabilities after labels": (
        lambda: after_a_step().extend(X, torch.eye(CLASSES)[Y]),
        "y must hold labels or triples like the carried rows, .* got class probabilities",
    ),
    "no extend": (lambda: HardReplay().keep(X, Y, torch.zeros(8, 4)), "keep needs a batch from extend"),
    "keep twice": (lambda: keep_again(), "keep needs a batch from extend, and there is none since the last keep"),
    "extend twice": (lambda: extend_again(), r"extend was called twice without a keep between: .* or reset\(\)"),
    "other tensors": (
        lambda: after_a_step({"ids": X, "mask": X}).extend({"ids": X, "types": X}, Y),
        r"x must hold the tensors of the carried rows, .*: x\['ids'\], x\['mask'\], got x\['ids'\], x\['types'\]",
    ),
    "longer texts": (
        lambda: after_a_step({"ids": X}).extend({"ids": X.repeat(1, 2)}, Y),
        r"x\['ids'\] must have rows of shape \[2\] like .* got \[4\]: pad all batches alike, or pass .* a collate",
    ),
    "collate loses rows": (
        lambda: after_a_step({"ids": X}, collate=lambda x, carried: (x, x)).extend({"ids": X}, Y),
        r"collate must return .* of 8 and 4 rows, got x\['ids'\] of 8 and x\['ids'\] of 8",
    ),
    "logits": (lambda: kept(logits=torch.zeros(7, 4)), r"logits must have shape \[N, C\] with N = 8 .* got \[7, 4\]"),
    "3-d": (
        lambda: kept(logits=torch.zeros(8, 4, 2)),
        r"logits must have shape \[N, C\] with N = 8 .* got \[8, 4, 2\]",
    ),
    "x": (lambda: kept(x=X[1:]), "x must have the 8 rows that extend returned, got 7"),
    "y": (lambda: kept(y=Y[1:]), "y must have the 8 rows that extend returned, got 7"),
    "pair": (lambda: kept(y=(Y, Y[1:], 0.5)), r"the tensors in y must have as many rows .* got y\[0\]: 8, y\[1\]: 7"),
    "int": (
        lambda: kept(logits=torch.zeros(8, 4).int()),
        "logits must be a floating-point tensor, got a torch.int32",
    ),
    "score": (lambda: kept(score=torch.zeros(9)), r"cross_entropy must be a tensor of shape \[8\], got .* \[9\]"),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_arguments_are_named(call, message):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        call()


def test_after_a_call_that_was_refused_the_next_one_is_taken():
    replay = after_a_step()
    with pytest.raises(ValueError, match="x must have rows of shape"):
        replay.extend(X[:, :1], Y)
    x, y, _ = replay.extend(X, Y)
    with pytest.raises(ValueError, match="logits must have shape"):
        replay.keep(x, y, make_logits(7, 0))
    replay.keep(x, y, make_logits(12, 0))
    replay.extend(X, Y)
    replay.reset()
    assert replay.extend(X, Y)[2].targets is None


@pytest.mark.parametrize("steps", [0, 1])
def test_another_temperature_than_the_losss_is_refused_from_the_first_step_on(steps):
    replay = after_a_step(temperature=2.0) if steps else HardReplay(temperature=2.0)
    _, y, past = replay.extend(X, Y)
    logits = make_logits(12, 0).requires_grad_()
    with pytest.raises(ValueError, match=r"softened at temperature 2.0, but temperature is 3.0"):
        ToastLoss(CLASSES)(logits, y, past)
    ToastLoss(CLASSES, temperature=2.0)(logits, y, past)
