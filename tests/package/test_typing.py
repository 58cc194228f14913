"""Annotations: their literals are what the library takes, and the snippet that mypy checks runs."""

from typing import get_args

import pytest
import torch
import typed_snippet

from toast_kernels import annotations, backends
from toast_kernels.blended_kl.problem import REDUCTION
from toast_kernels.medoids.reference import METRICS


def test_literals_are_what_is_taken():
    assert get_args(annotations.Backend) == backends.BACKENDS
    assert get_args(annotations.Metric) == METRICS
    assert get_args(annotations.Reduction) == tuple(REDUCTION)


def test_the_snippet_runs_and_what_mypy_refuses_raises():
    logits, y = torch.eye(6, 3).requires_grad_(), torch.arange(6) % 3
    typed_snippet.functions(logits, y, True)
    typed_snippet.heads(logits, torch.eye(3), y, True)
    typed_snippet.training({"features": logits}, y)
    with pytest.raises(ValueError, match=r"reduction must be .* got .avg."):
        typed_snippet.wrong(logits, y)
