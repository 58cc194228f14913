"""CarriedRows: the memory in which HardReplay keeps rows from one step to the next."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map

from .kept_rows.op import Slots
from .native import widest
from .soft_targets import SoftTargets


@dataclass
class CarriedRows:
    """The rows that are carried, in memory that stays where it is while batches keep their shapes."""

    x: dict[str, Tensor]  # [K, ...] each, by their names in the batch: named_leaves
    y: Tensor | tuple[Tensor, Tensor, Tensor]  # labels, a triple or class probabilities of K rows
    targets: SoftTargets
    index: Tensor  # int64 [n + K]: -1 for n new rows, then slots.index
    slots: Slots
    distil_fraction: float
    all_filled: bool = False  # as carry_rows knows it

    @classmethod
    def like(
        cls, count: int, x: dict[str, Tensor], y, logits: Tensor, num_classes: int, *, num_new: int,
        temperature: float, top_k: int | None, distil_fraction: float,
    ) -> "CarriedRows":  # fmt: skip
        """Memory for `count` rows of such a batch, for carry_rows to write. logits are of num_classes, or packed
        predictions."""
        device = logits.device

        def zeros(*shape, dtype=torch.int64):
            return torch.zeros(shape, dtype=dtype, device=device)

        def alike(leaf: Tensor) -> Tensor:
            return torch.empty_like(leaf[:count], requires_grad=False)

        if not isinstance(y, Tensor):
            y = zeros(count), zeros(count), zeros(count, dtype=torch.float32)
        else:
            y = alike(y) if y.is_floating_point() else zeros(count)
        kept_logits = zeros(count, logits.shape[1], dtype=logits.dtype)
        wide = torch.promote_types(logits.dtype, torch.float32)
        if top_k is None:
            targets = SoftTargets(
                kept_logits, zeros(count, dtype=wide), zeros(count, dtype=torch.bool), num_classes,
                logsumexp=zeros(count, dtype=widest(device)), temperature=temperature,
            )  # fmt: skip
        else:
            table = SoftTargets.empty(count, num_classes, top_k=top_k, dtype=wide, device=device)
            targets = replace(table, temperature=temperature)
        x = {name: alike(leaf) for name, leaf in x.items()}
        carried = cls.of(x, y, targets, zeros(count), zeros(count), distil_fraction, kept_logits)
        carried.index_of_batch(num_new)
        return carried

    @classmethod
    def of(
        cls, x: dict[str, Tensor], y, targets: SoftTargets, index: Tensor, age: Tensor, distil_fraction: float,
        logits: Tensor | None = None,
    ) -> "CarriedRows":  # fmt: skip
        """logits: where carry_rows puts them, if not into the targets themselves."""
        labels, labels_b, lam = y if isinstance(y, tuple) else (None if y.is_floating_point() else y, None, None)
        counts = torch.arange(len(age) + 1, dtype=widest(age.device), device=age.device)
        distilled = counts.mul_(distil_fraction).round_().long()  # to even, as Python's round
        entropy = None if targets.logsumexp is None else targets.entropy
        logits, row = targets.values if logits is None else logits, torch.zeros_like(age)
        slots = Slots(
            distilled, labels, labels_b, lam, logits, targets.logsumexp, entropy, targets.filled, index, age, row
        )
        return cls(x, y, targets, index, slots, distil_fraction)

    def to(self, device: torch.device) -> "CarriedRows":
        """Itself where it is there already. x stays where it is: a batch's inputs may lie elsewhere than its labels."""
        if self.targets.device == device:
            return self
        y = tree_map(lambda part: part.to(device), self.y)
        index, age = self.slots.index.to(device), self.slots.age.to(device)
        return CarriedRows.of(self.x, y, self.targets.to(device), index, age, self.distil_fraction)

    def fits(self, count: int, x: dict[str, Tensor], y, logits: Tensor) -> bool:
        """Whether it is memory for `count` rows like these."""
        if isinstance(y, Tensor) != isinstance(self.y, Tensor) or self.slots.filled.shape[0] != count:
            return False
        if x.keys() != self.x.keys():
            return False
        pairs = [(logits, self.slots.logits), *((leaf, self.x[name]) for name, leaf in x.items())]
        if isinstance(y, Tensor):
            if y.is_floating_point() != self.y.is_floating_point():
                return False
            pairs += [(y, self.y)] if y.is_floating_point() else []
        return all(
            one.dtype == kept.dtype and one.device == kept.device and one.shape[1:] == kept.shape[1:]
            for one, kept in pairs
        )

    def index_of_batch(self, num_new: int) -> Tensor:
        if self.index.shape[0] != num_new + self.slots.index.shape[0]:
            self.index = F.pad(self.slots.index, (num_new, 0), value=-1)
            self.slots = self.slots._replace(index=self.index[num_new:])
        return self.index

    def handed_out(self) -> list[Tensor]:
        """What a loss may have kept for its backward pass."""
        t = self.targets
        tensors = (t.values, t.indices, t.logsumexp, t.entropy, t.filled, self.index)
        return [tensor for tensor in tensors if tensor is not None]


def named_leaves(name: str, tree) -> dict[str, object]:
    """What a tensor, or a tree of tuples, lists, mappings and whatever else PyTorch's pytree knows, consists of, named
    as in Python: x, x['image'], x[0]."""
    if isinstance(tree, Tensor):
        return {name: tree}
    leaves = {}
    for path, leaf in tree_flatten_with_path(tree)[0]:
        at = name + keystr(path)
        if isinstance(leaf, Mapping):  # of a kind that pytree does not know
            for key, value in leaf.items():
                leaves |= named_leaves(f"{at}[{key!r}]", value)
        else:
            leaves[at] = leaf
    return leaves


def with_leaves(tree, leaves: Iterator[Tensor]):
    """A tree of the same kind with other leaves, in the order of `named_leaves`. A mapping that pytree does not know is
    made by its type from a dict, and stays one where the type takes none."""

    def exchanged(leaf):
        if not isinstance(leaf, Mapping):
            return next(leaves)
        items = {key: with_leaves(value, leaves) for key, value in leaf.items()}
        try:
            return type(leaf)(items)
        except TypeError:
            return items

    return exchanged(tree) if isinstance(tree, Tensor) else tree_map(exchanged, tree)
