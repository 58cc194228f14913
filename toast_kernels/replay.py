"""HardReplay: carries under-trained rows over to the next step, with the predictions they got."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from .annotations import Target
from .carried_rows import CarriedRows, named_leaves, with_leaves
from .checks import came, check_floating, check_int, check_int64, check_number, check_positive, type_of
from .kept_rows.op import carry_rows
from .soft_targets import SoftTargets
from .top_predictions import TopPredictions
from .uncompiled import leave_uncompiled

X = TypeVar("X")


class PastPredictions(NamedTuple):
    """What the rows of a batch are distilled from."""

    targets: SoftTargets | None  # M rows; None in the first step, before there are any
    index: Tensor  # int64 [N]: row of targets, or -1 for a row without a past prediction
    num_new: int  # the batch's rows from here on are replays: ToastLoss does not pool them a second time
    ignore_index: int | None = None  # the label of rows that stand for nothing; None where there are none
    temperature: float | None = None  # of the targets, also while there are none


class HardReplay:
    """Carries the hardest rows of each step into the next one, to be distilled from the predictions they just got.

        x, y, past = replay.extend(x, y)                      # the new rows, then K slots for carried ones
        logits = model(x)
        loss, stats = criterion(logits, y, past, return_stats=True)
        loss.backward()
        replay.keep(x, y, logits, stats.cross_entropy)        # after backward: it writes over what `past` refers to

    That under-trained data are distilled with past predictions of half the batch size is the paper's [paper]; that
    a row is under-trained when its cross-entropy is high is this library's reading [choice]. With n new rows in a
    step, K = round(fraction * n) rows are carried to the next one, the hardest first (of equal ones the first in the
    batch) among those that may be: not ignored, of finite score, and not carried `max_age` times in a row already.

    Every batch has K rows more than are new, the first one too (as if one of its own size had gone before), and nothing
    waits for a GPU: with batches of one size (drop_last=True) shapes never change; a slot for which there is no row
    repeats new row (slot mod n) with the label ignore_index. Such a row is in no loss and no mean; BatchNorm sees it.
    So a step always does the same, and a whole one can be captured in a CUDA graph once two have run. Only targets
    that are class probabilities, of which none can be ignored, come back without empty slots, and waiting for it.

    Other readings: fraction=1 is DLB's fixed half overlap, where every row is seen twice in a row [DLB]; with
    distil_fraction=0.5 only its harder half is distilled. :class:`PredictionMemory` replays nothing.

    Args:
        fraction: of the number of new rows, in [0, 1].
        max_age: how often in a row one row may be carried, >= 1. Without a cap the same look-alikes, hard at every
            age, would come back for ever.
        distil_fraction: of the carried rows, the hardest ones, that get their past prediction; the others are only
            trained on again. In [0, 1].
        temperature: of the past predictions: the loss's temperature.
        top_k: keep past predictions as top-k rows; by default they stay the logits they are.
        ignore_index: rows with this label are never carried, and empty slots have it: the loss's ignore_index.
        collate: for rows whose shapes change from batch to batch, such as texts padded to the longest of theirs: extend
            calls collate(x, carried), two batches of one kind, and takes the two that it returns, padded alike.

    torch.compile leaves extend and keep out: call them outside of what is compiled, or have a graph break at each.
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
        collate: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    ):
        self.fraction = check_number("fraction", fraction, 0, 1)
        self.max_age = check_int("max_age", max_age, 1)
        self.distil_fraction = check_number("distil_fraction", distil_fraction, 0, 1)
        self.temperature = check_positive("temperature", temperature)
        self.top_k = check_int("top_k", top_k, 1, or_none=True)
        self.ignore_index = check_int64("ignore_index", ignore_index)
        self.collate = collate
        leave_uncompiled(HardReplay, "extend", "keep")
        self.reset()

    def reset(self) -> None:
        """Forgets the carried rows, and that extend returned a batch."""
        self._carried: CarriedRows | None = None
        self._num_new = 0  # of the batch that extend made
        self._num_rows: int | None = None  # likewise; None when no batch waits for keep

    def extend(self, x: X, y: Target) -> tuple[X, Any, PastPredictions | None]:
        """The batch with K rows after it: those carried from the last step, in slots of which some may be empty.

        K = round(fraction * n) for the n of the step that chose them; in the first step, where all slots are empty,
        for its own n.

        Args:
            x: a tensor [n, ...], or a tuple, list or mapping of such (transformers' BatchEncoding is one; it comes back
                as one, without what else it held).
            y: labels [n], class probabilities [n, C], or a triple (y_a, y_b, lam) with lam a number or [n].

        Returns:
            x, y, past: past is :class:`PastPredictions`, valid until the next keep, or None where there are no slots.
            If only one of the batch and the carried rows has triples, both come back as triples. Labels come back as
            int64.

        Raises:
            ValueError, TypeError: x has other tensors than the carried rows, or rows of another shape (see `collate`).
            RuntimeError: the last batch was not handed to keep.
        """
        if self._num_rows is not None:
            raise RuntimeError(
                "extend was called twice without a keep between: call keep once after each extend, or reset() where a "
                "step was given up"
            )
        leaves, rows = _rows_of("x", x)
        labels = _rows_of_target(y)
        if labels != rows:
            raise ValueError(f"y must have as many rows as x, {rows}, got {labels}")
        probabilities = isinstance(y, Tensor) and y.is_floating_point()
        if isinstance(y, Tensor) and y.dim() != 1 + probabilities:
            raise ValueError(
                "y must be labels [n] of an integer dtype, floating class probabilities [n, C] or a triple, got "
                f"{y.dtype} {list(y.shape)}"
            )
        device = (y if isinstance(y, Tensor) else y[0]).device
        if self._carried is None:
            slots = 0 if probabilities else round(self.fraction * rows)
            if slots == 0:
                self._num_new = self._num_rows = rows
                return x, y, None
            x = with_leaves(x, iter([torch.cat([leaf, leaf[:slots]]) for leaf in leaves.values()]))
            empty = torch.full((slots,), self.ignore_index, dtype=torch.int64, device=device)
            targets, index = None, torch.full((rows + slots,), -1, dtype=torch.int64, device=device)
        else:
            carried = self._carried = self._carried.to(device)
            if probabilities != (carried.slots.labels is None):
                kinds = ["labels or triples", "class probabilities"]
                raise ValueError(
                    f"y must hold {kinds[not probabilities]} like the carried rows, which reset() forgets, "
                    f"got {kinds[probabilities]}"
                )
            slots, empty = carried.slots.filled.shape[0], carried.y
            x = self._with_carried(x, leaves, rows, carried)
            targets, index = carried.targets, carried.index_of_batch(rows)
        if isinstance(y, (tuple, list)) or isinstance(empty, tuple):
            y = tuple(map(_append, _as_triple(y), _as_triple(empty)))
        else:
            y = _append(y, empty)
        self._num_new, self._num_rows = rows, rows + slots
        return x, y, PastPredictions(targets, index, rows, self.ignore_index, self.temperature)

    def _with_carried(self, x, leaves: dict[str, Tensor], rows: int, carried: CarriedRows):
        """x and the carried rows after it, new rows again where a slot is empty."""
        kept = carried.x
        if leaves.keys() != kept.keys():
            raise ValueError(
                f"x must hold the tensors of the carried rows, which reset() forgets: {', '.join(kept)}, "
                f"got {', '.join(leaves)}"
            )
        if self.collate is not None:
            slots = len(carried.slots.filled)
            x, kept = self.collate(x, with_leaves(x, iter([kept[name] for name in leaves])))
            (leaves, new_rows), (kept, kept_rows) = _rows_of("x", x), _rows_of("x", kept)
            if (new_rows, kept_rows) != (rows, slots) or leaves.keys() != kept.keys():
                raise ValueError(
                    f"collate must return x and carried with the same tensors in both, of {rows} and {slots} rows, got "
                    f"{', '.join(leaves)} of {new_rows} and {', '.join(kept)} of {kept_rows}"
                )
        filled = None if carried.all_filled else carried.slots.filled
        return with_leaves(x, iter([_with_slots(name, leaf, kept[name], filled) for name, leaf in leaves.items()]))

    def keep(self, x: Any, y: Target, logits: Tensor | TopPredictions, cross_entropy: Tensor | None = None) -> None:
        """Chooses what the next step's extend adds.

        Call it after loss.backward(). Before it is as good where the loss made its gradient in its forward pass; where
        backward reads the past predictions again (float16 logits, reduction="none") it then raises, because they are
        written over here.

        Args:
            x, y: what extend returned.
            logits: [N, C], what the model made of x; copied where carried. With top_k also TopPredictions of so many
                classes or more, at this temperature.
            cross_entropy: [N], how under-trained each row is; toast_loss gives it for free in its stats. Default the
                cross-entropy of logits (not of TopPredictions) and y. Any other score, higher for harder rows, will do.

        Raises:
            RuntimeError: extend returned no batch since the last keep.
        """
        rows = self._num_rows
        if rows is None:
            raise RuntimeError("keep needs a batch from extend, and there is none since the last keep: call each once")
        num_classes = None
        if isinstance(logits, TopPredictions):
            if cross_entropy is None:
                raise ValueError("cross_entropy must be given with TopPredictions (from the loss's stats), got None")
            num_classes = logits.num_classes
            logits = logits.packed(self.top_k, self.temperature, logits.logsumexp_at_temperature)
        check_floating("logits", logits)
        if logits.dim() != 2 or logits.shape[0] != rows:
            expected = f"[N, C] with N = {rows} (the rows that extend returned)"
            raise ValueError(f"logits must have shape {expected}, got {list(logits.shape)}")
        leaves, rows_of_x = _rows_of("x", x)
        for name, found in (("x", rows_of_x), ("y", _rows_of_target(y))):
            if found != rows:
                raise ValueError(f"{name} must have the {rows} rows that extend returned, got {found}")
        if cross_entropy is not None and (not isinstance(cross_entropy, Tensor) or cross_entropy.shape != (rows,)):
            raise ValueError(f"cross_entropy must be a tensor of shape [{rows}], got {came(cross_entropy)}")
        with torch.no_grad():
            score = self._cross_entropy(logits, y) if cross_entropy is None else cross_entropy.detach()
            self._carry(leaves, y, logits.detach(), score.to(logits.device), num_classes)
        self._num_rows = None

    def _carry(self, x: dict[str, Tensor], y, logits: Tensor, score: Tensor, num_classes: int | None) -> None:
        """logits [N, C]; or packed predictions [N, 2 top_k] of num_classes."""
        before, count = self._carried, round(self.fraction * self._num_new)
        ages = None if before is None else before.slots.age
        labels = labels_b = lam = None
        if not isinstance(y, Tensor):
            labels, labels_b = (part.to(logits.device, torch.int64) for part in y[:2])
            lam = _as_triple(y)[2].to(logits.device)
        elif not y.is_floating_point():
            labels = y.to(logits.device, torch.int64)
        if labels is None:
            age = torch.zeros_like(score, dtype=torch.int64)
            if ages is not None:
                age[self._num_new :] = ages
            count = min(count, int(((age < self.max_age) & score.isfinite()).sum()))
        if count == 0:
            self._carried = None
            return
        carried = before
        if before is None or not before.fits(count, x, y, logits):
            carried = CarriedRows.like(
                count, x, y, logits, num_classes or logits.shape[1], num_new=self._num_new,
                temperature=self.temperature, top_k=self.top_k, distil_fraction=self.distil_fraction,
            )  # fmt: skip
        carried.all_filled = carry_rows(
            logits, labels, labels_b, lam, score, self._num_new, ages, carried.slots, self.max_age, self.ignore_index,
            self.temperature,
        )  # fmt: skip
        if num_classes is not None:
            carried.targets.write_listed(*carried.slots.logits.chunk(2, dim=1))
        elif self.top_k is not None:
            carried.targets.write_top_k(carried.slots.logits)
        gathered = [(leaf, carried.x[name]) for name, leaf in x.items()]
        for leaf, kept in [*gathered, (y, carried.y)] if labels is None else gathered:
            torch.index_select(leaf, 0, carried.slots.row.to(leaf.device), out=kept)
        torch.autograd.graph.increment_version(carried.handed_out())
        self._carried = carried

    def state_dict(self) -> dict:
        """The carried rows; complete between two steps (after keep, before extend). As a module's state it refers to
        the memory itself, which the next keep writes over."""
        if self._carried is None:
            return {"carried": None}
        c = self._carried
        state = {"x": c.x, "y": c.y, "targets": c.targets.state_dict(), "age": c.slots.age}
        return {"carried": state | {"index": c.slots.index.clone()}}  # a view: it would be saved with all behind it

    def load_state_dict(self, state: dict) -> None:
        """Copies the state's rows to memory of their own: a CUDA graph is to be captured after it."""
        carried = state.get("carried", state)
        if carried is not None and not isinstance(carried.get("x"), dict):
            raise ValueError(f"state must be of HardReplay.state_dict, x a dict of tensors by name, got {list(state)}")
        self.reset()
        if (state := carried) is not None:
            targets = SoftTargets.from_state_dict(state["targets"])
            top_k = targets.values.shape[1] if targets.encoding == "top-k" else None
            for name, of_state in (("temperature", targets.temperature), ("top_k", top_k)):
                if of_state != getattr(self, name):
                    raise ValueError(f"the state must have {name} = {getattr(self, name)}, got {of_state}")
            x, y, index, age = tree_map(_copy, [state[name] for name in ("x", "y", "index", "age")])
            self._carried = CarriedRows.of(x, y, targets, index, age, self.distil_fraction)

    def _cross_entropy(self, logits: Tensor, y) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))

        def against(labels):
            labels = labels if labels.is_floating_point() else labels.long()
            return F.cross_entropy(wide, labels, ignore_index=self.ignore_index, reduction="none")

        if isinstance(y, Tensor):
            return against(y)
        y_a, y_b, lam = _as_triple(y)
        return lam * against(y_a) + (1 - lam) * against(y_b)


