"""The blended KL loss in plain PyTorch: the specification in code. Any device; the gradient is autograd's.

Everything is one cross-entropy against a row of target mass t (class term) and one KL divergence (past term):

    t_i = (1 - alpha) ((1 - eps) w[y_i] onehot(y_i) + eps / C w) + alpha w[y_i] S[y_i]
    a_i = - sum_j t_ij log softmax(z_i)_j
    b_i = T^2 sum_j Q[r_i]_j (log Q[r_i]_j - log softmax(z_i / T)_j)

with 0 log 0 = 0 and 0 * -inf = 0. Kernels are tested against this file.
"""

import torch
import torch.nn.functional as F

from ..soft_targets import SoftTargets


def blended_kl(
    logits,  # [N, C]
    target,  # [N] int64 | [N, C] class probabilities | (y_a [N], y_b [N], lam [N])
    weight=None,  # [C]
    *,
    soft_targets: SoftTargets | None = None,  # C rows
    alpha=0.0,
    past: SoftTargets | None = None,  # M rows
    past_index=None,  # [N] row of past, or -1
    past_weight=1.0,
    temperature=3.0,
    ignore_index=-100,
    label_smoothing=0.0,
    reduction="mean",
):
    """Return the loss (a scalar, or [N] for reduction "none") and the per-row cross_entropy, logsumexp and argmax."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    num_rows, num_classes = logits.shape
    z = logits.to(dtype)
    statistics_of = z.detach()
    w = None if weight is None else weight.to(dtype)
    if z.device.type == "cpu" and not torch.compiler.is_compiling():
        _reject_out_of_range(target, num_classes, ignore_index, past_index, past)

    if isinstance(target, tuple):
        labels = [(target[0], target[2].to(dtype)), (target[1], 1 - target[2].to(dtype))]
    elif target.is_floating_point():
        labels = []
    else:
        labels = [(target, z.new_ones(num_rows))]
    smooth = z.new_full((num_classes,), label_smoothing / num_classes)
    if w is not None and label_smoothing:
        smooth = smooth * w

    if labels:
        mass = z.new_zeros(num_rows, num_classes)  # t
        score = z.new_zeros(num_rows, num_classes)  # what the unweighted, unblended cross-entropy is taken against
        row_weight = z.new_zeros(num_rows)
        used = torch.zeros(num_rows, dtype=torch.bool, device=z.device)
        bad = torch.zeros_like(used)
        for label, share in labels:
            kept = label != ignore_index
            bad |= kept & ((label < 0) | (label >= num_classes))
            y = torch.where(kept & ~bad, label, 0)
            share = torch.where(kept, share, 0)
            onehot = F.one_hot(y, num_classes).to(dtype) * share[:, None]
            w_y = share if w is None else share * w[y]
            weighted = onehot if w is None else torch.where(onehot != 0, onehot * w, 0)  # no inf * 0 at other labels
            hard = (1 - label_smoothing) * weighted + smooth * share[:, None]
            if soft_targets is None:
                mass = mass + hard
            else:
                a = (alpha * soft_targets.filled[y].to(dtype))[:, None]
                mass = mass + (1 - a) * hard + a * w_y[:, None] * soft_targets[y].dense().to(dtype)
            score = score + onehot
            row_weight = row_weight + w_y
            used |= kept
    else:
        score = target.to(dtype)
        mass = (1 - label_smoothing) * score * (1 if w is None else w) + smooth
        used = torch.ones(num_rows, dtype=torch.bool, device=z.device)
        bad = torch.zeros_like(used)
        row_weight = z.new_ones(num_rows)

    z = torch.where(used[:, None], z, 0)  # an ignored row takes no part, whatever it holds
    row_loss = _cross_entropy(mass, z.log_softmax(1))
    past_rows = torch.zeros_like(row_loss)
    has_past = torch.zeros_like(used)
    if past is not None:
        bad |= used & ((past_index < -1) | (past_index >= len(past)))
        row = torch.where(bad, 0, past_index.clamp(min=0))
        has_past = used & ~bad & (past_index >= 0) & past.filled[row] if len(past) else has_past
        if len(past):
            q = torch.where(has_past[:, None], past[row].dense().to(dtype), 0)
            log_p = (z / temperature).log_softmax(1)
            past_rows = past_weight * torch.xlogy(q, q).sum(1) + _cross_entropy(past_weight * q, log_p)
            past_rows = temperature**2 * past_rows
            past_rows = torch.where(has_past, past_rows, 0)
    poison = torch.where(bad, torch.nan, 1)  # the gradient too
    row_loss = torch.where(z.isnan().any(1), torch.nan, row_loss * poison)

    if reduction == "none":
        loss = row_loss + past_rows
    elif reduction == "sum":
        loss = row_loss.sum() + past_rows.sum()
    else:
        divisor = torch.where(bad, 0, row_weight).sum()
        mean = torch.where(
            divisor == 0, torch.nan, row_loss.sum() / divisor
        )  # smoothing gives mass where weights do not
        loss = mean + past_rows.sum() / has_past.sum().clamp(min=1)

    cross_entropy = _cross_entropy(score, torch.where(used[:, None], statistics_of, 0).log_softmax(1))
    return loss, cross_entropy * poison, statistics_of.logsumexp(1), statistics_of.argmax(1)


def _cross_entropy(mass, log_probs):
    """- sum_j mass_j log_probs_j by rows, with 0 * -inf = 0."""
    return -torch.where(mass != 0, mass * log_probs, 0).sum(1)


def _reject_out_of_range(target, num_classes, ignore_index, past_index, past):
    """On a CPU an index out of range is an error; elsewhere it makes the row's loss NaN, with no host sync."""
    if isinstance(target, tuple):
        checks = [
            ("target[0]", target[0], num_classes, ignore_index),
            ("target[1]", target[1], num_classes, ignore_index),
        ]
    elif target.is_floating_point():
        checks = []
    else:
        checks = [("target", target, num_classes, ignore_index)]
    if past is not None:
        checks.append(("past_index", past_index, len(past), -1))
    for name, index, bound, unused in checks:
        bad = ((index < 0) | (index >= bound)) & (index != unused)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise IndexError(f"{name}[{row}] = {int(index[row])} is out of range [0, {bound}) and not {unused}")
