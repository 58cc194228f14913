"""SoftTargets: rows of class probabilities, one format for class soft targets and for past predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .blended_kl.problem import Table, is_traced, tail
from .checks import came, check_floating, check_int, check_positive
from .softmax_statistics.op import softmax_statistics

_PROBABILITY_DTYPES = (torch.bfloat16, torch.float32, torch.float64)
_CHUNK = 1 << 22  # elements worked on at once: temporaries stay below about 100 MB whatever the size of the table


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """Rows s_1 ... s_R of probabilities over C classes, with each row's entropy kept beside it.

    Make one with :meth:`from_logits`, :meth:`from_probs`, :meth:`view_logits` or :meth:`empty`. Three encodings:

    ========  ====================================  =================================================
    encoding  values                                row r stands for
    ========  ====================================  =================================================
    dense     [R, C] probabilities                  s_r = values[r]
    top-k     [R, k] probabilities, indices [R, k]  values[r] at indices[r]; what is left of 1, the tail,
                                                    spread uniformly over the other C - k classes; in a
                                                    loss, over those whose logit is not -inf
    logits    [R, C] logits                         s_r = softmax(values[r] / temperature)
    ========  ====================================  =================================================

    Attributes:
        values: see above; bfloat16, float32 or float64 (logits: any floating dtype).
        entropy: [R], float32 (float64 for float64 values): -sum_c s_rc log s_rc in nats of the row as it is stored,
            after rounding; 0 log 0 is 0.
        filled: bool [R]. A row that is not filled stands for no target at all, whatever its values and entropy are.
        num_classes: C.
        indices: int32 [R, k], ascending within each row. Top-k only.
        logsumexp: float64 [R], logsumexp(values / temperature): in float32 its rounding would show in the probabilities
            of logits far from 0. Logits only.
        temperature: what the logits were divided by; None when unknown (from_probs).

    Everything is detached: soft targets are constants of the loss. The tensors may be written in place; the fields are
    not to be exchanged (dataclasses.replace makes another table). The format is a choice of this library, not the
    paper's. [choice]
    """

    values: Tensor
    entropy: Tensor
    filled: Tensor
    num_classes: int
    indices: Tensor | None = None
    logsumexp: Tensor | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        shape, num_classes = self.values.shape, self.num_classes
        if len(shape) != 2 or shape[1] > num_classes or (self.indices is None and shape[1] < num_classes):
            expected = f"[R, C] with C = {num_classes} (num_classes), or with indices [R, k], k <= C"
            raise ValueError(f"values must have shape {expected}, got {list(shape)}")
        rows = shape[:1]
        expected = {"entropy": rows, "filled": rows, "logsumexp": rows, "indices": shape}
        for name, shape in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"{name} must have shape {list(shape)} (from values), got {list(tensor.shape)}")

    @property
    def kind(self) -> tuple:
        """What a kernel's launch depends on: all that writing in place does not change."""
        kind = self.__dict__.get("_kind")
        if kind is None:
            tensors = tuple((x.shape, x.stride(), x.dtype, x.device) for _, x in self._tensors())
            kind = self.__dict__["_kind"] = (self.encoding, self.num_classes, self.temperature, *tensors)
        return kind

    @classmethod
    @torch.no_grad()
    def from_logits(
        cls,
        logits: Tensor,
        temperature: float = 1.0,
        *,
        top_k: int | None = None,
        dtype: torch.dtype | None = None,
        filled: Tensor | None = None,
    ) -> SoftTargets:
        """s = softmax(logits / temperature), row by row.

        Args:
            logits: [R, C], floating. -inf is legal (probability 0) unless it fills the row; NaN and +inf are not.
            temperature: finite, > 0.
            top_k: keep the k largest of each row, 1 <= k <= C; among equal ones the lowest classes.
            dtype: of values. Dense: bfloat16 for half-precision logits, otherwise the logits' own. Top-k: float32,
                or float64 for float64 logits.
            filled: bool [R], default all True. The other rows' logits are not looked at.

        Raises:
            TypeError, ValueError: an argument is not as described. On a GPU the look at the values is a host sync.
        """
        _check_matrix("logits", logits)
        temperature = check_positive("temperature", temperature)

        def soften(rows: Tensor) -> Tensor:
            return torch.softmax(_at_least_float32(rows) / temperature, dim=1)

        expected = "logits must have no NaN, no +inf, and no row of -inf only"
        return replace(cls._encode(logits, soften, expected, top_k, dtype, filled), temperature=temperature)

    @classmethod
    @torch.no_grad()
    def from_probs(
        cls,
        probs: Tensor,
        *,
        top_k: int | None = None,
        dtype: torch.dtype | None = None,
        filled: Tensor | None = None,
    ) -> SoftTargets:
        """Rows given as probabilities: each >= 0, each row summing to 1 within 1% (bfloat16 rounds by up to 2^-8).

        Rows are stored as they are, not normalised. Arguments and errors as in :meth:`from_logits`.
        """
        _check_matrix("probs", probs)

        def check(rows: Tensor) -> Tensor:
            rows = _at_least_float32(rows)
            good = (rows >= 0).all(dim=1) & ((rows.sum(dim=1) - 1).abs() <= 1e-2)
            return torch.where(good[:, None], rows, torch.nan)

        return cls._encode(probs, check, "probs must be >= 0 with rows that sum to 1 within 1%", top_k, dtype, filled)

    @classmethod
    @torch.no_grad()
    def view_logits(cls, logits: Tensor, temperature: float) -> SoftTargets:
        """softmax(logits / temperature) without writing it: the logits themselves are kept, not copied.

        They must not be changed afterwards. Only logsumexp and entropy, [R] each, are computed. Values are not looked
        at (no host sync): a NaN in a row shows as a NaN in its entropy. Arguments as in :meth:`from_logits`.
        """
        _check_matrix("logits", logits)
        temperature = check_positive("temperature", temperature)
        logits = logits.detach()
        logsumexp, entropy = softmax_statistics(logits, temperature)
        filled = torch.ones_like(entropy, dtype=torch.bool)
        return cls(logits, entropy, filled, logits.shape[1], logsumexp=logsumexp, temperature=temperature)

    @classmethod
    def empty(
        cls,
        num_rows: int,
        num_classes: int,
        *,
        top_k: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> SoftTargets:
        """A table of rows that are not filled yet: dense, or top-k when top_k is given."""
        num_rows, num_classes = check_int("num_rows", num_rows, 0), check_int("num_classes", num_classes, 1)
        if dtype not in _PROBABILITY_DTYPES:
            raise TypeError(f"dtype must be one of {', '.join(map(str, _PROBABILITY_DTYPES))}, got {dtype}")
        indices = None
        if top_k is not None:
            top_k = check_int("top_k", top_k, 1, num_classes)
            indices = torch.arange(top_k, dtype=torch.int32, device=device).repeat(num_rows, 1)
        values = torch.zeros(num_rows, num_classes if top_k is None else top_k, dtype=dtype, device=device)
        entropy = values.new_zeros(num_rows, dtype=torch.promote_types(dtype, torch.float32))
        filled = torch.zeros(num_rows, dtype=torch.bool, device=device)
        return cls(values, entropy, filled, num_classes, indices)

    @classmethod
    def from_listed(
        cls, probs: Tensor, classes: Tensor, num_classes: int, temperature: float | None = None, *,
        dtype: torch.dtype = torch.float32,
    ) -> SoftTargets:  # fmt: skip
        """Top-k rows, all filled, given as probs [R, k] of classes [R, k], as :meth:`write_listed` takes them.
        Classes that are not distinct and in [0, num_classes) raise a ValueError; on a GPU they are not checked."""
        _check_matrix("probs", probs)
        num_classes = check_int("num_classes", num_classes, 1)
        if not isinstance(classes, Tensor) or classes.shape != probs.shape:
            raise ValueError(f"classes must be a tensor of shape {list(probs.shape)} (from probs), got {came(classes)}")
        if classes.device.type == "cpu" and not is_traced():
            ranked = classes.long().sort(dim=1).values
            wrong = (ranked[:, 0] < 0) | (ranked[:, -1] >= num_classes) | (ranked.diff(dim=1) == 0).any(dim=1)
            if wrong.any():
                expected, row = f"distinct and in [0, {num_classes}) in each row", classes[wrong][0].tolist()
                raise ValueError(f"classes must be {expected}, got {row}")
        table = cls.empty(len(probs), num_classes, top_k=probs.shape[1], dtype=dtype, device=probs.device)
        table.filled.fill_(True)
        table.write_listed(probs, classes)
        return replace(table, temperature=temperature)

    @property
    def encoding(self) -> str:
        """The table's kind: "dense", "top-k" or "logits"."""
        if self.indices is not None:
            return "top-k"
        return "dense" if self.logsumexp is None else "logits"

    @property
    def device(self) -> torch.device:
        return self.values.device

    def __len__(self) -> int:
        return self.values.shape[0]

    def dense(self) -> Tensor:
        """[R, C] probabilities in float32 (float64 for float64 values); zeros in the rows that are not filled."""
        return self.table.dense(self.num_classes)

    @property
    def table(self) -> Table:
        """As kernels take it."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return Table(self.values, self.indices, self.logsumexp, self.entropy, self.filled, temperature)

    def to(self, device: torch.device | str) -> SoftTargets:
        """The same rows on another device; self when they are there already."""
        device = torch.empty(0, dtype=torch.uint8, device=device).device  # "cuda" means the current one
        return self if device == self.device else self._map(lambda t: t.to(device))

    def __getitem__(self, rows: Tensor | slice) -> SoftTargets:
        """Some of the rows: a slice (views), an index tensor or a bool mask (copies)."""
        if isinstance(rows, int):
            raise TypeError("rows must be a slice, an index tensor or a bool mask, got an int")
        return self._map(lambda t: t[rows])

    def __setitem__(self, rows: Tensor | slice, other: SoftTargets) -> None:
        """Overwrites some of the rows, in place, with those of a table of the same kind."""
        for name in ("encoding", "num_classes", "temperature"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"rows to store must have {name} {mine!r} like the table, got {theirs!r}")
        mine, theirs = ((t.values.shape[1], t.values.dtype) for t in (self, other))
        if mine != theirs:
            raise ValueError(f"rows to store must have values of width and dtype {mine} like the table, got {theirs}")
        for name, tensor in self._tensors():
            tensor[rows] = getattr(other, name).to(tensor.device)

    def state_dict(self) -> dict:
        """All fields by name; loads with torch.load(weights_only=True)."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state_dict(cls, state: dict) -> SoftTargets:
        """The inverse of :meth:`state_dict`; the tensors are copied."""
        return cls(**state)._map(Tensor.clone)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, value) for name, value in self.state_dict().items() if isinstance(value, Tensor))

    def _map(self, function) -> SoftTargets:
        changed = {name: function(tensor) for name, tensor in self._tensors()}
        return type(self)(**{**self.state_dict(), **changed})  # Dynamo of torch 2.6 knows no | of these

    @classmethod
    def _encode(cls, source: Tensor, to_probs: Callable, expected: str, top_k, dtype, filled) -> SoftTargets:
        """The table of to_probs(source), a chunk of rows at a time; a NaN among these is an error."""
        dtype = dtype or default_dtype(source.dtype, top_k)
        table = cls.empty(*source.shape, top_k=top_k, dtype=dtype, device=source.device)
        if filled is None:
            filled = torch.ones_like(table.filled)
        elif not isinstance(filled, Tensor) or filled.dtype != torch.bool or filled.shape != table.filled.shape:
            raise ValueError(f"filled must be a bool tensor of shape [{len(table)}], got {came(filled)}")
        table.filled.copy_(filled)
        for rows in _chunks(*source.shape):
            kept = table.filled[rows]
            probs = torch.where(kept[:, None], to_probs(source[rows]), 0)
            bad = probs.isnan().any(dim=1)
            if bad.any():
                raise ValueError(f"{expected}; row {rows.start + int(bad.nonzero()[0])} is not so")
            if top_k is None:
                table.values[rows] = probs
                table.entropy[rows] = _entropy(_at_least_float32(table.values[rows]))
            else:
                table._store_largest(rows, probs)
        return table

    @torch.no_grad()
    def write_top_k(self, logits: Tensor) -> None:
        """Overwrites all of a top-k table, in place, with the k largest of softmax(logits / temperature), [R, C].

        Rows that are not filled are written too. Values are not looked at (no host sync): a NaN in a row shows as a
        NaN in its entropy.
        """
        for rows in _chunks(*logits.shape):
            self._store_largest(rows, torch.softmax(_at_least_float32(logits[rows]) / self.temperature, dim=1))

    @torch.no_grad()
    def write_listed(self, probs: Tensor, classes: Tensor) -> None:
        """Overwrites all of a top-k table, in place, with probs [R, k] of these classes [R, k], which may come in any
        order and dtype. As in :meth:`write_top_k` rows that are not filled are written and values not looked at."""
        classes, order = classes.sort(dim=1)
        self._store_listed(slice(None), probs.gather(1, order), classes)

    def _store_largest(self, rows: slice, probs: Tensor) -> None:
        chosen = _largest(probs, self.values.shape[1])
        self._store_listed(rows, probs.gather(1, chosen), chosen)

    def _store_listed(self, rows: slice, probs: Tensor, classes: Tensor) -> None:
        top_k = self.values.shape[1]
        stored = _at_least_float32(probs.to(self.values.dtype))
        uniform = tail(stored, max(self.num_classes - top_k, 1))
        entropy = _entropy(stored) + (self.num_classes - top_k) * torch.special.entr(uniform)
        self.indices[rows] = classes.int()
        self.values[rows] = stored
        self.entropy[rows] = torch.where(self.filled[rows], entropy, 0)


def default_dtype(source: torch.dtype, top_k: int | None) -> torch.dtype:
    """The dtype that rows made from `source` are stored in unless told otherwise."""
    if top_k is None and source in (torch.float16, torch.bfloat16):
        return torch.bfloat16
    return torch.promote_types(source, torch.float32)


def _check_matrix(name: str, matrix: Tensor) -> None:
    check_floating(name, matrix)
    if matrix.dim() != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{name} must have shape [R, C] with C >= 1, got {list(matrix.shape)}")


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _chunks(num_rows: int, num_classes: int) -> Iterator[slice]:
    step = max(1, _CHUNK // num_classes)
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(dim=1)


def _largest(probs: Tensor, k: int) -> Tensor:
    """int64 [R, k]: the k largest of each row, ascending; of those equal to the k-th, the lowest."""
    kth = probs.topk(k, dim=1).values[:, -1:]
    above, equal = probs > kth, probs == kth
    room = k - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1) <= room))
    columns = torch.arange(probs.shape[1], dtype=torch.int64, device=probs.device)
    # topk and not nonzero, which waits for a GPU. A row with a NaN has too few that are chosen: any column will do.
    return torch.where(chosen, columns, columns[-1]).topk(k, dim=1, largest=False, sorted=True).values
