"""blended_kl on an NVIDIA GPU by the CUDA kernel, on the current stream."""

import torch

from .. import backends
from ..native import DTYPE
from .problem import Allocation, Outputs, Problem, layout


class Launch:
    """Runs problems of one layout."""

    def __init__(self, problem: Problem):
        self.allocate = Allocation(problem)
        self.layout = backends._cuda.BlendedKL(*layout(problem, self.allocate(problem)))
        self.workspace_size = backends._cuda.workspace_size(problem.logits.shape[0])

    def __call__(self, problem: Problem) -> Outputs:
        outputs = self.allocate(problem)
        workspace = problem.logits.new_empty(self.workspace_size, dtype=torch.float64)
        stream = _stream(problem.logits)
        backends._cuda.blended_kl(self.layout, problem, outputs, workspace.data_ptr(), stream)
        return outputs


def scale_(gradient, upstream):
    """Multiplies the gradient in place by a number on the device; returns at once where that is 1."""
    torch.autograd.graph.increment_version(gradient)
    factor = upstream.float()
    number = DTYPE[gradient.dtype]
    backends._cuda.scale(number, gradient.data_ptr(), gradient.numel(), factor.data_ptr(), _stream(gradient))


def _stream(tensor):
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
