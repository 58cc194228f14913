"""blended_kl on the CPU: the C++ kernel on the threads that torch has."""

import torch

from ..backends import _C
from .problem import Allocation, Outputs, Problem, layout


class Launch:
    """Runs problems of one layout."""

    def __init__(self, problem: Problem, allocation: type = Allocation):
        self.allocate = allocation(problem)
        self.layout = _C.BlendedKL(*layout(problem, self.allocate(problem)))

    def __call__(self, problem: Problem) -> Outputs:
        outputs = self.allocate(problem)
        _C.blended_kl(self.layout, problem, outputs, torch.get_num_threads())
        return outputs


def scale_(gradient, upstream):
    """Multiplies the gradient in place; not at all by 1."""
    if upstream.item() != 1:
        gradient.mul_(upstream)
