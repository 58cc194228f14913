"""Pool: an epoch's rows of logits, or of features, with their labels, kept where nothing waits for a GPU."""

import torch
from torch import Tensor

from .kept_rows.op import PoolMemory, pool_rows
from .state import LARGE, state_rank, warn

_NAMES = PoolMemory._fields


class Pool:
    """The rows given since the last reset, less those whose label is ignore_index.

    With `predictions` = (P, dtype) each row has P numbers of that dtype beside it.

    Without `capacity` it grows, by half at least, as rows come. With `most` a class keeps that many rows at most: a
    random choice of all of its rows (Vitter's algorithm R), each as likely as any other.

    Its tensors lie where the rows do. What depends on the rows is in tensors only: in a CUDA graph an `add` goes on
    where the last replay ended.
    """

    def __init__(
        self, num_classes: int, width: int, dtype: torch.dtype, predictions: tuple[int, torch.dtype] | None = None, *,
        capacity: int | None, most: int | None, seed: int, ignore_index: int,
    ):  # fmt: skip
        self.num_classes = num_classes
        self.most, self.seed, self.ignore_index = most, seed, ignore_index
        self.capacity = capacity if most is None else num_classes * most

        def zeros(*shape, dtype=torch.int64):
            return torch.zeros(shape, dtype=dtype, device="cpu")  # until rows come, whatever the default device

        self.memory = PoolMemory(zeros(0, width, dtype=dtype), zeros(0), zeros(0), zeros(3))
        self.predictions = None if predictions is None else zeros(0, predictions[0], dtype=predictions[1])
        self.seen = None if most is None else zeros(num_classes)  # rows of each class so far
        self.may_warn = True
        self.at_most = 0  # rows there may be: on a GPU their number is not known without waiting for it

    @property
    def num_rows(self) -> int:
        """How many rows were given. Waits for a GPU."""
        return int(self.memory.counts[1])

    @property
    def num_dropped(self) -> int:
        """How many rows found no place. Waits for a GPU."""
        return max(0, int(self.memory.counts[0]) - len(self.memory.logits))

    def add(self, rows: Tensor, labels: Tensor, predictions: Tensor | None = None) -> None:
        """Adds [N, width] rows; labels int64 [N] and predictions [N, P] on their device."""
        if not len(labels):
            return
        if self.memory.logits.device != rows.device or self.capacity != len(self.memory.logits):
            self._make_room(len(labels), rows.device)
        places = None if self.most is None else self._places(labels)
        memory = self.memory
        if predictions is not None:  # go to the same places: from the same counts on
            beside = memory._replace(logits=self.predictions, counts=memory.counts.clone())
            pool_rows(predictions, labels, beside, self.num_classes, self.ignore_index, places)
        pool_rows(rows, labels, memory, self.num_classes, self.ignore_index, places)
        if self.seen is not None:
            self.seen.scatter_add_(0, labels.clamp(0, len(self.seen) - 1), self._kept(labels).long())
        self.at_most += len(labels) if self.capacity is None else 0

    def is_dry_run(self, rows: Tensor) -> bool:
        """Whether rows are on the device "meta" while the pool is not, or fake: they are to leave no trace."""
        return (rows.is_meta and not self.memory.counts.is_meta) or is_fake(rows)

    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(rows, labels, positions among the rows given, predictions or else the rows) of the rows that are kept;
        views. Waits for a GPU. With `most` places that no row has taken are there too, with label ignore_index."""
        rows, labels, positions, counts = self.memory
        kept = len(rows) if self.most is not None else min(int(counts[0]), len(rows))
        predictions = rows if self.predictions is None else self.predictions
        return rows[:kept], labels[:kept], positions[:kept], predictions[:kept]

    def reset(self) -> None:
        """Empties the pool, which keeps its memory."""
        self.memory.counts.zero_()
        self.at_most = 0
        if self.most is not None:
            self.memory.labels.fill_(self.ignore_index)
            self.seen.zero_()

    def allocate(self, device: torch.device) -> None:
        """Takes all of its memory now, and not with the first rows."""
        self._resize(self.capacity, device)

    def state(self) -> dict[str, Tensor]:
        """The tensors themselves, by name."""
        state = {**self.memory._asdict(), "predictions": self.predictions, "seen": self.seen}
        return {name: tensor for name, tensor in state.items() if tensor is not None}

    def load(self, state: dict[str, Tensor], prefix: str, missing: list[str], errors: list[str]) -> None:
        """Copies what a state has into its own tensors; the lists get what it lacks, and what has another shape."""
        rows = "pool_rows" if self.most is None else "num_classes * max_rows_per_class"
        columns = {"logits": "num_classes" if self.predictions is None else "num_features", "predictions": "2 * top_k"}
        for name, tensor in self.state().items():
            key = prefix + name
            if key not in state:
                missing.append(key)
            elif (shape := state[key].shape) != tensor.shape:
                source = columns[name] if shape[:1] == tensor.shape[:1] else rows
                errors.append(f"{key} must have shape {list(tensor.shape)} (from {source}), got {list(shape)}")
            else:
                tensor.copy_(state[key])

    def __getattr__(self, name: str) -> Tensor:
        """The tensors by name, as torch.distributed.checkpoint looks for what a state names."""
        if name in _NAMES:
            return getattr(self.__dict__["memory"], name)
        raise AttributeError(name)

    def _make_room(self, new_rows: int, device: torch.device) -> None:
        """For so many rows more, all on `device`."""
        if self.capacity is not None:
            if self.most is not None and self.predictions is None:  # a number of rows that nobody named
                self._warn_of(self.capacity, "with max_rows_per_class of each class: ToastLoss.linear pools features")
            self._resize(self.capacity, device)
            return
        needed, size = self.at_most + new_rows, len(self.memory.logits)
        if needed > size:
            self.at_most = int(self.memory.counts[0])  # without the rows that were ignored there may be room
            needed = self.at_most + new_rows
        if needed > size:
            size = max(needed, size * 3 // 2)  # by half at least, so that copying stays linear
            self._warn_of(size, "and grows: max_rows_per_class= or pool_rows= bounds it")
            self._resize(size, device)
        elif self.memory.logits.device != device:
            self._resize(size, device)

    def _warn_of(self, capacity: int, advice: str) -> None:
        rows, beside = self.memory.logits, self.predictions
        size = capacity * (rows.shape[1] * rows.element_size())
        size += 0 if beside is None else capacity * (beside.shape[1] * beside.element_size())
        if size > LARGE and self.may_warn:
            self.may_warn = False
            warn(
                f"the pool of an epoch's rows, [{capacity}, {rows.shape[1]}] of {rows.dtype}, takes {size / 2**30:.1f} "
                f"GiB {advice}"
            )

    @torch.inference_mode(False)
    @torch.no_grad()
    def _resize(self, capacity: int, device: torch.device) -> None:
        *old, counts = self.memory
        new = [part.new_zeros(capacity, *part.shape[1:], device=device) for part in old]
        if self.most is not None:
            new[1].fill_(self.ignore_index)
        for wide, part in zip(new, old, strict=True):
            wide[: len(part)] = part[:capacity]
        self.memory = PoolMemory(*new, counts.to(device))
        if self.predictions is not None:
            kept = self.predictions
            self.predictions = kept.new_zeros(capacity, kept.shape[1], device=device)
            self.predictions[: len(kept)] = kept[:capacity]
        self.seen = None if self.seen is None else self.seen.to(device)

    def _kept(self, labels: Tensor) -> Tensor:
        """bool [N]: whose label is a class that is not ignored."""
        return (labels != self.ignore_index) & (labels >= 0) & (labels < len(self.seen))

    @torch.no_grad()
    def _places(self, labels: Tensor) -> Tensor:
        """int64 [N]: the row of the pool that each takes, or -1. Class c has the rows from c * most on. Its k-th row
        (k = 0, 1, ...) goes to place k while there are such; from then on to a place drawn from k + 1, if it has it."""
        most, classes = self.most, len(self.seen)
        c, order = torch.where(self._kept(labels), labels, classes).sort(stable=True)
        same = torch.arange(len(c), dtype=torch.int64, device=c.device)
        same -= torch.searchsorted(c, c)  # rows of its class before, in here
        k = self.seen[c.clamp(max=classes - 1)] + same
        place = torch.where(k < most, k, _drawn(self.seed, state_rank(), c, k))
        place = torch.where((place < most) & (c < classes), c * most + place, -1)
        place, last = place.sort(stable=True)  # of those with one place the last comes
        place = torch.where(place == torch.cat([place[1:], place.new_full((1,), -2)]), -1, place)
        return torch.empty_like(place).scatter_(0, order[last], place)


def _drawn(seed: int, rank: int, c: Tensor, k: Tensor) -> Tensor:
    """Evenly from 0, ..., k, and always the same for the same arguments: their bits, mixed as by splitmix64."""
    start = (seed * 65_537 + rank + 2**63) % 2**64 - 2**63  # as int64 arithmetic wraps it
    x = (c * 1_000_003 + k) * -7046029254386353131 + start
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return (x & (2**63 - 1)) % (k + 1)


def is_fake(tensor: Tensor) -> bool:
    """Whether it is a FakeTensor, without values."""
    if type(tensor) is Tensor:  # in every step: looking it up would take longer
        return False
    from torch._subclasses.fake_tensor import is_fake

    return is_fake(tensor)
