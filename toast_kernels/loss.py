"""ToastLoss: toast_loss as a module that makes its own class soft targets, epoch by epoch."""

import operator
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from .annotations import Backend, Metric, Reduction, Target
from .arguments import check_settings
from .bank import MedoidBank
from .checks import check_number, check_positive, type_of
from .distributed import ProcessGroup
from .epoch_state import EpochState
from .functional import ToastStats, toast_loss
from .linear import LinearLoss, linear_toast_loss
from .mixup import first_rows, mixup_triple
from .replay import PastPredictions
from .state import warn
from .top_predictions import TopPredictions


class ToastLoss(EpochState):
    r"""The TOAST loss: labels blended with class soft targets, plus distillation from past predictions. ::

        criterion = ToastLoss(num_classes, num_epochs=num_epochs)
        for epoch in range(num_epochs):
            criterion.set_epoch(epoch)
            for x, y in loader:
                loss = criterion(model(x), y)                 # with HardReplay: criterion(model(x), y, past)

    Each training call also pools a copy of the logits and labels (:class:`MedoidBank`; replayed rows are not
    pooled again). :meth:`set_epoch` turns the pool into soft targets for the coming epoch. A class without a pooled
    row keeps its last soft target, and has none (alpha = 0) until its first [choice]. :func:`toast_loss` has the
    formulas. Where N x C logits are too many, :meth:`linear` takes features and the head's weight instead.

    In eval mode, and where gradients are disabled, a call is an evaluation: it pools nothing and gives plain
    cross-entropy (the same weight, ignore_index, label_smoothing and reduction; past is ignored), which can be
    compared from epoch to epoch. So held-out rows are not pooled where a trainer never calls `criterion.eval()`. Keep
    the loss out of reentrant checkpoints: their first forward pass has no gradients.

    Args:
        num_classes: C.
        num_epochs: of the training, for :meth:`set_epoch`, which may be given it instead.
        alpha: share of the soft target in the last epoch, in [0, 1]; see :meth:`set_epoch` for the ramp. 0.1
            and the past_weight 0.3 are the pair that our study chose more often than the other pairs it tried; PS-KD,
            whose ramp it is, has 0.8.
        past_weight: lambda >= 0; DLB has 1.
        temperature: T of the past term. [DLB]
        metric, correct_only, min_share, top_k, dtype: of the soft targets, see :class:`MedoidBank`.
        num_features, pool_dtype, pool_rows, max_rows_per_class, seed, save_pool, process_group: of the pool, see there
            too. A CUDA graph needs pool_rows: the new rows of an epoch.
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
        alpha: float = 0.1,
        past_weight: float = 0.3,
        temperature: float = 3.0,
        metric: Metric = "euclidean",
        soft_temperature: float = 1.0,
        top_k: int | None = None,
        num_features: int | None = None,
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
        check_number("alpha", alpha, 0, 1)
        if num_epochs is not None:
            check_positive("num_epochs", num_epochs)
        check_positive("soft_temperature", soft_temperature)
        bank = MedoidBank(
            num_classes, metric=metric, temperature=soft_temperature, top_k=top_k, num_features=num_features,
            correct_only=correct_only, min_share=min_share, dtype=dtype, pool_dtype=pool_dtype, pool_rows=pool_rows,
            max_rows_per_class=max_rows_per_class, seed=seed, save_pool=save_pool, ignore_index=ignore_index,
            process_group=process_group, backend=backend,
        )  # fmt: skip
        check_settings(
            num_classes, weight=weight, past_weight=past_weight, temperature=temperature, ignore_index=ignore_index,
            label_smoothing=label_smoothing, reduction=reduction, backend=backend,
        )  # fmt: skip
        bank.ranks.collective = "set_epoch"  # which calls the bank's compute
        super().__init__(bank, alpha, weight)
        self.num_epochs = num_epochs
        self.past_weight = past_weight
        self.temperature = temperature
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.backend = backend

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
                With alpha = 0 and in eval mode they are taken as they are, and label_smoothing smooths them once more.
            past: what HardReplay.extend or PredictionMemory.past gave.
        """
        if not isinstance(logits, Tensor):
            raise TypeError(f"logits must be a tensor, got {type_of(logits)}")
        if logits.dim() < 2 or logits.shape[1] != self.bank.num_classes:
            expected = f"[N, C] or [N, C, d1, ...] with C = {self.bank.num_classes}"
            raise ValueError(f"logits must have shape {expected}, got {list(logits.shape)}")
        target, arguments = self._arguments(logits, target, logits.shape, past)
        result = toast_loss(logits, target, **arguments, return_stats=return_stats)
        if self._pools():
            self._pool(logits, target, past)
        return result

    if TYPE_CHECKING:
        __call__ = forward

    @overload
    def linear(
        self, input: Tensor, linear_weight: Tensor, target: Target, past: PastPredictions | None = ...,
        linear_bias: Tensor | None = ..., *, return_stats: Literal[False] = ..., return_top_k: Literal[False] = ...,
        chunk_bytes: int | None = ..., acc_dtype: torch.dtype | None = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def linear(
        self, input: Tensor, linear_weight: Tensor, target: Target, past: PastPredictions | None = ...,
        linear_bias: Tensor | None = ..., *, return_stats: Literal[True], return_top_k: Literal[False] = ...,
        chunk_bytes: int | None = ..., acc_dtype: torch.dtype | None = ...,
    ) -> tuple[Tensor, ToastStats]: ...  # fmt: skip
    @overload
    def linear(
        self, input: Tensor, linear_weight: Tensor, target: Target, past: PastPredictions | None = ...,
        linear_bias: Tensor | None = ..., *, return_stats: Literal[False] = ..., return_top_k: Literal[True],
        chunk_bytes: int | None = ..., acc_dtype: torch.dtype | None = ...,
    ) -> tuple[Tensor, TopPredictions]: ...  # fmt: skip
    @overload
    def linear(
        self, input: Tensor, linear_weight: Tensor, target: Target, past: PastPredictions | None = ...,
        linear_bias: Tensor | None = ..., *, return_stats: Literal[True], return_top_k: Literal[True],
        chunk_bytes: int | None = ..., acc_dtype: torch.dtype | None = ...,
    ) -> tuple[Tensor, ToastStats, TopPredictions]: ...  # fmt: skip
    @overload
    def linear(
        self, input: Tensor, linear_weight: Tensor, target: Target, past: PastPredictions | None = ...,
        linear_bias: Tensor | None = ..., *, return_stats: bool = ..., return_top_k: bool = ...,
        chunk_bytes: int | None = ..., acc_dtype: torch.dtype | None = ...,
    ) -> LinearLoss: ...  # fmt: skip
    def linear(
        self, input: Tensor, linear_weight: Tensor, target: Target, past: PastPredictions | None = None,
        linear_bias: Tensor | None = None, *, return_stats: bool = False, return_top_k: bool = False,
        chunk_bytes: int | None = None, acc_dtype: torch.dtype | None = None,
    ) -> LinearLoss:  # fmt: skip
        """The loss of F.linear(input, linear_weight, linear_bias), as forward gives it, without ever holding it. ::

            loss, stats, predictions = criterion.linear(
                features, head.weight, y, past, head.bias, return_stats=True, return_top_k=True
            )
            loss.backward()
            replay.keep(x, y, predictions, stats.cross_entropy)      # a HardReplay with a top_k, at most this loss's

        With alpha > 0 or return_top_k it needs a ToastLoss with top_k. A training call pools the features, and of each
        row the top_k largest probabilities: medoids are those of the features [choice], and the medoid's top-k
        prediction is the class's soft target. A loss is called in one form, this or forward; evaluations may come in
        both.

        Args:
            input: features [N, D].
            linear_weight: [C, D].
            target, past: as in forward.
            linear_bias: [C].
            return_stats, return_top_k: also return :class:`ToastStats`; :class:`TopPredictions` of top_k classes.
            chunk_bytes, acc_dtype: as in :func:`linear_toast_loss`, which has what is raised.
        """
        num_classes, top_k = self.bank.num_classes, self.bank.top_k
        if top_k is None and (self.max_alpha > 0 or return_top_k):
            expected = "given to a ToastLoss whose linear is called with alpha > 0 or return_top_k"
            raise ValueError(f"top_k must be {expected}, got None: 64 is a start")
        for name, tensor in (("input", input), ("linear_weight", linear_weight)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type_of(tensor)}")
        if input.dim() != 2:
            raise ValueError(f"input must have shape [N, D], got {list(input.shape)}")
        if isinstance(past, Tensor):  # in eval mode too, where past is not looked at
            came = type_of(past)
            raise TypeError(f"past must be what HardReplay.extend gave, got {came}: linear_bias comes after it")
        if linear_weight.dim() != 2 or linear_weight.shape[0] != num_classes:
            expected = f"[C, D] with C = {num_classes} (num_classes)"
            raise ValueError(f"linear_weight must have shape {expected}, got {list(linear_weight.shape)}")
        target, arguments = self._arguments(input, target, (len(input), num_classes), past)
        pools = self._pools()
        loss, stats, *predictions = linear_toast_loss(
            input, linear_weight, target, linear_bias, **arguments, return_stats=True,
            return_top_k=top_k if pools or return_top_k else None, soft_temperature=self.bank.temperature,
            chunk_bytes=chunk_bytes, acc_dtype=acc_dtype,
        )  # fmt: skip
        if pools:
            self._pool(input, target, past, *predictions)
        wanted = (loss, *[stats] * return_stats, *predictions * return_top_k)
        return wanted if len(wanted) > 1 else loss

    def _arguments(self, rows: Tensor, target, shape, past: PastPredictions | None) -> tuple[Target, dict[str, Any]]:
        """What the loss of rows (logits or features) is called with, target first; logits have this shape."""
        arguments = {
            "weight": self.weight, "temperature": self.temperature, "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing, "reduction": self.reduction, "backend": self.backend,
        }  # fmt: skip
        if not self._trains():
            return target, arguments
        dense = isinstance(target, Tensor) and target.is_floating_point() and target.shape == shape
        if dense and self.max_alpha > 0:  # the loss says what is wrong with another shape
            target = mixup_triple(target, label_smoothing=self.label_smoothing)
        arguments["alpha"], arguments["soft_targets"] = self._state_for(rows)
        arguments["past_weight"] = self.past_weight
        if past is not None:
            if not isinstance(past, PastPredictions):
                came = type_of(past)
                raise TypeError(f"past must be what HardReplay.extend or PredictionMemory.past gave, got {came}")
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
                arguments["past"], arguments["past_index"] = past.targets, past.index
        return target, arguments

    def _trains(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _pools(self) -> bool:
        return self.max_alpha > 0 and self._trains()

    def _pool(self, rows: Tensor, target, past, predictions: TopPredictions | None = None) -> None:
        if predictions is None and self.bank.num_features is not None:
            raise ValueError(
                "a ToastLoss that pools features (num_features was given, or linear called) is trained by linear: call "
                "it on logits in eval mode only"
            )
        if not torch.compiler.is_compiling() and "growing" in self._may_warn:
            self._may_warn.discard("growing")
            warn(
                "ToastLoss keeps a copy of all logits, or features, until set_epoch is called: call it before each "
                "epoch, or use toast_loss if no class soft targets are wanted"
            )
        rows = rows.detach()
        if past is not None:
            rows, target = rows[: past.num_new], first_rows(target, past.num_new)
            predictions = None if predictions is None else predictions.first(past.num_new)
        self.bank.update(rows, target, predictions)

    def set_epoch(self, epoch: int, num_epochs: int | None = None) -> None:
        """Call before each epoch: makes the soft targets from the pool, empties it, and sets ::

            alpha = max_alpha * min((epoch + 1) / num_epochs, 1),     epoch = 0, 1, ...     [PS-KD]

        The first epoch has no soft targets yet. To go back to an earlier one warns, as the rows and soft targets of
        another training would be taken over: make a loss for each training, or call reset_parameters().
        Called again for the epoch it is in (a resumed run), it changes nothing and leaves the pool as it is. It may be
        called at any step with the next number: where the whole training is shorter than an epoch, "epochs" are what
        one likes.

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
        num_epochs = self.num_epochs if num_epochs is None else num_epochs
        check_positive("num_epochs", num_epochs)
        on_its_gpu = torch.cuda.device_of(self.alpha)  # NCCL gathers objects by way of the current one
        with torch.inference_mode(False), torch.no_grad(), on_its_gpu:
            if self.max_alpha > 0:
                last_epoch = int(self.epoch)
                if epoch < last_epoch and "backwards" in self._may_warn and (self.filled.any() or self.bank.num_rows):
                    self._may_warn.discard("backwards")
                    warn(
                        f"epoch {epoch} comes after epoch {last_epoch}, whose rows and soft targets it takes over: for "
                        "another training make another loss, or call reset_parameters()"
                    )
                self.bank.ranks.agree(epoch=epoch, num_epochs=num_epochs, last_epoch=last_epoch, alpha=self.max_alpha)
                if epoch != last_epoch and self.bank.has_rows():
                    self._renew(self.bank.compute())
                    self.bank.reset()
                elif epoch not in (0, last_epoch) and "empty" in self._may_warn and not self.filled.any():
                    self._may_warn.discard("empty")
                    warn(
                        f"epoch {epoch} has no soft targets: no row was pooled before it. Was train() called? Epochs "
                        "count from 0. To resume with some, save after set_epoch of the next epoch, or with save_pool"
                    )
            self.epoch.fill_(epoch)
            self.alpha.fill_(self.max_alpha * min((epoch + 1) / num_epochs, 1))
        self._may_warn.discard("growing")

    def extra_repr(self) -> str:
        settings = ("num_epochs", "past_weight", "temperature", "ignore_index", "label_smoothing", "reduction")
        settings = [f"{name}={getattr(self, name)!r}" for name in (*settings, "backend")]
        return ", ".join([str(self.bank.num_classes), f"alpha={self.max_alpha}", *settings])