def _copy(leaf):
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _rows_of(name: str, tree) -> tuple[dict[str, Tensor], int]:
    """The tensors in it by name, and how many rows each has."""
    leaves = named_leaves(name, tree)
    wrong = [f"{type_of(x)} at {at}" for at, x in leaves.items() if not isinstance(x, Tensor) or not x.dim()]
    if wrong or not leaves:
        raise TypeError(
            f"{name} must be a tensor with a row dimension, or a tuple, list or mapping of such tensors, "
            f"got {', '.join(wrong) or 'an empty ' + type_of(tree)}"
        )
    rows = {at: len(leaf) for at, leaf in leaves.items()}
    if len(set(rows.values())) > 1:
        found = ", ".join(f"{at}: {count}" for at, count in rows.items())
        raise ValueError(f"the tensors in {name} must have as many rows as each other, got {found}")
    return leaves, next(iter(rows.values()))


def _rows_of_target(y) -> int:
    if not isinstance(y, Tensor) and not (isinstance(y, (tuple, list)) and len(y) == 3):
        raise TypeError(f"y must be a tensor or a triple (y_a, y_b, lam), got {type_of(y)}")
    return _rows_of("y", y if isinstance(y, Tensor) else y[:2])[1]


def _with_slots(name: str, new: Tensor, kept: Tensor, filled: Tensor | None) -> Tensor:
    """The new rows [n, ...] and K slots: kept rows [K, ...] where filled (None: everywhere), else new rows again."""
    if new.shape[1:] != kept.shape[1:]:
        raise ValueError(
            f"{name} must have rows of shape {list(kept.shape[1:])} like the carried ones, which reset() forgets, "
            f"got {list(new.shape[1:])}: pad all batches alike, or pass HardReplay a collate that does"
        )
    if filled is None:
        return _append(new, kept)
    rows, slots = new.shape[0], kept.shape[0]
    kept, filled = kept.to(new.device), filled.to(new.device)
    if slots <= rows:
        again = new[:slots]
    else:
        again = new[torch.arange(slots, dtype=torch.int64, device=new.device) % rows] if rows else kept
    return torch.cat([new, torch.where(filled.view(-1, *[1] * (new.dim() - 1)), kept, again)])


def _append(new: Tensor, kept: Tensor) -> Tensor:
    return torch.cat([new, kept.to(new.device)])


def _as_triple(y) -> tuple[Tensor, Tensor, Tensor]:
    """Labels or a triple, as a triple whose lam is a tensor [N]."""
    y_a, y_b, lam = (y, y, 1.0) if isinstance(y, Tensor) else y
    if not isinstance(lam, Tensor):
        lam = torch.full((), lam, dtype=torch.float32, device=y_a.device)  # filled there: a copy from here would wait
    return y_a, y_b, lam.to(y_a.device, torch.float32).expand(len(y_a))
