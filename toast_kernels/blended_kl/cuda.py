"""blended_kl on an NVIDIA GPU by the CUDA kernel, on the current stream."""

import torch

from .. import backends
from .native import describe, dtype_number


def blended_kl(*arguments):
    """Of the op's schema, see describe."""
    description, _keep, outputs = describe(*arguments)
    logits = arguments[0]
    workspace = logits.new_empty(backends._cuda.workspace_size(logits.shape[0]), dtype=torch.float64)
    backends._cuda.blended_kl(description, workspace.data_ptr(), _stream(logits))
    return outputs


def scale_(gradient, upstream):
    """Multiplies the gradient in place by a number on the device; returns at once where that is 1."""
    factor = upstream.float()
    number = dtype_number(gradient.dtype)
    backends._cuda.scale(number, gradient.data_ptr(), gradient.numel(), factor.data_ptr(), _stream(gradient))


def _stream(tensor):
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
