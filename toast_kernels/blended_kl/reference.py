"""The blended KL loss in plain PyTorch: the specification in code. Any device; the gradient is autograd's.

Everything is one cross-entropy against a row of target mass t (class term) and one KL divergence (past term):

    t_i = (1 - alpha) ((1 - eps) w[y_i] onehot(y_i) + eps / C w) + alpha w[y_i] S[y_i]
    a_i = - sum_j t_ij log softmax(z_i)_j
    b_i = T^2 sum_j Q[r_i]_j (log Q[r_i]_j - log softmax(z_i / T)_j)

with 0 log 0 = 0 and 0 * -inf = 0. What a top-k row of S or Q leaves of 1 is shared by the classes that it does not list
and whose logit in z_i is not -inf; without one it is dropped. Kernels are tested against this file.
"""

import torch

from .problem import Outputs, Problem, is_traced


def blended_kl(problem: Problem) -> Outputs:
    """The gradient of the outputs is autograd's; alpha and past_weight may be tensors anywhere."""
    logits, target, weight, ignore_index = problem.logits, problem.target, problem.weight, problem.ignore_index
    soft, past, past_index = problem.soft, problem.past, problem.past_index
    temperature, label_smoothing = problem.temperature, problem.label_smoothing
    dtype = problem.dtype
    num_rows, num_classes = logits.shape
    z = logits.to(dtype)
    statistics_of = z.detach()
    masked = statistics_of == -torch.inf
    w = None if weight is None else weight.to(dtype)
    if z.device.type == "cpu" and not is_traced():
        reject_out_of_range(problem)

    if not problem.has_labels:
        labels = []
    elif problem.target_b is None:
        labels = [(target, z.new_ones(num_rows))]
    else:
        lam = problem.lam.to(dtype)
        labels = [(target, lam), (problem.target_b, 1 - lam)]
    smooth = z.new_full((num_classes,), label_smoothing / num_classes)
    if w is not None and label_smoothing:
        smooth = smooth * w

    if labels:
        classes = torch.arange(num_classes, dtype=torch.int64, device=z.device)
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
            onehot = (y[:, None] == classes).to(dtype) * share[:, None]
            w_y = share if w is None else torch.where(share != 0, share * w[y], 0)  # 0 * inf = 0
            weighted = onehot if w is None else torch.where(onehot != 0, onehot * w, 0)  # no inf * 0 at other labels
            hard = (1 - label_smoothing) * weighted + smooth * share[:, None]
            if soft is None:
                mass = mass + hard
            else:
                a = (problem.alpha * soft.filled[y].to(dtype))[:, None]
                mass = mass + (1 - a) * hard + a * w_y[:, None] * soft.rows(y).dense(num_classes, masked).to(dtype)
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
        past_rows_given = len(past.values)
        bad |= used & ((past_index < -1) | (past_index >= past_rows_given))
        if past_rows_given:
            row = past_index.clamp(0, past_rows_given - 1)
            has_past = used & ~bad & (past_index >= 0) & past.filled[row]
            past_weight = problem.past_weight
            q = torch.where(has_past[:, None], past.rows(row).dense(num_classes, masked).to(dtype), 0)
            log_p = (z / temperature).log_softmax(1)
            past_rows = past_weight * torch.xlogy(q, q).sum(1) + _cross_entropy(past_weight * q, log_p)
            past_rows = temperature**2 * past_rows
            past_rows = torch.where(has_past, past_rows, 0)
    poison = torch.where(bad, torch.nan, row_weight.new_ones(()))  # the gradient too
    row_loss = torch.where((z < torch.inf).all(1), row_loss * poison, torch.nan)

    if problem.reduction == "none":
        loss = row_loss + past_rows
    elif problem.reduction == "sum":
        loss = row_loss.sum() + past_rows.sum()
    else:
        divisor = torch.where(bad, 0, row_weight).sum()
        nothing = divisor == 0  # then the mean has no gradient; smoothing may give mass where weights do not
        mean = torch.where(nothing, torch.nan, row_loss.sum() / torch.where(nothing, 1, divisor))
        loss = mean + past_rows.sum() / has_past.sum().clamp(min=1)

    if not problem.need_stats:
        return Outputs(loss, None, None, None)
    cross_entropy = _cross_entropy(score, torch.where(used[:, None], statistics_of, 0).log_softmax(1)) * poison
    stats = torch.stack([cross_entropy, statistics_of.logsumexp(1)])
    return Outputs(loss, None, stats, statistics_of.argmax(1))


def _cross_entropy(mass, log_probs):
    """- sum_j mass_j log_probs_j by rows, with 0 * -inf = 0."""
    return -torch.where(mass != 0, mass * log_probs, 0).sum(1)


def reject_out_of_range(problem: Problem):
    """On a CPU an index out of range is an error; elsewhere it makes the row's loss NaN, with no host sync."""
    num_classes, ignore_index = problem.logits.shape[1], problem.ignore_index
    checks = []
    if problem.has_labels:
        name = "target" if problem.target_b is None else "target[0]"
        checks.append((name, problem.target, num_classes, ignore_index))
    if problem.target_b is not None:
        checks.append(("target[1]", problem.target_b, num_classes, ignore_index))
    if problem.past is not None:
        checks.append(("past_index", problem.past_index, len(problem.past.values), -1))
    for name, index, bound, unused in checks:
        bad = ((index < 0) | (index >= bound)) & (index != unused)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise IndexError(f"{name}[{row}] = {int(index[row])} is out of range [0, {bound}) and not {unused}")


def scale_(gradient, upstream):
    gradient.mul_(upstream)
