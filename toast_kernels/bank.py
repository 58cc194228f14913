"""MedoidBank: pools an epoch's logits, then turns each class's medoid into the class's soft target."""

import warnings

import torch
from torch import Tensor, nn

from .annotations import Backend, Metric, Target
from .arguments import label_shape
from .functional import class_medoids
from .kept_rows.op import pool_rows as copy_to_pool
from .soft_targets import SoftTargets, check_temperature, default_dtype
from .uncompiled import leave_uncompiled


class MedoidBank(nn.Module):
    r"""Class soft targets from the medoid of each class's logits: update / compute / reset, as in torchmetrics.

    .. math::
        m_c = \arg\min_{i : y_i = c} \sum_{j : y_j = c} d(z_i, z_j), \qquad S_c = softmax(z_{m_c} / \tau)

    That soft targets come from class medoids of logit vectors is the paper's [paper]; that they are taken over one
    epoch and used in the next is OLS's [OLS]; metric, temperature and the storage are this library's [choice].

    Args:
        num_classes: C.
        metric: "euclidean", "sqeuclidean", "cosine", "cityblock" or "jeffreys"; see :func:`class_medoids`.
        temperature: tau > 0.
        top_k: store the k largest probabilities of a row instead of all C.
        correct_only: pool only rows that the model got right (argmax = label). [OLS]
        min_share: a mixed row (Mixup, CutMix) belongs to a class from this share of it on, in (0.5, 1]; other mixed
            rows belong to none. [choice]
        dtype: of the soft targets; default by the dtype of the first logits given, see :class:`SoftTargets`.
        pool_dtype: the pool takes N * C values of it. float16 holds a logit to 0.05%, and bfloat16 logits exactly;
            a row with a logit above its range, 65504, is left out like any row that is not finite.
        pool_rows: the pool is made once, for this many rows, on the device of the first logits, and on a GPU the rows
            in it are counted there: a CUDA graph that holds an update goes on where the last replay ended. Default: it
            grows as rows come.
        ignore_index: rows with this label are left out.
        backend: of class_medoids.

    Attributes:
        medoids: int64 [C] after compute: the medoid's position among the rows given to update since the last reset
            (all of them count, those left out too), or -1.
        num_rows: how many rows were given to update since the last reset. Reading it waits for a GPU with pool_rows.

    The state is complete, in the middle of an epoch too: it holds the pooled rows. The pool lives on the device of
    the logits and keeps its memory from epoch to epoch.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        metric: Metric = "euclidean",
        temperature: float = 1.0,
        top_k: int | None = None,
        correct_only: bool = False,
        min_share: float = 0.9,
        dtype: torch.dtype | None = None,
        pool_dtype: torch.dtype = torch.float16,
        pool_rows: int | None = None,
        ignore_index: int = -100,
        backend: Backend = "auto",
    ):
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes must be an int >= 1, got {num_classes!r}")
        if not 0.5 < min_share <= 1:
            raise ValueError(f"min_share must be in (0.5, 1], got {min_share}")
        if not pool_dtype.is_floating_point:
            raise TypeError(f"pool_dtype must be a floating-point dtype, got {pool_dtype}")
        if pool_rows is not None and (isinstance(pool_rows, bool) or not isinstance(pool_rows, int) or pool_rows < 1):
            raise ValueError(f"pool_rows must be None or an int >= 1, got {pool_rows!r}")
        leave_uncompiled(MedoidBank, "update")
        check_temperature(temperature)
        SoftTargets.empty(0, num_classes, top_k=top_k, dtype=dtype or torch.float32)  # checks top_k and dtype
        self.num_classes = num_classes
        self.metric = metric
        self.temperature = temperature
        self.top_k = top_k
        self.correct_only = correct_only
        self.min_share = min_share
        self.dtype = dtype
        self.pool_rows = pool_rows
        self.ignore_index = ignore_index
        self.backend = backend
        self.medoids = torch.full((num_classes,), -1)
        self._count = 0 if pool_rows is None else torch.zeros((), dtype=torch.int64)  # on a GPU beyond pool_rows too
        self._logits = torch.empty(0, num_classes, dtype=pool_dtype)
        self._labels = torch.empty(0, dtype=torch.int64)

    @property
    def num_rows(self) -> int:
        return int(self._count)

    def update(self, logits: Tensor, target: Target) -> None:
        """Adds a copy of the rows to the pool. Does not wait for a GPU; torch.compile leaves it out. In a backward pass
        it adds nothing: that is a checkpoint's second forward pass, over the rows of the first.

        Args:
            logits: [N, C] or [N, C, d1, ...] (each position is a row).
            target: labels [N] or [N, d1, ...]; a triple (y_a, y_b, lam); or class probabilities shaped like logits.

        Raises:
            IndexError: on the CPU, a label that is neither in [0, C) nor ignore_index. Nothing was added.
            RuntimeError: on the CPU, the rows do not fit into pool_rows. On a GPU compute raises it.
        """
        if not logits.is_floating_point():
            raise TypeError(f"logits must be a floating-point tensor, got {logits.dtype}")
        if torch._C._current_graph_task_id() != -1:
            if self.pool_rows is None and not self._count:
                warnings.warn(
                    "rows that come in a backward pass are not pooled, and none came before: in a reentrant checkpoint "
                    "the forward pass has no gradients; use use_reentrant=False, or keep the loss out of it",
                    stacklevel=2,
                )
            return
        if logits.requires_grad:
            logits = logits.detach()
        if logits.dim() < 2 or logits.shape[1] != self.num_classes:
            expected = f"[N, C] or [N, C, d1, ...] with C = {self.num_classes}"
            raise ValueError(f"logits must have shape {expected}, got {list(logits.shape)}")
        labels = self._labels_of(target)
        shape = label_shape(logits)
        if labels.shape != shape:
            raise ValueError(f"target must have shape {list(shape)} (from logits), got {list(labels.shape)}")
        if self.correct_only:
            labels = torch.where(logits.argmax(dim=1) == labels, labels, self.ignore_index)
        rows = logits if logits.dim() == 2 else logits.movedim(1, -1).reshape(-1, self.num_classes)
        labels = (labels if labels.dim() == 1 else labels.reshape(-1)).to(logits.device, torch.int64)
        start = self._reserve(rows.shape[0], logits.device)
        copy_to_pool(rows, labels, self._logits, self._labels, start, self.ignore_index)
        if self.pool_rows is None:
            self._count += rows.shape[0]
        else:
            self._count.add_(rows.shape[0])
        if self.dtype is None:
            self.dtype = default_dtype(logits.dtype, self.top_k)

    @torch.no_grad()
    def compute(self) -> SoftTargets:
        """C rows, row c from the medoid of class c; not filled where no row of the pool belongs to the class.

        Raises:
            RuntimeError: nothing was given to update since the last reset, or more than pool_rows rows.
        """
        num_rows = self.num_rows
        if num_rows == 0:
            raise RuntimeError("the pool is empty: compute() needs an update(logits, target) since the last reset()")
        if num_rows > len(self._logits):
            raise RuntimeError(f"pool_rows = {len(self._logits)} rows fit into the pool, and {num_rows} came")
        pool, labels = self._logits[:num_rows], self._labels[:num_rows]
        self.medoids = class_medoids(
            pool, labels, self.num_classes, metric=self.metric, ignore_index=self.ignore_index, backend=self.backend
        )
        rows = pool[self.medoids.clamp(min=0)]
        return SoftTargets.from_logits(
            rows, self.temperature, top_k=self.top_k, dtype=self.dtype, filled=self.medoids >= 0
        )

    def reset(self) -> None:
        """Empties the pool."""
        if self.pool_rows is None:
            self._count = 0
        else:
            self._count.zero_()

    def get_extra_state(self) -> dict:
        num_rows = self.num_rows
        # clone: a view would save the whole buffer behind it
        return {
            "logits": self._logits[:num_rows].clone(),
            "labels": self._labels[:num_rows].clone(),
            "num_rows": num_rows,
            "medoids": self.medoids,
            "dtype": self.dtype,
        }

    def set_extra_state(self, state: dict) -> None:
        rows, classes = state["logits"].shape
        if classes != self.num_classes:
            raise ValueError(f"the state's pool must have C = {self.num_classes} classes, got {classes}")
        if self.pool_rows is not None and rows > self.pool_rows:
            raise ValueError(f"the state's pool must have at most pool_rows = {self.pool_rows} rows, got {rows}")
        self._logits = state["logits"].to(self._logits.dtype, copy=True)
        self._labels = state["labels"].clone()
        if self.pool_rows is None:
            self._count = state["num_rows"]
        else:
            self._count.fill_(state["num_rows"])
        self.medoids = state["medoids"].clone()
        self.dtype = state["dtype"]

    def _labels_of(self, target) -> Tensor:
        """The class each row belongs to, or ignore_index."""
        if isinstance(target, (tuple, list)):
            y_a, y_b, lam = target[0].long(), target[1].long(), target[2]  # ignore_index is no uint8
            if not isinstance(lam, Tensor):
                lam = torch.full((), lam, device=y_a.device)  # filled there: a copy from here would wait
            lam = lam.to(y_a.device)
            mostly_b = torch.where(1 - lam >= self.min_share, y_b, self.ignore_index)
            return torch.where((lam >= self.min_share) | (y_a == y_b), y_a, mostly_b)
        if target.is_floating_point():
            share, labels = target.max(dim=1)
            return torch.where(share >= self.min_share, labels, self.ignore_index)
        return target.long()

    def _reserve(self, new_rows: int, device: torch.device) -> int | Tensor:
        """Makes room for rows on `device` and returns where they begin."""
        if self.pool_rows is None:
            needed = self._count + new_rows
            if needed > self._logits.shape[0]:  # by half at least, so that copying stays linear
                self._resize(max(needed, len(self._logits) * 3 // 2), device)
            elif self._logits.device != device:
                self._resize(len(self._logits), device)
            return self._count
        if self._logits.shape[0] != self.pool_rows or self._logits.device != device:
            self._resize(self.pool_rows, device)
            self._count = self._count.to(device)
        start = self.num_rows if device.type == "cpu" else self._count
        known = start if device.type == "cpu" else 0
        if known + new_rows > self.pool_rows:
            raise RuntimeError(f"pool_rows = {self.pool_rows} rows fit into the pool, not {known} and {new_rows} more")
        return start

    def _resize(self, capacity: int, device: torch.device) -> None:
        rows = min(self.num_rows, len(self._logits))
        for name in ("_logits", "_labels"):
            old = getattr(self, name)
            new = old.new_empty(capacity, *old.shape[1:], device=device)
            new[:rows] = old[:rows]
            setattr(self, name, new)
