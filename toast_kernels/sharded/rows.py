"""The formulas of blended_kl on a slice of the classes, rows in chunks: what each rank knows, and what all know.

Everything is worked out as in blended_kl/reference.py, from log-probabilities whose normalisers are those of all
classes. Sums over classes are a rank's own until the ranks' are added up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..blended_kl.problem import Problem
from ..softmax_statistics.op import softmax_statistics
from .tables import Dense, Listed, Lookup, Slice, as_column, log_probabilities, parts_of, product


class Label(NamedTuple):
    """The labels of rows, or the first or second of Mixup pairs, with what hangs on them."""

    label: Tensor  # [N] int64 in [0, C)
    share: Tensor  # [N] of the row: 1, lam or 1 - lam; 0 where it is ignored
    hard: Tensor  # [N] the mass of the label itself
    smooth: Tensor  # [N] what label smoothing is multiplied by
    soft: Tensor | None  # [N] what the soft target is multiplied by
    row: Lookup | None  # of the soft target


class Rows(NamedTuple):
    """What every rank works out of the rows alike; [N] float64 where nothing is said."""

    labels: list[Label]  # none for class probabilities
    past: Lookup | None
    used: Tensor  # bool
    poison: Tensor  # 1, or NaN where an index is out of range
    row_weight: Tensor
    smoothing: float | Tensor  # label smoothing of a class: a number, or [width] with class weights
    sum_of_smoothing: float | Tensor  # of all C classes

    def divisors(self) -> tuple[Tensor, Tensor]:
        """[]: what "mean" divides the class terms and the past terms by; the first may be 0."""
        sum_of_weights = torch.where(self.poison.isnan(), 0, self.row_weight).sum()
        if self.past is None:
            return sum_of_weights, torch.ones_like(sum_of_weights)
        return sum_of_weights, self.past.used.sum(dtype=torch.float64).clamp(min=1)


def prepare_rows(problem: Problem, own: Slice) -> Rows:
    target, weight, eps = problem.target, problem.weight, problem.label_smoothing
    num_rows = len(target)
    one = target.new_ones(num_rows, dtype=torch.float64)
    smoothing, sum_of_smoothing = eps / own.num_classes, eps
    if weight is not None and eps:
        smoothing = smoothing * weight[own.start : own.start + own.width]
        sum_of_smoothing = eps / own.num_classes * weight.sum(dtype=torch.float64)

    pairs = []
    if problem.has_labels and problem.target_b is None:
        pairs = [(target, one)]
    elif problem.has_labels:
        lam = problem.lam.double()
        pairs = [(target, lam), (problem.target_b, 1 - lam)]
    used = torch.full_like(one, not pairs, dtype=torch.bool)
    bad = torch.zeros_like(used)
    row_weight = one if not pairs else torch.zeros_like(one)
    labels = []
    for label, share in pairs:
        kept = label != problem.ignore_index
        out_of_range = kept & ((label < 0) | (label >= own.num_classes))
        used, bad = used | kept, bad | out_of_range
        y = torch.where(kept & ~out_of_range, label, 0)
        share = torch.where(kept, share, 0)
        weighted = share if weight is None else torch.where(share != 0, share * weight[y], 0)
        row_weight = row_weight + weighted
        hard, smooth, soft, row = (1 - eps) * weighted, share, None, None
        if problem.soft is not None:
            row = Lookup(problem.soft, y, kept & problem.soft.filled[y])
            a = torch.where(row.used, torch.as_tensor(problem.alpha, dtype=torch.float64, device=y.device), 0)
            hard, smooth, soft = (1 - a) * hard, (1 - a) * smooth, a * weighted
        labels.append(Label(y, share, hard, smooth, soft, row))

    past, num_past = None, 0 if problem.past is None else len(problem.past.values)
    if problem.past is not None:
        index = problem.past_index
        bad = bad | (used & ((index < -1) | (index >= num_past)))
        if num_past:
            row = torch.where(bad, 0, index.clamp(0, num_past - 1))
            past = Lookup(problem.past, row, used & ~bad & (index >= 0) & problem.past.filled[row])
    return Rows(labels, past, used, torch.where(bad, torch.nan, one), row_weight, smoothing, sum_of_smoothing)


def cut(x, part: slice):
    """Some of the rows, of Rows, Totals, Coefficients or what stands in them."""
    if isinstance(x, Tensor):
        return x[part]
    if isinstance(x, list):
        return [cut(y, part) for y in x]
    if isinstance(x, Lookup):
        return x._replace(index=x.index[part], used=x.used[part])
    if isinstance(x, Rows):
        of_classes = {"smoothing": x.smoothing, "sum_of_smoothing": x.sum_of_smoothing}
        return Rows(*(cut(y, part) for y in x[: -len(of_classes)]), **of_classes)
    return x and type(x)(*(cut(y, part) for y in x))


class Totals(NamedTuple):
    """Of each row, over all classes: [N] float64 where nothing is said."""

    logsumexp: Tensor
    at_temperature: Tensor | None
    argmax: Tensor | None  # int64
    of_soft: list[Tensor]  # Lookup.total, by labels
    of_past: Tensor | None
    mass: Tensor  # of the class term
    own_logsumexp: Tensor  # of this rank's classes


def names_of_statistics(problem: Problem, rows: Rows) -> list[str]:
    names = ["logsumexp"]
    if rows.past is not None:
        names += ["at_temperature", "past"]
    names += [f"soft {i}" for i, label in enumerate(rows.labels) if label.row is not None]
    if not problem.has_labels:
        names.append("probabilities")
    return names + ["max", "argmax"] * problem.need_stats


def statistics(problem: Problem, rows: Rows, own: Slice, step: int) -> Tensor:
    """[len(names_of_statistics), N] float64, of the classes that are here; `step` rows at a time where memory is
    needed."""
    z, names, found = problem.logits, names_of_statistics(problem, rows), {}
    if not own.width:
        nothing = {"logsumexp": -torch.inf, "at_temperature": -torch.inf, "max": -torch.inf}
        for name, row in [("past", rows.past), *((f"soft {i}", label.row) for i, label in enumerate(rows.labels))]:
            if row is not None and row.table.logsumexp is not None:
                nothing[name] = -torch.inf
        column = [nothing.get(name, 0.0) for name in names]
        return z.new_tensor(column, dtype=torch.float64)[:, None].expand(-1, len(z))
    parts = parts_of(len(z), step)
    for name, temperature in (("logsumexp", 1.0), ("at_temperature", problem.temperature)):
        if name in names:
            found[name] = softmax_statistics(z, temperature)[0].double()
    if rows.past is not None:
        found["past"] = torch.cat([cut(rows.past, part).statistic(z[part], own) for part in parts])
    for i, label in enumerate(rows.labels):
        if label.row is not None:
            found[f"soft {i}"] = torch.cat([cut(label.row, part).statistic(z[part], own) for part in parts])
    if not problem.has_labels:
        found["probabilities"] = torch.cat([_probabilities(problem, own, part, rows).sum(1) for part in parts])
    if problem.need_stats:
        found["max"], column = z.max(1)
        found["argmax"] = own.start + column
    return torch.stack([found[name].double() for name in names])


def totals(problem: Problem, rows: Rows, gathered: Tensor, rank: int) -> Totals:
    """Of the ranks' statistics [world, ..., N]; `rank` is this one."""
    given = dict(zip(names_of_statistics(problem, rows), gathered.unbind(1), strict=True))
    logsumexp = given["logsumexp"].logsumexp(0)
    at_temperature = of_past = argmax = None
    of_soft = []
    if rows.past is not None:
        at_temperature, of_past = given["at_temperature"].logsumexp(0), rows.past.total(given["past"])
    if problem.has_labels:
        mass = torch.zeros_like(logsumexp)
        for i, label in enumerate(rows.labels):
            mass = mass + label.hard + label.smooth * rows.sum_of_smoothing
            if label.row is not None:
                of_soft.append(label.row.total(given[f"soft {i}"]))
                mass = mass + label.soft * label.row.sums(of_soft[-1])
    else:
        mass = given["probabilities"].sum(0)
    if problem.need_stats:
        argmax = given["argmax"].gather(0, given["max"].argmax(0, keepdim=True))[0].long()
    return Totals(logsumexp, at_temperature, argmax, of_soft, of_past, mass, given["logsumexp"][rank])


