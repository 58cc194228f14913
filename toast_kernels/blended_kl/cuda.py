"""blended_kl on an NVIDIA GPU by the CUDA kernel, on the current stream."""

import torch

from .. import backends
from ..arguments import class_dim
from ..native import DTYPE
from .problem import Allocation, Outputs, Problem, layout

MOST_HELD = 16 * 1024 * 8 * 16  # bytes of a row: blocks of a cluster x threads x vectors x their bytes


class Launch:
    """Runs problems of one layout."""

    def __init__(self, problem: Problem):
        problem = _with_float32_numbers(problem)
        self.allocate = Allocation(problem)
        self.layout = backends._cuda.BlendedKL(*layout(problem, self.allocate(problem)))
        self.workspace_size = backends._cuda.workspace_size(problem.logits.shape[0])

    def __call__(self, problem: Problem) -> Outputs:
        problem = _with_float32_numbers(problem)
        outputs = self.allocate(problem)
        workspace = problem.logits.new_empty(self.workspace_size, dtype=torch.float64)
        stream = _stream(problem.logits)
        backends._cuda.blended_kl(self.layout, problem, outputs, workspace.data_ptr(), stream)
        return outputs


def _with_float32_numbers(problem: Problem) -> Problem:
    """With alpha and past_weight as the kernel reads them, where they are tensors."""
    numbers = {"alpha": problem.alpha, "past_weight": problem.past_weight}
    tensors = {name: x.float() for name, x in numbers.items() if isinstance(x, torch.Tensor)}
    return problem._replace(**tensors) if tensors else problem


def held(given) -> bool:
    """Whether toast_loss's checked arguments are of those whose rows the kernel holds in registers and for which a time
    of its design is known: labels alone, or top-k soft targets with past logits, rows of whole 16 bytes."""
    logits, target, soft, past = given.logits, given.target, given.soft_targets, given.past
    if (isinstance(target, torch.Tensor) and target.is_floating_point()) or given.label_smoothing:
        return False
    row = logits.shape[class_dim(logits)] * logits.element_size()
    if row % 16:
        return False
    if soft is None and past is None:
        return row <= MOST_HELD
    if soft is None or soft.encoding != "top-k" or past is None:
        return False
    values = past if isinstance(past, torch.Tensor) else past.values if past.encoding == "logits" else None
    return values is not None and values.dtype == logits.dtype and row <= MOST_HELD // 2


def scale_(gradient, upstream):
    """Multiplies the gradient in place by a number on the device; returns at once where that is 1."""
    torch.autograd.graph.increment_version(gradient)
    factor = upstream.float()
    number = DTYPE[gradient.dtype]
    backends._cuda.scale(number, gradient.data_ptr(), gradient.numel(), factor.data_ptr(), _stream(gradient))


def _stream(tensor):
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
