"""ToastLoss: toast_loss as a module that makes its own class soft targets, epoch by epoch."""

import warnings
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor, nn

from .annotations import Backend, Metric, Reduction, Target
from .bank import MedoidBank
from .functional import ToastStats, toast_loss
from .mixup import mixup_triple
from .replay import PastPredictions
from .soft_targets import SoftTargets


class ToastLoss(nn.Module):
    r"""The TOAST loss: labels blended with class soft targets, plus distillation from past predictions.

        criterion = ToastLoss(num_classes)
        for epoch in range(num_epochs):
            criterion.set_epoch(epoch, num_epochs)
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
        alpha: share of the soft target in the last epoch, in [0, 1]; see :meth:`set_epoch` for the ramp. [PS-KD]
        past_weight: lambda >= 0. [DLB]
        temperature: T of the past term. [DLB]
        metric, correct_only, min_share, top_k, dtype, pool_dtype, pool_rows: of the soft targets, see
            :class:`MedoidBank`. A CUDA graph needs pool_rows: the new rows of an epoch.
        soft_temperature: that class medoids are softened with: MedoidBank's temperature.
        weight, ignore_index, label_smoothing, reduction, backend: as in :func:`toast_loss`.

    Attributes:
        alpha: this epoch's alpha, a 0-d tensor: a compiled forward is not compiled anew when it changes.
        soft_targets: this epoch's class soft targets, or None before the first.
        bank: the MedoidBank; bank.medoids says which rows of the last epoch the soft targets came from.

    The state is complete, in the middle of an epoch too, pool included: to keep a checkpoint small, save it after
    set_epoch of the next epoch, when the pool is empty. Under torch.compile the pooling is one graph break, and
    from the second step of the second epoch on nothing is compiled anew.
    """

    def __init__(
        self,
        num_classes: int,
        *,
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
        backend: Backend = "auto",
    ):
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        self.max_alpha = alpha
        self.past_weight = past_weight
        self.temperature = temperature
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.backend = backend
        self.epoch = None
        self._warned = False
        self.soft_targets: SoftTargets | None = None
        self.bank = MedoidBank(
            num_classes,
            metric=metric,
            temperature=soft_temperature,
            top_k=top_k,
            correct_only=correct_only,
            min_share=min_share,
            dtype=dtype,
            pool_dtype=pool_dtype,
            pool_rows=pool_rows,
            ignore_index=ignore_index,
            backend=backend,
        )
        self.register_buffer("weight", weight)
        self.register_buffer("alpha", torch.tensor(0.0))

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
        if logits.dim() < 2:
            raise ValueError(f"logits must have shape [N, C] or [N, C, d1, ...], got {list(logits.shape)}")
        if not (self.training and torch.is_grad_enabled()):
            return toast_loss(
                logits,
                target,
                self.weight,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
                reduction=self.reduction,
                return_stats=return_stats,
                backend=self.backend,
            )
        dense = isinstance(target, Tensor) and target.is_floating_point() and target.shape == logits.shape
        if dense and self.max_alpha > 0:  # toast_loss says what is wrong with another shape
            target = mixup_triple(target, label_smoothing=self.label_smoothing)
        alpha, soft_targets = self.alpha, self.soft_targets
        if alpha.device != logits.device:
            alpha = self.alpha = alpha.to(logits.device)
        if soft_targets is not None and soft_targets.device != logits.device:
            soft_targets = self.soft_targets = soft_targets.to(logits.device)
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
            logits,
            target,
            self.weight,
            soft_targets=soft_targets,
            alpha=alpha,
            past=targets,
            past_index=index,
            past_weight=self.past_weight,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            return_stats=return_stats,
            backend=self.backend,
        )
        if self.max_alpha > 0:
            if not torch.compiler.is_compiling() and self.epoch is None and not self._warned:
                self._warned = True
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

    @torch.no_grad()
    def set_epoch(self, epoch: int, num_epochs: int) -> None:
        """Call before each epoch: makes the soft targets from the pool, empties it, and sets

            alpha = max_alpha * (epoch + 1) / num_epochs,     epoch = 0, ..., num_epochs - 1     [PS-KD]

        The first epoch has no soft targets yet. Called again for the epoch it is in (a resumed run), it changes
        nothing and leaves the pool as it is.
        """
        if not 0 <= epoch < num_epochs:
            raise ValueError(f"epoch must be in [0, num_epochs) with num_epochs = {num_epochs}, got {epoch}")
        if epoch != self.epoch and self.bank.num_rows:
            new = self.bank.compute()
            if self.soft_targets is None:
                self.soft_targets = new
            else:
                new = new.to(self.soft_targets.device)
                rows = new.filled.nonzero()[:, 0]
                self.soft_targets[rows] = new[rows]
            self.bank.reset()
        self.epoch = epoch
        self.alpha.fill_(self.max_alpha * (epoch + 1) / num_epochs)

    def get_extra_state(self) -> dict:
        return {
            "epoch": self.epoch,
            "soft_targets": None if self.soft_targets is None else self.soft_targets.state_dict(),
        }

    def set_extra_state(self, state: dict) -> None:
        soft_targets = state["soft_targets"]
        self.epoch = state["epoch"]
        self.soft_targets = None if soft_targets is None else SoftTargets.from_state_dict(soft_targets)


def _first_rows(target, rows: int):
    if isinstance(target, Tensor):
        return target[:rows]
    y_a, y_b, lam = target
    return y_a[:rows], y_b[:rows], lam[:rows] if isinstance(lam, Tensor) and lam.dim() else lam
