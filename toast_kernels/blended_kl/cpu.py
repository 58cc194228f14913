"""blended_kl on the CPU: the C++ kernel on the threads that torch has."""

import torch

from ..backends import _C
from .native import describe


def blended_kl(*arguments):
    """Of the op's schema, see describe."""
    description, _keep, outputs = describe(*arguments)
    _C.blended_kl(description, torch.get_num_threads())
    return outputs


def scale_(gradient, upstream):
    """Multiplies the gradient in place; not at all by 1."""
    if upstream.item() != 1:
        gradient.mul_(upstream)
