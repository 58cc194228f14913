"""The op toast_kernels::medoids: schema, fake and choice of backend."""

import torch

from ..backends import choose, implementation

torch.library.define(
    "toast_kernels::medoids",
    "(Tensor x, Tensor labels, Tensor? mask, int num_classes, str metric, int ignore_index, str backend) -> Tensor",
)


@torch.library.impl("toast_kernels::medoids", "CompositeExplicitAutograd")
def _(x, labels, mask, num_classes, metric, ignore_index, backend):
    return implementation("medoids", backend).class_medoids(x, labels, mask, num_classes, metric, ignore_index)


@torch.library.register_fake("toast_kernels::medoids")
def _(x, labels, mask, num_classes, metric, ignore_index, backend):
    return x.new_empty((num_classes,), dtype=torch.int64)


def class_medoids(
    x,  # [N, D]
    labels,  # [N] int64 or int32
    num_classes,
    metric,
    mask,  # [N] bool or None
    ignore_index,
    backend,
):
    """The op on checked arguments; see functional.class_medoids. It has no gradient, so x goes in detached."""
    kernels = choose("medoids", backend, x.device, x.dtype, x.shape[1])
    return torch.ops.toast_kernels.medoids.default(x.detach(), labels, mask, num_classes, metric, ignore_index, kernels)
