"""Labels alone, with or without class weights, on a slice of the classes: blended_kl's kernels give the gradient.

Theirs is u (softmax of the slice - onehot). The softmax of all classes is that of the slice times
exp(logsumexp of the slice - logsumexp), so with this in u all of a row is right but its label, which is written anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import choose, implementation
from ..blended_kl.problem import Problem
from .rows import Coefficients, Rows, Totals
from .tables import Slice


def backend_for(problem: Problem) -> str | None:
    """Which kernels these are; None where labels are not all, or there are no kernels."""
    others = (problem.target_b, problem.soft, problem.past)
    if not problem.has_labels or problem.label_smoothing or any(x is not None for x in others):
        return None
    logits = problem.logits
    backend = choose("blended_kl", "auto", logits.device, logits.dtype, logits.shape[1])
    return None if backend == "reference" else backend


def losses(
    problem: Problem, rows: Rows, known: Totals, own: Slice, scale: Coefficients | None, backend: str
) -> tuple[Tensor, Tensor | None]:
    """As rows.losses."""
    (label,) = rows.labels
    column, here = own.local(label.label)
    log_p = problem.logits.gather(1, column[:, None])[:, 0].double() - known.logsumexp
    found = -torch.where(here & (label.hard != 0), label.hard * log_p, 0)
    found = [found, torch.zeros_like(found)]
    if problem.need_stats:
        found.append(-torch.where(here & (label.share != 0), label.share * log_p, 0))
    gradient = None
    if scale is not None:
        of_class = scale.of_class
        # A slice of -inf alone has no share of a row, unless all of the row is like that, or NaN somewhere.
        in_kernel = rows.used & ((known.own_logsumexp != -torch.inf) | ~known.logsumexp.isfinite())
        upstream = of_class * known.mass * (known.own_logsumexp - known.logsumexp).exp()
        asked = problem._replace(
            target=torch.where(in_kernel, column, -1),
            ignore_index=-1,
            weight=None,
            upstream=torch.where(in_kernel, upstream, 0).to(problem.dtype),
            reduction="none",
            need_gradient=True,
            need_stats=False,
        )
        gradient = implementation("blended_kl", backend).Launch(asked)(asked).gradient
        at_label = of_class * (known.mass * log_p.exp() - torch.where(here, label.hard, 0))
        at_label = torch.where(rows.used, at_label, 0).to(gradient.dtype)
        gradient.scatter_(1, column[:, None], at_label[:, None])
    return torch.stack(found), gradient
