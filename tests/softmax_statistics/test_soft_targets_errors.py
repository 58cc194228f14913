"""SoftTargets: what it refuses, and what it says."""

from dataclasses import replace

import pytest
import torch

from toast_kernels.soft_targets import SoftTargets

GOOD = torch.zeros(2, 3)
BAD_CALLS = {
    "no tensor": (lambda: SoftTargets.from_logits([[1.0]]), "logits must be a floating-point tensor, got list"),
    "int": (
        lambda: SoftTargets.from_logits(GOOD.int()),
        "logits must be a floating-point .* got a torch.int32",
    ),
    "1-d": (lambda: SoftTargets.from_logits(GOOD[0]), r"logits must have shape \[R, C\] with C >= 1, got \[3\]"),
    "no class": (lambda: SoftTargets.view_logits(GOOD[:, :0], 1.0), r"logits must have shape .* got \[2, 0\]"),
    "T = 0": (lambda: SoftTargets.from_logits(GOOD, 0.0), r"temperature must be a number in \(0, inf\), got 0.0"),
    "T < 0": (lambda: SoftTargets.view_logits(GOOD, -1), r"temperature must be a number in \(0, inf\), got -1"),
    "T = nan": (lambda: SoftTargets.from_logits(GOOD, float("nan")), "temperature must be .* got nan"),
    "T = inf": (lambda: SoftTargets.from_logits(GOOD, float("inf")), "temperature must be .* got inf"),
    "T tensor": (
        lambda: SoftTargets.from_logits(GOOD, torch.tensor(1.0)),
        "temperature must be .* got a torch.float32",
    ),
    "k = 0": (lambda: SoftTargets.from_logits(GOOD, top_k=0), r"top_k must be an int in \[1, 3\]"),
    "k > C": (lambda: SoftTargets.from_logits(GOOD, top_k=4), r"top_k must be an int in \[1, 3\].* got 4"),
    "k float": (lambda: SoftTargets.from_logits(GOOD, top_k=2.0), r"top_k must be an int in .* got 2.0"),
    "fp16": (lambda: SoftTargets.from_logits(GOOD, dtype=torch.float16), "dtype must be one of .* got torch.float16"),
    "f16 top-k": (lambda: SoftTargets.from_logits(GOOD, top_k=1, dtype=torch.float16), "dtype must be one of"),
    "filled": (
        lambda: SoftTargets.from_logits(GOOD, filled=torch.ones(2)),
        r"filled must be a bool .* shape \[2\], got a",
    ),
    "nan": (lambda: SoftTargets.from_logits(torch.tensor([[0.0], [torch.nan]])), "logits must have no NaN.*; row 1 is"),
    "+inf": (lambda: SoftTargets.from_logits(torch.tensor([[torch.inf]])), r"logits must have .* no \+inf.*; row 0 is"),
    "-inf only": (lambda: SoftTargets.from_logits(torch.full((1, 2), -torch.inf)), "no row of -inf only; row 0"),
    "negative": (lambda: SoftTargets.from_probs(torch.tensor([[1.5, -0.5]])), "probs must be >= 0 .* row 0 is not so"),
    "sum": (lambda: SoftTargets.from_probs(torch.tensor([[1.0, 0.0], [0.5, 0.4]])), "sum to 1 within 1%; row 1"),
    "nan probs": (lambda: SoftTargets.from_probs(torch.tensor([[torch.nan, 1.0]])), "probs must be >= 0 .* row 0"),
    "filled list": (
        lambda: SoftTargets.from_probs(GOOD + 1 / 3, filled=[True]),
        r"filled must .*, got \[True\]",
    ),
    "dense of other classes": (
        lambda: replace(SoftTargets.from_logits(GOOD), num_classes=5),
        r"values must have shape \[R, C\] with C = 5 \(num_classes\), .*, got \[2, 3\]",
    ),
    "logits of other classes": (
        lambda: replace(SoftTargets.view_logits(GOOD, 1.0), num_classes=2),
        r"values must have shape \[R, C\] with C = 2 \(num_classes\), .*, got \[2, 3\]",
    ),
    "more listed than classes": (
        lambda: replace(SoftTargets.from_logits(GOOD, top_k=3), num_classes=2),
        r"values must .* or with indices \[R, k\], k <= C, got \[2, 3\]",
    ),
    "1-d values": (
        lambda: SoftTargets(GOOD[0], GOOD[0], GOOD[0] == 0, 3),
        r"values must have shape \[R, C\] .*, got \[3\]",
    ),
    "class listed twice": (
        lambda: SoftTargets.from_listed(GOOD + 1 / 3, torch.tensor([[2, 1, 0], [2, 4, 2]]), 5),
        r"classes must be distinct and in \[0, 5\) in each row, got \[2, 4, 2\]",
    ),
    "listed above C": (
        lambda: SoftTargets.from_listed(GOOD + 1 / 3, torch.tensor([[2, 1, 0], [7, 4, 2]]), 5),
        r"classes must be .*, got \[7, 4, 2\]",
    ),
    "listed below 0": (
        lambda: SoftTargets.from_listed(GOOD + 1 / 3, torch.tensor([[2, -1, 0], [1, 4, 2]]), 5),
        r"classes must be .*, got \[2, -1, 0\]",
    ),
    "fewer listed than probabilities": (
        lambda: SoftTargets.from_listed(GOOD + 1 / 3, torch.zeros(2, 1).long(), 5),
        r"classes must be a tensor of shape \[2, 3\] \(from probs\), got .* of shape \[2, 1\]",
    ),
    "class listed twice as numbers": (
        lambda: SoftTargets.from_listed(GOOD + 1 / 3, torch.tensor([[1.0, 1.5, 0], [1, 4, 2]]), 5),
        r"classes must be distinct and in \[0, 5\) in each row",
    ),
    "nothing listed": (
        lambda: SoftTargets.from_listed(GOOD[:, :0], torch.zeros(2, 0).long(), 5),
        r"probs must have shape \[R, C\] with C >= 1, got \[2, 0\]",
    ),
    "a broken number of classes": (lambda: SoftTargets.empty(2, 5.5), "num_classes must be an int >= 1, got 5.5"),
    "one row": (lambda: SoftTargets.from_logits(GOOD)[0], "rows must be a slice, an index tensor or a bool mask"),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_arguments_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