class Coefficients(NamedTuple):
    """What the terms' gradients are multiplied by: [N] float64."""

    of_class: Tensor
    of_past: Tensor


def coefficients(problem: Problem, rows: Rows) -> Coefficients:
    """Of all rows: "mean" divides by what they have."""
    of_class = of_past = torch.where(rows.used, rows.poison, 0)
    if problem.reduction == "mean":
        sum_of_weights, rows_with_past = rows.divisors()
        of_class = torch.where(sum_of_weights == 0, 0, of_class / sum_of_weights)
        of_past = of_past / rows_with_past
    if problem.upstream is not None:
        of_class, of_past = of_class * problem.upstream, of_past * problem.upstream
    return Coefficients(of_class, of_past)


def losses(
    problem: Problem, rows: Rows, known: Totals, own: Slice, step: int, scale: Coefficients | None
) -> tuple[Tensor, Tensor | None]:
    """[2, N], or [3, N] with stats, in float64: what the classes that are here add to each row's class term, past term
    and cross-entropy against the labels alone; and, where a scale is given, the gradient [N, width]."""
    logits = problem.logits
    found = logits.new_zeros((3 if problem.need_stats else 2, len(logits)), dtype=torch.float64)
    gradient = None if scale is None else logits.new_empty(len(logits), own.width)
    if own.width:
        for part in parts_of(len(logits), step):
            _add_chunk(problem, rows, known, own, part, found[:, part], scale, gradient)
    return found, gradient


