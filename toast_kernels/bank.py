"""MedoidBank: pools an epoch's logits, then turns each class's medoid into the class's soft target."""

import torch
from torch import Tensor, nn

from .functional import class_medoids
from .soft_targets import SoftTargets, check_temperature, default_dtype


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
        ignore_index: rows with this label are left out.
        backend: of class_medoids.

    Attributes:
        medoids: int64 [C] after compute: the medoid's position among the rows given to update since the last reset
            (all of them count, those left out too), or -1.

    The state is complete, in the middle of an epoch too: it holds the pooled rows. The pool lives on the device of
    the logits and keeps its memory from epoch to epoch.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        metric: str = "euclidean",
        temperature: float = 1.0,
        top_k: int | None = None,
        correct_only: bool = False,
        min_share: float = 0.9,
        dtype: torch.dtype | None = None,
        pool_dtype: torch.dtype = torch.float16,
        ignore_index: int = -100,
        backend: str = "auto",
    ):
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes must be an int >= 1, got {num_classes!r}")
        if not 0.5 < min_share <= 1:
            raise ValueError(f"min_share must be in (0.5, 1], got {min_share}")
        if not pool_dtype.is_floating_point:
            raise TypeError(f"pool_dtype must be a floating-point dtype, got {pool_dtype}")
        check_temperature(temperature)
        SoftTargets.empty(0, num_classes, top_k=top_k, dtype=dtype or torch.float32)  # checks top_k and dtype
        self.num_classes = num_classes
        self.metric = metric
        self.temperature = temperature
        self.top_k = top_k
        self.correct_only = correct_only
        self.min_share = min_share
        self.dtype = dtype
        self.ignore_index = ignore_index
        self.backend = backend
        self.medoids = torch.full((num_classes,), -1)
        self.num_rows = 0  # of the pool that are in use
        self._logits = torch.empty(0, num_classes, dtype=pool_dtype)
        self._labels = torch.empty(0, dtype=torch.int64)

    @torch.no_grad()
    def update(self, logits: Tensor, target) -> None:
        """Adds a copy of the rows to the pool.

        Args:
            logits: [N, C] or [N, C, d1, ...] (each position is a row).
            target: labels [N] or [N, d1, ...]; a triple (y_a, y_b, lam); or class probabilities shaped like logits.
        """
        if logits.dim() < 2 or logits.shape[1] != self.num_classes:
            expected = f"[N, C] or [N, C, d1, ...] with C = {self.num_classes}"
            raise ValueError(f"logits must have shape {expected}, got {list(logits.shape)}")
        labels = self._labels_of(target)
        shape = logits.shape[:1] + logits.shape[2:]
        if labels.shape != shape:
            raise ValueError(f"target must have shape {list(shape)} (from logits), got {list(labels.shape)}")
        if self.correct_only:
            labels = torch.where(logits.argmax(dim=1) == labels, labels, self.ignore_index)
        if labels.device.type == "cpu":
            wrong = ((labels < 0) | (labels >= self.num_classes)) & (labels != self.ignore_index)
            if wrong.any():
                raise IndexError(
                    f"target must be in [0, {self.num_classes}) or ignore_index = {self.ignore_index}, "
                    f"got {int(labels[wrong][0])}"
                )
        if self.dtype is None:
            self.dtype = default_dtype(logits.dtype, self.top_k)
        end = self.num_rows + labels.numel()
        self._reserve(end, logits.device)
        self._logits[self.num_rows : end] = logits.movedim(1, -1).reshape(-1, self.num_classes)
        self._labels[self.num_rows : end] = labels.reshape(-1)
        self.num_rows = end

    @torch.no_grad()
    def compute(self) -> SoftTargets:
        """C rows, row c from the medoid of class c; not filled where no row of the pool belongs to the class.

        Raises:
            RuntimeError: nothing was given to update since the last reset.
        """
        if self.num_rows == 0:
            raise RuntimeError("the pool is empty: compute() needs an update(logits, target) since the last reset()")
        pool, labels = self._logits[: self.num_rows], self._labels[: self.num_rows]
        self.medoids = class_medoids(
            pool, labels, self.num_classes, metric=self.metric, ignore_index=self.ignore_index, backend=self.backend
        )
        rows = pool[self.medoids.clamp(min=0)]
        return SoftTargets.from_logits(
            rows, self.temperature, top_k=self.top_k, dtype=self.dtype, filled=self.medoids >= 0
        )

    def reset(self) -> None:
        """Empties the pool."""
        self.num_rows = 0

    def get_extra_state(self) -> dict:
        # clone: a view would save the whole buffer behind it
        return {
            "logits": self._logits[: self.num_rows].clone(),
            "labels": self._labels[: self.num_rows].clone(),
            "medoids": self.medoids,
            "dtype": self.dtype,
        }

    def set_extra_state(self, state: dict) -> None:
        if state["logits"].shape[1] != self.num_classes:
            raise ValueError(
                f"the state's pool must have C = {self.num_classes} classes, got {state['logits'].shape[1]}"
            )
        self._logits = state["logits"].to(self._logits.dtype, copy=True)
        self._labels = state["labels"].clone()
        self.num_rows = len(self._labels)
        self.medoids = state["medoids"].clone()
        self.dtype = state["dtype"]

    def _labels_of(self, target) -> Tensor:
        """The class each row belongs to, or ignore_index."""
        if isinstance(target, (tuple, list)):
            y_a, y_b, lam = target
            lam = torch.as_tensor(lam, device=y_a.device)
            mostly_b = torch.where(1 - lam >= self.min_share, y_b, self.ignore_index)
            return torch.where((lam >= self.min_share) | (y_a == y_b), y_a, mostly_b)
        if target.is_floating_point():
            share, labels = target.max(dim=1)
            return torch.where(share >= self.min_share, labels, self.ignore_index)
        return target

    def _reserve(self, rows: int, device: torch.device) -> None:
        """Room for `rows` rows on `device`; grows by half at least, so that copying stays linear."""
        if rows <= len(self._logits) and self._logits.device == device:
            return
        capacity = rows if rows <= len(self._logits) else max(rows, len(self._logits) * 3 // 2)
        for name in ("_logits", "_labels"):
            old = getattr(self, name)
            grown = old.new_empty(capacity, *old.shape[1:], device=device)
            grown[: self.num_rows] = old[: self.num_rows]
            setattr(self, name, grown)
