"""Past predictions: HardReplay carries under-trained rows over to the next step, PredictionMemory an epoch."""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .soft_targets import SoftTargets, check_temperature


class PastPredictions(NamedTuple):
    """What the rows of a batch are distilled from."""

    targets: SoftTargets  # M rows
    index: Tensor  # int64 [N]: row of targets, or -1 for a row without a past prediction
    num_new: int  # the batch's rows from here on are replays: ToastLoss does not pool them a second time


class HardReplay:
    """Carries the hardest rows of each step into the next one, to be distilled from the predictions they just got.

        x, y, past = replay.extend(x, y)                      # the new rows, then the carried ones
        logits = model(x)
        loss, stats = criterion(logits, y, past, return_stats=True)
        ...
        replay.keep(x, y, logits, stats.cross_entropy)

    That under-trained data are distilled with past predictions of half the batch size is the paper's [paper]; that
    a row is under-trained when its cross-entropy is high is this library's reading [choice]. With n new rows in a
    step, round(fraction * n) rows are carried, the hardest first (of equal ones the first in the batch) among those
    that may be: not ignored, of finite score, and not carried `max_age` times in a row already.

    Other readings: fraction=1 is DLB's fixed half overlap, where every row is seen twice in a row [DLB]; with
    distil_fraction=0.5 only its harder half is distilled. :class:`PredictionMemory` replays nothing.

    Args:
        fraction: of the number of new rows, in [0, 1].
        max_age: how often in a row one row may be carried, >= 1. Without a cap the same look-alikes come back for
            ever: measured, up to 211 times, at a cost of 9 points of accuracy.
        distil_fraction: of the carried rows, the hardest ones, that get their past prediction; the others are only
            trained on again. In [0, 1].
        temperature: of the past predictions: the loss's temperature.
        top_k: keep past predictions as top-k rows; by default they stay the logits they are.
        ignore_index: rows with this label are never carried.
    """

    def __init__(
        self,
        fraction: float = 0.5,
        max_age: int = 1,
        *,
        distil_fraction: float = 1.0,
        temperature: float = 3.0,
        top_k: int | None = None,
        ignore_index: int = -100,
    ):
        for name, value in (("fraction", fraction), ("distil_fraction", distil_fraction)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        if isinstance(max_age, bool) or not isinstance(max_age, int) or max_age < 1:
            raise ValueError(f"max_age must be an int >= 1, got {max_age!r}")
        self.fraction = fraction
        self.max_age = max_age
        self.distil_fraction = distil_fraction
        self.temperature = check_temperature(temperature)
        self.top_k = top_k
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        """Forgets the carried rows."""
        self._carried = None  # {"x", "y", "targets", "index", "age"}
        self._age = None  # [N] of the batch that extend made: how often each row was carried
        self._num_new = 0

    def extend(self, x, y) -> tuple:
        """The batch with the carried rows after it.

        Args:
            x: a tensor [n, ...], or a tuple, list or dict of such.
            y: labels [n], class probabilities [n, C], or a triple (y_a, y_b, lam) with lam a number or [n].

        Returns:
            x, y, past: past is :class:`PastPredictions`, or None when nothing is carried. If only one of the batch and
            the carried rows has triples, both come back as triples.
        """
        rows = _num_rows("x", x)
        labels = _num_rows("y", y[:2] if isinstance(y, (tuple, list)) else y)
        if labels != rows:
            raise ValueError(f"y must have as many rows as x, {rows}, got {labels}")
        self._num_new = rows
        carried = self._carried
        if carried is None:
            self._age = torch.zeros(rows, dtype=torch.int64)
            return x, y, None
        x = tree_map(_append, x, carried["x"])
        old = carried["y"]
        if isinstance(y, (tuple, list)) or isinstance(old, tuple):
            y = tuple(map(_append, _as_triple(y), _as_triple(old)))
        else:
            y = _append(y, old)
        self._age = F.pad(carried["age"], (rows, 0))
        device = tree_leaves(y)[0].device
        index = F.pad(carried["index"], (rows, 0), value=-1).to(device)
        return x, y, PastPredictions(carried["targets"].to(device), index, rows)

    @torch.no_grad()
    def keep(self, x, y, logits: Tensor, cross_entropy: Tensor | None = None) -> None:
        """Chooses what the next step's extend adds. On a GPU this waits for the device.

        Args:
            x, y: what extend returned.
            logits: [N, C], what the model made of x; copied where carried.
            cross_entropy: [N], how under-trained each row is. Default the cross-entropy of logits and y; toast_loss
                gives it for free in its stats; any other score, higher for harder rows, may be passed.
        """
        rows = 0 if self._age is None else len(self._age)
        if logits.dim() != 2 or len(logits) != rows:
            expected = f"[N, C] with N = {rows} (the rows that extend returned)"
            raise ValueError(f"logits must have shape {expected}, got {list(logits.shape)}")
        if _num_rows("x", x) != rows:
            raise ValueError(f"x must have the {rows} rows that extend returned, got {_num_rows('x', x)}")
        if cross_entropy is None:
            cross_entropy = self._cross_entropy(logits, y)
        if cross_entropy.shape != (rows,):
            raise ValueError(f"cross_entropy must have shape [{rows}] (from logits), got {list(cross_entropy.shape)}")
        score = cross_entropy.detach()
        age = self._age.to(logits.device)
        may = (age < self.max_age) & score.isfinite() & self._labelled(y)
        order = torch.where(may, score, -torch.inf).argsort(descending=True, stable=True)
        chosen = order[: min(round(self.fraction * self._num_new), int(may.sum()))]
        self._age = None
        self._carried = None
        if len(chosen) == 0:
            return
        index = torch.arange(len(chosen), device=logits.device)
        past = logits[chosen]  # a copy
        self._carried = {
            "x": tree_map(lambda leaf: leaf.detach()[chosen.to(leaf.device)], x),
            "y": tree_map(lambda leaf: leaf.detach()[chosen], _as_triple(y) if isinstance(y, (tuple, list)) else y),
            "targets": SoftTargets.view_logits(past, self.temperature)
            if self.top_k is None
            else SoftTargets.from_logits(past, self.temperature, top_k=self.top_k),
            "index": torch.where(index < round(self.distil_fraction * len(chosen)), index, -1),
            "age": age[chosen] + 1,
        }

    def state_dict(self) -> dict:
        """The carried rows; complete between two steps (after keep, before extend)."""
        if self._carried is None:
            return {"carried": None}
        return {"carried": self._carried | {"targets": self._carried["targets"].state_dict()}}

    def load_state_dict(self, state: dict) -> None:
        self.reset()
        if (carried := state["carried"]) is not None:
            targets = SoftTargets.from_state_dict(carried["targets"])
            rest = {name: value for name, value in carried.items() if name != "targets"}
            self._carried = tree_map(_copy, rest) | {"targets": targets}

    def _cross_entropy(self, logits: Tensor, y) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))

        def against(labels):
            labels = labels if labels.is_floating_point() else labels.long()
            return F.cross_entropy(wide, labels, ignore_index=self.ignore_index, reduction="none")

        if isinstance(y, Tensor):
            return against(y)
        y_a, y_b, lam = _as_triple(y)
        return lam * against(y_a) + (1 - lam) * against(y_b)

    def _labelled(self, y) -> Tensor | bool:
        if isinstance(y, Tensor):
            return True if y.is_floating_point() else y != self.ignore_index
        return (y[0] != self.ignore_index) | (y[1] != self.ignore_index)