def _add_chunk(problem, rows, known, own, part, found, scale, gradient):
    dtype, rows = problem.dtype, cut(rows, part)
    z = problem.logits[part].to(dtype)
    log_p = _of_used(rows, log_probabilities(z, 1.0, known.logsumexp[part]))
    terms = _terms(problem, rows, known, own, part, z)
    for coefficient, mass in terms:
        found[0] += product(coefficient, mass.cross_entropy(log_p))
    uniform = _uniform_mass(problem, rows)
    if uniform is not None:
        found[0] -= product(uniform, log_p.sum(1))
    columns = [own.local(label.label) for label in rows.labels]
    hard = [torch.where(here, label.hard, 0) for label, (_, here) in zip(rows.labels, columns, strict=True)]
    for label, of_label, (column, here) in zip(rows.labels, hard, columns, strict=True):
        at_label = log_p.gather(1, column[:, None])[:, 0].double()
        found[0] += product(-of_label, at_label)
        if problem.need_stats:
            found[2] += product(torch.where(here, -label.share, 0), at_label)
    if problem.need_stats and not problem.has_labels:
        found[2] += Dense(problem.target[part].to(dtype)).cross_entropy(log_p)

    g = None
    if gradient is not None:
        of_class = scale.of_class[part]
        g = log_p.exp_().mul_(as_column(of_class * known.mass[part], dtype))
        for coefficient, mass in terms:
            mass.subtract_from(g, of_class * coefficient)
        if uniform is not None:
            g -= as_column(of_class * uniform, dtype)
        for of_label, (column, _) in zip(hard, columns, strict=True):
            g.scatter_add_(1, column[:, None], as_column(-of_class * of_label, dtype))
    del log_p, terms
    if rows.past is not None:
        temperature, past_weight = problem.temperature, problem.past_weight * rows.past.used.double()
        log_p = _of_used(rows, log_probabilities(z, temperature, known.at_temperature[part]))
        past = rows.past.rows(z, known.of_past[part], own)
        found[1] += temperature**2 * product(past_weight, past.cross_entropy(log_p) - past.entropy())
        if g is not None:
            of_past = scale.of_past[part] * temperature * past_weight
            mass = of_past * rows.past.sums(known.of_past[part])
            g += log_p.exp_().mul_(as_column(mass, dtype))
            past.subtract_from(g, of_past)
    if g is not None:
        gradient[part] = g


def _terms(problem, rows, known, own, part, z) -> list[tuple[Tensor, Dense | Listed]]:
    """The class term's mass but for what is uniform and the labels' own, and what it is multiplied by, [R] float64."""
    if not problem.has_labels:
        return [(torch.ones_like(known.logsumexp[part]), Dense(_probabilities(problem, own, part, rows)))]
    terms = [
        (label.soft, label.row.rows(z, known.of_soft[i][part], own))
        for i, label in enumerate(rows.labels)
        if label.row is not None
    ]
    if isinstance(rows.smoothing, Tensor):
        terms.append((sum(label.smooth for label in rows.labels), Dense(rows.smoothing.to(z.dtype)[None])))
    return terms


def _uniform_mass(problem: Problem, rows: Rows) -> Tensor | None:
    """[R] float64: what all classes have alike."""
    if not rows.labels or not problem.label_smoothing or isinstance(rows.smoothing, Tensor):
        return None
    return rows.smoothing * sum(label.smooth for label in rows.labels)


def _probabilities(problem: Problem, own: Slice, part: slice, rows: Rows) -> Tensor:
    """[R, width]: the mass of class probabilities as targets."""
    mass = (1 - problem.label_smoothing) * problem.target[part].to(problem.dtype)
    if problem.weight is not None:
        mass *= problem.weight[own.start : own.start + own.width]
    return mass.add_(rows.smoothing)


def _of_used(rows: Rows, log_p: Tensor) -> Tensor:
    """0 in rows that take no part, whatever they hold."""
    if log_p.device.type == "cpu" and rows.used.all():
        return log_p
    return log_p.masked_fill_(~rows.used[:, None], 0)
