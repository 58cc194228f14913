"""The op toast_kernels::softmax_statistics: row by row logsumexp(z / T) and the entropy of softmax(z / T)."""

import torch

from ..backends import choose, implementation
from ..native import widest

torch.library.define(
    "toast_kernels::softmax_statistics", "(Tensor logits, float temperature, str backend) -> (Tensor, Tensor)"
)


@torch.library.impl("toast_kernels::softmax_statistics", "CompositeExplicitAutograd")
def _(logits, temperature, backend):
    return implementation("softmax_statistics", backend).softmax_statistics(logits, temperature)


@torch.library.register_fake("toast_kernels::softmax_statistics")
def _(logits, temperature, backend):
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty((len(logits),), dtype=widest(logits.device)), logits.new_empty((len(logits),), dtype=wide)


def softmax_statistics(
    logits,  # [R, C], C >= 1
    temperature,
):
    """logsumexp [R] in native.widest and entropy [R] in nats, float32 (float64 for float64 logits); 0 log 0 is 0.

    A row with a NaN or +inf is NaN in both; one of nothing but -inf has logsumexp -inf and, without
    a softmax, entropy NaN. The logits go in detached.
    """
    backend = choose("softmax_statistics", "auto", logits.device, logits.dtype, logits.shape[1])
    return torch.ops.toast_kernels.softmax_statistics.default(logits.detach(), temperature, backend)