class PredictionMemory:
    """The last prediction of every training sample, for distillation one epoch later, without replay. [PS-KD]

        past = memory.past(sample)                            # sample: int64 [N], positions in the data set
        loss = criterion(logits, y, past)
        ...
        memory.keep(sample, logits)

    Args:
        num_samples, num_classes: the table is [num_samples, num_classes], or top_k wide.
        temperature: of the predictions: the loss's temperature.
        top_k: keep top-k rows, 8 k bytes a sample.
        dtype: of the stored probabilities; default bfloat16, for top-k float32.
        device: where the table lives; rows are moved to and from it.
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        temperature: float = 3.0,
        top_k: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        if num_samples < 1 or num_classes < 1:
            raise ValueError(f"num_samples and num_classes must be >= 1, got {num_samples} and {num_classes}")
        dtype = dtype or (torch.bfloat16 if top_k is None else torch.float32)
        self.top_k = top_k
        table = SoftTargets.empty(num_samples, num_classes, top_k=top_k, dtype=dtype, device=device)
        self.targets = replace(table, temperature=check_temperature(temperature))

    def reset(self) -> None:
        """Forgets all predictions."""
        self.targets.filled.fill_(False)

    def past(self, sample: Tensor) -> PastPredictions:
        """The last predictions of these samples; index is -1 where there is none yet."""
        targets = self.targets[self._rows(sample)].to(sample.device)
        index = torch.arange(len(sample), device=sample.device)
        return PastPredictions(targets, torch.where(targets.filled, index, -1), len(sample))

    @torch.no_grad()
    def keep(self, sample: Tensor, logits: Tensor) -> None:
        """Stores softmax(logits / temperature), [N, C]. A row that is not finite leaves its sample's last one."""
        rows = self._rows(sample)
        if logits.shape != (len(rows), self.targets.num_classes):
            expected = [len(rows), self.targets.num_classes]
            raise ValueError(
                f"logits must have shape {expected} (from sample and num_classes), got {list(logits.shape)}"
            )
        finite = logits.logsumexp(dim=1).isfinite()
        new = SoftTargets.from_logits(
            logits[finite], self.targets.temperature, top_k=self.top_k, dtype=self.targets.values.dtype
        )
        self.targets[rows[finite.to(rows.device)]] = new

    def state_dict(self) -> dict:
        return {"targets": self.targets.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        targets = SoftTargets.from_state_dict(state["targets"])
        if len(targets) != len(self.targets):
            raise ValueError(f"the state must have num_samples = {len(self.targets)} rows, got {len(targets)}")
        self.targets[:] = targets

    def _rows(self, sample: Tensor) -> Tensor:
        if sample.dtype != torch.int64 or sample.dim() != 1:
            raise ValueError(f"sample must be int64 [N], got {sample.dtype} {list(sample.shape)}")
        if sample.device.type == "cpu" and len(sample) and not 0 <= sample.min() <= sample.max() < len(self.targets):
            raise IndexError(
                f"sample must be in [0, {len(self.targets)}), got {int(sample.min())} to {int(sample.max())}"
            )
        return sample.to(self.targets.device)


def _copy(leaf):
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _num_rows(name: str, tree) -> int:
    leaves = tree_leaves(tree)
    if not leaves or not all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves):
        raise TypeError(f"{name} must be a tensor with a row dimension, or a tuple, list or dict of such tensors")
    if len({len(leaf) for leaf in leaves}) > 1:
        raise ValueError(f"the tensors in {name} must have as many rows as each other, got {[len(x) for x in leaves]}")
    return len(leaves[0])


def _append(new: Tensor, carried: Tensor) -> Tensor:
    return torch.cat([new, carried.to(new.device)])


def _as_triple(y) -> tuple[Tensor, Tensor, Tensor]:
    """Labels or a triple, as a triple whose lam is a tensor [N]."""
    y_a, y_b, lam = (y, y, 1.0) if isinstance(y, Tensor) else y
    return y_a, y_b, torch.as_tensor(lam, dtype=torch.float32, device=y_a.device).expand(len(y_a))
