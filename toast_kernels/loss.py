"""ToastLoss: toast_loss as a module that makes its own class soft targets, epoch by epoch."""

import math
import operator
import warnings
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor, nn

from .annotations import Backend, Metric, Reduction, Target
from .arguments import check_settings
from .bank import MedoidBank
from .distributed import ProcessGroup
from .functional import ToastStats, toast_loss
from .mixup import mixup_triple
from .pool import is_fake
from .replay import PastPredictions
from .soft_targets import SoftTargets
from .state import keeping_dtypes, of_another_loss, of_another_version
from .uncompiled import leave_uncompiled

LARGE_TABLE = 2 * 2**30  # bytes
_TABLE = ("values", "indices", "entropy", "filled")  # of SoftTargets
NEARLY_ONE_HOT = 1e-3  # nats of entropy: of 1,000 classes the others share less than 1e-4


class ToastLoss(nn.Module):
    r"""The TOAST loss: labels blended with class soft targets, plus distillation from past predictions. ::

        criterion = ToastLoss(num_classes, num_epochs=num_epochs)
        for epoch in range(num_epochs):
            criterion.set_epoch(epoch)
            for x, y in loader:
                loss = criterion(model(x), y)                 # with HardReplay: criterion(model(x), y, past)

    Each training call also pools a copy of the logits and labels (:class:`MedoidBank`; replayed rows are not
    pooled again). :meth:`set_epoch` turns the pool into soft targets for the coming epoch. A class without a pooled
    row keeps its last soft target, and has none (alpha = 0) until its first [choice]. :func:`toast_loss` has the
    formulas.

    In eval mode, and where gradients are disabled, a call is an evaluation: it pools nothing and gives plain
    cross-entropy (the same weight, ignore_index, label_smoothing and reduction; past is ignored), which can be
    compared from epoch to epoch. So held-out rows are not pooled where a trainer never calls `criterion.eval()`. Keep
    the loss out of reentrant checkpoints: their first forward pass has no gradients.

    Args:
        num_classes: C.
        num_epochs: of the training, for :meth:`set_epoch`, which may be given it instead.
        alpha: share of the soft target in the last epoch, in [0, 1]; see :meth:`set_epoch` for the ramp. [PS-KD]
        past_weight: lambda >= 0. [DLB]
        temperature: T of the past term. [DLB]
        metric, correct_only, min_share, top_k, dtype: of the soft targets, see :class:`MedoidBank`.
        pool_dtype, pool_rows, max_rows_per_class, seed, save_pool, process_group: of the pool, see there too. A CUDA
            graph needs pool_rows: the new rows of an epoch.
        soft_temperature: that class medoids are softened with: MedoidBank's temperature. Where logits are scaled
            (ArcFace and other margin heads) their softmax is nearly one-hot, which set_epoch warns of, and alpha has no
            effect: a sixteenth of the scale is a start. [choice]
        weight, ignore_index, label_smoothing, reduction, backend: as in :func:`toast_loss`.

    Attributes:
        alpha: this epoch's alpha, a tensor [].
        epoch: its number, a tensor [], -1 before the first set_epoch.
        soft_targets: the C class soft targets, of which none is filled before the second epoch; None with alpha = 0.
            Memory that stays where it is: a compiled forward and a CUDA graph serve all epochs.
        bank: the MedoidBank; bank.medoids says which rows of the last epoch the soft targets came from.

    The state is the buffers alpha and epoch and, with alpha > 0, values, indices (top-k), entropy, filled and
    soft_temperature: tensors whose shapes the arguments tell, which keep their dtypes in .half() and the like. After
    to_empty from the device "meta" they are as new, elsewhere reset_parameters() makes them so. The pool is saved only
    with save_pool: without it a run that resumes in the middle of an epoch makes its next soft targets of the rows that
    come after that, which is little changed; save after set_epoch, when the pool is empty, and nothing is lost.

    DistributedDataParallel broadcasts the buffers of what it wraps in every step. It leaves those out that its module
    names: for a module with the loss in it,
    `module._ddp_params_and_buffers_to_ignore = [f"criterion.{name}" for name, _ in module.criterion.named_buffers()]`.

    Under torch.compile the pooling is one graph break.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        num_epochs: int | None = None,
        alpha: float = 0.8,
        past_weight: float = 1.0,
        temperature: float = 3.0,
        metric: Metric = "euclidean",
        soft_temperature: float = 1.0,
        top_k: int | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        correct_only: bool = False,
        min_share: float = 0.9,
        dtype: torch.dtype | None = None,
        pool_dtype: torch.dtype = torch.float16,
        pool_rows: int | None = None,
        max_rows_per_class: int | None = None,
        seed: int = 0,
        save_pool: bool = False,
        process_group: ProcessGroup | str | None = "world",
        backend: Backend = "auto",
    ):
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        leave_uncompiled(ToastLoss, "_move")
        self.num_epochs = None if num_epochs is None else _checked_num_epochs(num_epochs)
        self.max_alpha = alpha
        self.past_weight = past_weight
        self.temperature = temperature
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.backend = backend
        self._may_warn = {"growing", "one-hot", "empty"}
        self.bank = MedoidBank(
            num_classes, metric=metric, temperature=soft_temperature, top_k=top_k, correct_only=correct_only,
            min_share=min_share, dtype=dtype, pool_dtype=pool_dtype, pool_rows=pool_rows,
            max_rows_per_class=max_rows_per_class, seed=seed, save_pool=save_pool, ignore_index=ignore_index,
            process_group=process_group, backend=backend,
        )  # fmt: skip
        self.register_buffer("weight", weight)
        check_settings(
            num_classes, weight=weight, past_weight=past_weight, temperature=temperature, ignore_index=ignore_index,
            label_smoothing=label_smoothing, reduction=reduction, backend=backend,
        )  # fmt: skip
        self._table = self._table_device = None
        with torch.inference_mode(False):
            self.register_buffer("alpha", torch.empty((), dtype=torch.float32))
            self.register_buffer("epoch", torch.empty((), dtype=torch.int64))
            if alpha > 0:
                self._make_table()
        self.reset_parameters()
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers() if name != "weight"]

    def _make_table(self) -> None:
        bank = self.bank
        size = bank.num_classes * (bank.top_k or bank.num_classes) * bank.dtype.itemsize
        if size > LARGE_TABLE and bank.top_k is None:
            warnings.warn(
                f"the soft targets of {bank.num_classes} classes take {size / 2**30:.1f} GiB: with top_k=64 they would "
                f"take {bank.num_classes * 64 * 8 / 2**30:.1g}",
                stacklevel=4,
            )
        table = SoftTargets.empty(bank.num_classes, bank.num_classes, top_k=bank.top_k, dtype=bank.dtype)
        for name in _TABLE:
            self.register_buffer(name, getattr(table, name))
        self.register_buffer("soft_temperature", torch.empty((), dtype=torch.float32))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As new: no epoch has begun, no soft target is there, and the pool is empty."""
        self.alpha.zero_()
        self.epoch.fill_(-1)
        self.bank.reset()
        if self.max_alpha > 0:
            self.soft_temperature.fill_(self.bank.temperature)
            for part in (self.values, self.entropy, self.filled):
                part.zero_()
            if self.indices is not None:
                self.indices.copy_(torch.arange(self.bank.top_k, dtype=torch.int32, device=self.indices.device))

    @property
    def soft_targets(self) -> SoftTargets | None:
        buffers = self._buffers
        values = buffers.get("values")
        if values is None:
            return None
        table = self._table
        if (
            table is None or table.values is not values or table.entropy is not buffers["entropy"]
            or table.filled is not buffers["filled"] or table.indices is not buffers["indices"]
            or self._table_device != values.device
        ):  # fmt: skip
            parts = {name: buffers[name] for name in _TABLE}
            table = SoftTargets(**parts, num_classes=self.bank.num_classes, temperature=self.bank.temperature)
            self._table, self._table_device = table, values.device
        return table

    @soft_targets.setter
    def soft_targets(self, table: SoftTargets) -> None:
        if self.soft_targets is None:
            raise ValueError("a loss with alpha = 0 has no soft targets")
        self.soft_targets[:] = replace(table, temperature=self.bank.temperature)

    @overload
    def forward(
        self, logits: Tensor, target: Target, past: PastPredictions | None = ..., return_stats: Literal[False] = ...
    ) -> Tensor: ...
    @overload
    def forward(
        self, logits: Tensor, target: Target, past: PastPredictions | None = ..., *, return_stats: Literal[True]
    ) -> tuple[Tensor, ToastStats]: ...
    def forward(
        self, logits: Tensor, target: Target, past: PastPredictions | None = None, return_stats: bool = False
    ) -> Tensor | tuple[Tensor, ToastStats]:
        """The loss, or (loss, stats), as toast_loss gives it.

        Args:
            logits: [N, C] or [N, C, d1, ...], where each position is a row to pool.
            target: labels; a triple (y_a, y_b, lam); or class probabilities: with alpha > 0 those of Mixup and CutMix,
                smoothed by label_smoothing or not at all, which :func:`mixup_triple` turns into a triple in training.
            past: what HardReplay.extend or PredictionMemory.past gave.
        """
        if logits.dim() < 2 or logits.shape[1] != self.bank.num_classes:
            expected = f"[N, C] or [N, C, d1, ...] with C = {self.bank.num_classes}"
            raise ValueError(f"logits must have shape {expected}, got {list(logits.shape)}")
        if not (self.training and torch.is_grad_enabled()):
            return toast_loss(
                logits, target, self.weight, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing,
                reduction=self.reduction, return_stats=return_stats, backend=self.backend,
            )  # fmt: skip
        dense = isinstance(target, Tensor) and target.is_floating_point() and target.shape == logits.shape
        if dense and self.max_alpha > 0:  # toast_loss says what is wrong with another shape
            target = mixup_triple(target, label_smoothing=self.label_smoothing)
        alpha, soft_targets = self._state_for(logits)
        targets = index = None
        if past is not None:
            if past.ignore_index not in (None, self.ignore_index):
                raise ValueError(
                    f"past must come from a HardReplay with this loss's ignore_index = {self.ignore_index}, "
                    f"got ignore_index = {past.ignore_index}: its empty rows would be trained on"
                )
            if past.temperature not in (None, self.temperature):  # in a first step there are no targets to tell it
                raise ValueError(
                    f"past was softened at temperature {past.temperature}, but temperature is {self.temperature}"
                )
            if past.targets is not None:
                targets, index = past.targets, past.index
        result = toast_loss(
            logits, target, self.weight, soft_targets=soft_targets, alpha=alpha, past=targets, past_index=index,
            past_weight=self.past_weight, temperature=self.temperature, ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing, reduction=self.reduction, return_stats=return_stats,
            backend=self.backend,
        )  # fmt: skip
        if self.max_alpha > 0:
            if not torch.compiler.is_compiling() and "growing" in self._may_warn:
                self._may_warn.discard("growing")
                warnings.warn(
                    "ToastLoss keeps a copy of all logits until set_epoch is called: call it before each epoch, "
                    "or use toast_loss if no class soft targets are wanted",
                    stacklevel=2,
                )
            new = logits.detach()
            if past is not None:
                new, target = new[: past.num_new], _first_rows(target, past.num_new)
            self.bank.update(new, target)
        return result

    if TYPE_CHECKING:
        __call__ = forward

    def set_epoch(self, epoch: int, num_epochs: int | None = None) -> None:
        """Call before each epoch: makes the soft targets from the pool, empties it, and sets ::

            alpha = max_alpha * min((epoch + 1) / num_epochs, 1),     epoch = 0, 1, ...     [PS-KD]

        The first epoch has no soft targets yet. Called again for the epoch it is in (a resumed run), it changes
        nothing and leaves the pool as it is. It may be called at any step with the next number: where the whole
        training is shorter than an epoch, "epochs" are what one likes.

        On several ranks it is collective: each has to call it, with the same numbers, and gets the same soft targets.
        """
        try:
            epoch = operator.index(epoch)
        except TypeError:
            raise TypeError(f"epoch must be an int, got {epoch!r}") from None
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        if num_epochs is None and self.num_epochs is None:
            raise TypeError("num_epochs must be given, to set_epoch or to ToastLoss")
        num_epochs = self.num_epochs if num_epochs is None else _checked_num_epochs(num_epochs)
        with torch.inference_mode(False), torch.no_grad():
            if self.max_alpha > 0:
                last_epoch = int(self.epoch)
                self.bank.ranks.agree(epoch=epoch, num_epochs=num_epochs, last_epoch=last_epoch, alpha=self.max_alpha)
                if epoch != last_epoch and self.bank.has_rows():
                    self._renew(self.bank.compute())
                    self.bank.reset()
                elif epoch not in (0, last_epoch) and "empty" in self._may_warn and not self.filled.any():
                    self._may_warn.discard("empty")
                    warnings.warn(
                        f"epoch {epoch} has no soft targets: no row was pooled before it. To resume with some, save "
                        "after set_epoch of the next epoch, or with save_pool",
                        stacklevel=2,
                    )
            self.epoch.fill_(epoch)
            self.alpha.fill_(self.max_alpha * min((epoch + 1) / num_epochs, 1))
        self._may_warn.discard("growing")

    def _renew(self, new: SoftTargets) -> None:
        """Takes over the rows that are filled."""
        new = new.to(self.alpha.device)
        rows = new.filled.nonzero()[:, 0]
        new = new[rows]
        self.soft_targets[rows] = new
        if len(new) and "one-hot" in self._may_warn and new.entropy.mean() < NEARLY_ONE_HOT:
            self._may_warn.discard("one-hot")
            warnings.warn(
                "the soft targets are nearly one-hot, so that alpha has hardly any effect: raise soft_temperature, "
                f"now {self.bank.temperature} (for logits of a margin head start with a sixteenth of their scale)",
                stacklevel=3,
            )

    def extra_repr(self) -> str:
        settings = ("num_epochs", "past_weight", "temperature", "ignore_index", "label_smoothing", "reduction")
        settings = [f"{name}={getattr(self, name)!r}" for name in (*settings, "backend")]
        return ", ".join([str(self.bank.num_classes), f"alpha={self.max_alpha}", *settings])

    def _state_for(self, logits: Tensor) -> tuple[Tensor, SoftTargets | None]:
        """(alpha, soft targets) where the logits are. The state follows them, but not those of a dry run."""
        if self.alpha.device != logits.device:
            if _is_dry_run(logits, self.alpha):
                table = self.soft_targets
                return self.alpha.to(logits.device), None if table is None else table.to(logits.device)
            self._move(logits.device)
        return self.alpha, self.soft_targets

    def _move(self, device: torch.device) -> None:
        weight = self.weight
        self._apply(lambda t: t if t is weight else t.to(device))

    def _apply(self, fn, recurse=True):
        """Leaves all dtypes but weight's."""
        was_meta, weight, keeping = self.alpha.is_meta, self.weight, keeping_dtypes(fn)
        with torch.inference_mode(False), torch.no_grad():
            super()._apply(lambda t: fn(t) if t is weight else keeping(t), recurse)
            if was_meta and not self.alpha.is_meta:  # to_empty
                self.reset_parameters()
        return self

    def _load_from_state_dict(self, state, prefix, metadata, strict, missing, unexpected, errors):
        if of_another_version(state, prefix, errors) or of_another_loss(self, state, prefix, errors):
            return
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
        self._may_warn.discard("growing")


def _checked_num_epochs(num_epochs: float) -> float:
    if not isinstance(num_epochs, Real) or not 0 < num_epochs < math.inf:
        raise ValueError(f"num_epochs must be a number > 0, got {num_epochs!r}")
    return num_epochs


def _is_dry_run(logits: Tensor, state: Tensor) -> bool:
    """Whether logits have no values while the state has."""
    return (logits.is_meta and not state.is_meta) or is_fake(logits)


def _first_rows(target, rows: int):
    if isinstance(target, Tensor):
        return target[:rows]
    y_a, y_b, lam = target
    return y_a[:rows], y_b[:rows], lam[:rows] if isinstance(lam, Tensor) and lam.dim() else lam
