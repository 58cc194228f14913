"""MedoidBank: pools an epoch's logits or features, then turns each class's medoid into the class's soft target."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from .annotations import Backend, Metric, Target
from .arguments import label_shape
from .backends import BACKENDS, FLOATS, KERNELS
from .checks import check_floating, check_int, check_int64, check_number, check_positive
from .distributed import ProcessGroup, Ranks, distributed_class_medoids
from .functional import class_medoids
from .medoids.reference import METRICS
from .mixup import check_target, main_class
from .pool import Pool
from .soft_targets import SoftTargets
from .state import state_rank, warn
from .top_predictions import TopPredictions, check_predictions
from .uncompiled import leave_uncompiled

SOFTENED = 1 << 24  # numbers of medoids' rows that are made soft targets at a time


class MedoidBank(nn.Module):
    r"""Class soft targets from the medoid of each class's logits: update / compute / reset, as in torchmetrics.

    .. math::
        m_c = \arg\min_{i : y_i = c} \sum_{j : y_j = c} d(z_i, z_j), \qquad S_c = softmax(z_{m_c} / \tau)

    That soft targets come from class medoids of logit vectors is the paper's [paper]; that they are taken over one
    epoch and used in the next is OLS's [OLS]; metric, temperature and the storage are this library's [choice].

    Where C logits a row are too many, update takes features and TopPredictions instead: with features x the medoids are
    m_c = argmin sum d(x_i, x_j), and S_c is the medoid's top-k prediction. That features stand in for logits in the
    distances is this library's [choice]: what a linear layer makes of near features are near logits.

    Args:
        num_classes: C.
        metric: "euclidean", "sqeuclidean", "cosine", "cityblock" or "jeffreys"; see :func:`class_medoids`.
        temperature: tau > 0.
        top_k: store the k largest probabilities of a row instead of all C.
        correct_only: pool only rows that the model got right (argmax = label). [OLS]
        min_share: a mixed row (Mixup, CutMix) belongs to a class from this share of it on, in (0.5, 1]; other mixed
            rows belong to none. [choice]
        num_features: D, where features are pooled. The first update tells it; with save_pool it has to be given.
        dtype: of the soft targets: bfloat16, float32 or float64. Default: bfloat16, which rounds a probability by at
            most 0.4%, for top-k float32.
        pool_dtype: the pool takes N * C values of it (of features N * D, and 8 k bytes a row). float16 holds a logit
            to 0.05%, or to 3e-8, and bfloat16 logits from 2^-17 in size on exactly; a row with a number above its
            range, 65504, is left out like any row that is not finite.
        pool_rows: N, made once on the device of the first logits. Rows that find no room are dropped, and compute
            says how many. Ignored rows take none. A CUDA graph that holds an update goes on where the last replay
            ended. Default: the pool grows by half as rows come; while it is copied both pools are held, 2.5 times N at
            the worst, and 1.5 times N stay held; on a GPU growing waits for it. Beyond 2 GiB that warns.
        max_rows_per_class: a class's rows are a random choice of so many (Vitter's algorithm R), in a pool of C times
            as many rows: for segmentation and language models, where an epoch has far more rows than are needed.
        seed: of that choice, which is another one on every rank.
        save_pool: state_dict holds the pool too; needs pool_rows or max_rows_per_class. See below.
        ignore_index: rows with this label are left out.
        process_group: of torch.distributed, over which compute is collective: on each of its ranks the result is, bit
            for bit, that of the ranks' pools one after the other. "world": the default group, if there is one when
            compute is called. None: every process keeps to its own pool.
        backend: of class_medoids; where it has no kernels of that name, "auto".

    Attributes:
        medoids: int64 [C] after compute: the medoid's position among the rows given to update since the last reset
            (all of them count, those left out too; those of a rank after those of the ranks before it), or -1. Not
            saved.
        num_rows: how many rows were given to update since the last reset. Reading it waits for a GPU.

    The pool lives on the device of the logits and keeps its memory from epoch to epoch. A run that resumes in the
    middle of an epoch without save_pool has pooled only the rows that come after that. With save_pool each rank's
    pool has names of its own, `pool_of_rank_0.logits` and so on, so each rank has to save its own state
    (torch.distributed.checkpoint does), and as many ranks have to resume. The process group comes first, then the bank.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        metric: Metric = "euclidean",
        temperature: float = 1.0,
        top_k: int | None = None,
        num_features: int | None = None,
        correct_only: bool = False,
        min_share: float = 0.9,
        dtype: torch.dtype | None = None,
        pool_dtype: torch.dtype = torch.float16,
        pool_rows: int | None = None,
        max_rows_per_class: int | None = None,
        seed: int = 0,
        save_pool: bool = False,
        ignore_index: int = -100,
        process_group: ProcessGroup | str | None = "world",
        backend: Backend = "auto",
    ):
        super().__init__()
        num_classes, seed = check_int("num_classes", num_classes, 1), check_int("seed", seed)
        ignore_index = check_int64("ignore_index", ignore_index)
        pool_rows = check_int("pool_rows", pool_rows, 1, or_none=True)
        max_rows_per_class = check_int("max_rows_per_class", max_rows_per_class, 1, or_none=True)
        num_features = check_int("num_features", num_features, 1, or_none=True)
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(map(repr, METRICS))}, got {metric!r}")
        if pool_dtype not in FLOATS:
            raise TypeError(f"pool_dtype must be one of {', '.join(map(str, FLOATS))}, got {pool_dtype}")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
        if None not in (pool_rows, max_rows_per_class):
            raise ValueError(f"pool_rows is num_classes * max_rows_per_class already, got pool_rows = {pool_rows}")
        if save_pool and pool_rows is max_rows_per_class is None:
            raise ValueError("save_pool needs pool_rows or max_rows_per_class, so that the state has one size")
        leave_uncompiled(MedoidBank, "update")
        self.num_classes = num_classes
        self.metric = metric
        self.temperature = check_positive("temperature", temperature)
        self.top_k = top_k
        self.correct_only = correct_only
        self.min_share = check_number("min_share", min_share, 0.5, 1, "(]")
        self.dtype = dtype or (torch.bfloat16 if top_k is None else torch.float32)
        SoftTargets.empty(0, num_classes, top_k=top_k, dtype=self.dtype)  # checks top_k and dtype
        self.pool_rows = pool_rows
        self.ignore_index = ignore_index
        self.backend = backend
        self.ranks = Ranks(process_group)
        self.save_pool = save_pool
        self._pool_settings = {
            "dtype": pool_dtype, "capacity": pool_rows, "most": max_rows_per_class, "seed": seed,
            "ignore_index": ignore_index,
        }  # fmt: skip
        self._num_features = num_features
        self.pool = self._new_pool(num_features)
        self.reset_parameters()
        if save_pool:
            self.pool.allocate(torch.device("cpu"))
            self._saved_as = f"pool_of_rank_{state_rank()}"
            setattr(self, self._saved_as, self.pool)  # where torch.distributed.checkpoint looks for it

    @property
    def num_rows(self) -> int:
        return self.pool.num_rows

    @property
    def num_features(self) -> int | None:
        """D where the pool is of features; None where it is of logits, or was not told yet."""
        return None if self.pool.predictions is None else self.pool.memory.logits.shape[1]

    def update(self, logits: Tensor, target: Target, predictions: TopPredictions | None = None) -> None:
        """Adds a copy of the rows to the pool. With pool_rows it does not wait for a GPU; torch.compile leaves it out.
        In a backward pass it adds nothing: that is a checkpoint's second forward pass, over the rows of the first.

        Args:
            logits: [N, C] or [N, C, d1, ...] (each position is a row); with predictions features [N, D].
            target: labels [N] or [N, d1, ...]; a triple (y_a, y_b, lam); or class probabilities [N, C, d1, ...].
            predictions: of the rows, k >= top_k: what linear_toast_loss returns, with this bank's soft_temperature. A
                row whose logsumexp is not finite is left out.

        Raises:
            IndexError: on the CPU, a label that is neither in [0, C) nor ignore_index. Nothing was added.
        """
        check_floating("logits", logits)
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "a replica of nn.DataParallel cannot pool rows: they would be lost after its forward pass. Use "
                "DistributedDataParallel, or keep the loss out of DataParallel"
            )
        if torch._C._current_graph_task_id() != -1:
            if self.pool.capacity is None and not self.pool.at_most:
                warn(
                    "rows that come in a backward pass are not pooled, and none came before: in a reentrant checkpoint "
                    "the forward pass has no gradients; use use_reentrant=False, or keep the loss out of it"
                )
            return
        if logits.requires_grad:
            logits = logits.detach()
        if predictions is not None:
            self._check_features(logits)
            check_predictions(predictions, len(logits), self.num_classes)
        elif self.num_features is not None:
            raise TypeError("predictions must be TopPredictions where the bank's pool is of features, got None")
        elif logits.dim() < 2 or logits.shape[1] != self.num_classes:
            expected = f"[N, C] or [N, C, d1, ...] with C = {self.num_classes}"
            raise ValueError(f"logits must have shape {expected}, got {list(logits.shape)}")
        check_target(target, label_shape(logits), self.num_classes)
        labels = main_class(target, self.min_share, self.ignore_index)
        if self.correct_only:
            predicted = logits.argmax(dim=1) if predictions is None else predictions.indices[:, 0]
            wrong = (predicted != labels) & (labels >= 0) & (labels < self.num_classes)
            labels = torch.where(wrong, self.ignore_index, labels)  # the pool raises for what is no class
        rows = logits if logits.dim() == 2 else logits.movedim(1, -1).reshape(-1, self.num_classes)
        labels = (labels if labels.dim() == 1 else labels.reshape(-1)).to(logits.device, torch.int64)
        if self.pool.is_dry_run(rows):
            return
        pool, packed = self.pool, None
        if predictions is not None:
            if self.num_features is None:
                pool = self._new_pool(rows.shape[1])
            logsumexp = predictions.logsumexp_at_soft_temperature
            labels = torch.where(logsumexp.isfinite(), labels, self.ignore_index)
            packed = predictions.packed(self.top_k, self.temperature, logsumexp)
        pool.add(rows, labels, packed)
        self.pool = pool  # not before nothing can be raised any more
        self._had_logits = predictions is None

    def _new_pool(self, num_features: int | None) -> Pool:
        """An empty one of features, or of logits."""
        width, packed = self.num_classes, None
        if num_features is not None and self.top_k is None:
            raise ValueError("top_k must be given where features are pooled: a class's soft target has so many classes")
        if num_features is not None:
            width, packed = num_features, (2 * self.top_k, torch.promote_types(self.dtype, torch.float32))
        with torch.inference_mode(False):
            return Pool(self.num_classes, width, predictions=packed, **self._pool_settings)

    def _check_features(self, features: Tensor) -> None:
        """Raises unless the pool is of such features, or may become so."""
        if self.num_features is None and self.save_pool:
            raise ValueError("num_features must be given where save_pool is and features are pooled, got None")
        if self._had_logits and self.num_features is None:
            raise ValueError("a bank or loss that was given logits takes no features: make another one")
        if features.dim() != 2 or self.num_features not in (None, features.shape[1]):
            expected = "[N, D]" if self.num_features is None else f"[N, D] with D = {self.num_features}"
            raise ValueError(f"features must have shape {expected}, got {list(features.shape)}")

    @torch.no_grad()
    def compute(self) -> SoftTargets:
        """C rows, row c from the medoid of class c; not filled where no row of the pool belongs to the class.

        Raises:
            RuntimeError: nothing was given to update since the last reset; or one of several ranks failed, or did not
                call it within the group's timeout.
            ValueError: ranks differ in a setting.

        Warns where pool_rows were too few.
        """
        if not self.has_rows():
            raise RuntimeError("the pool is empty: compute() needs an update(logits, target) since the last reset()")
        table = self._of_all_ranks() if self.ranks.size > 1 else self._of_this_process()
        if self.pool_rows is not None and (dropped := self.pool.num_dropped):
            warn(
                f"pool_rows = {self.pool_rows} rows fit into the pool, and {self.pool_rows + dropped} came: the last "
                f"{dropped} were dropped"
            )
        return table

    def has_rows(self) -> bool:
        """Whether a row was given to any rank since the last reset. Collective; waits for a GPU."""
        return any(self.ranks.all_gather_object(self.num_rows > 0))

    def _of_this_process(self) -> SoftTargets:
        rows, labels, positions, predicted = self.pool.rows()
        table = self._table(rows.device)
        found = class_medoids(rows, labels, self.num_classes, **self._selection())
        classes = (found >= 0).nonzero()[:, 0]
        self.medoids = torch.full_like(found, -1)
        self.medoids[classes] = positions[found[classes]]
        for some in classes.split(max(1, SOFTENED // predicted.shape[1])):
            table[some] = self._soft_targets_of(predicted[found[some]])
        return table

    def _of_all_ranks(self) -> SoftTargets:
        self.ranks.agree(temperature=self.temperature, top_k=self.top_k, dtype=self.dtype)
        told = [width for width in self.ranks.all_gather_object(self.num_features) if width is not None]
        if told and self.num_rows == 0 and self.num_features is None:  # no batch of this rank's told it
            self.pool = self._new_pool(told[0])
        self.ranks.agree(num_features=self.num_features)
        with self.ranks.in_step():
            rows, labels, positions, predicted = self.pool.rows()
            table = self._table(rows.device)

        def store(classes: Tensor, predicted: Tensor) -> None:
            table[classes.to(table.device)] = self._soft_targets_of(predicted)

        self.medoids = distributed_class_medoids(
            rows, labels, positions, self.num_rows, self.num_classes, store, predicted, **self._selection(),
            ranks=self.ranks,
        )  # fmt: skip
        return table

    def _table(self, device: torch.device) -> SoftTargets:
        """Without a row yet."""
        table = SoftTargets.empty(self.num_classes, self.num_classes, top_k=self.top_k, dtype=self.dtype, device=device)
        return replace(table, temperature=self.temperature)

    def _soft_targets_of(self, predicted: Tensor) -> SoftTargets:
        """Of logits [n, C], or of packed predictions [n, 2 top_k]."""
        if self.num_features is None:
            return SoftTargets.from_logits(predicted, self.temperature, top_k=self.top_k, dtype=self.dtype)
        probs, classes = predicted.chunk(2, dim=1)
        return SoftTargets.from_listed(probs, classes, self.num_classes, self.temperature, dtype=self.dtype)

    def _selection(self) -> dict:
        """Settings of class_medoids."""
        backend = self.backend if self.backend in KERNELS["medoids"] else "auto"
        return {"metric": self.metric, "ignore_index": self.ignore_index, "backend": backend}

    def reset(self) -> None:
        """Empties the pool."""
        self.pool.reset()

    def reset_parameters(self) -> None:
        """As new: empty, and open to features and logits unless num_features was given."""
        self._had_logits = False
        if self.num_features != self._num_features:  # a batch told it
            self.pool = self._new_pool(self._num_features)
        self.reset()
        with torch.inference_mode(False):
            self.medoids = torch.full((self.num_classes,), -1, dtype=torch.int64, device="cpu")

    def extra_repr(self) -> str:
        settings = ("metric", "temperature", "top_k", "num_features", "correct_only", "min_share", "dtype", "pool_rows")
        settings = [f"{name}={getattr(self, name)!r}" for name in (*settings, "save_pool")]
        most, dtype = self.pool.most, self.pool.memory.logits.dtype
        return ", ".join([str(self.num_classes), *settings, f"max_rows_per_class={most}", f"pool_dtype={dtype}"])

    def _saved_pool(self, prefix: str) -> dict[str, Tensor]:
        """The pool's tensors as a state names them."""
        if not self.save_pool:
            return {}
        if self._saved_as != f"pool_of_rank_{state_rank()}":
            raise RuntimeError(
                f"with save_pool the bank must be made after torch.distributed.init_process_group: it was made as "
                f"{self._saved_as}, and this is rank {state_rank()}"
            )
        return {f"{prefix}{self._saved_as}.{name}": x for name, x in self.pool.state().items()}

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update(self._saved_pool(prefix))

    @torch.no_grad()
    def _load_from_state_dict(self, state, prefix, metadata, strict, missing, unexpected, errors):
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
        own = self._saved_pool(prefix)
        unexpected[:] = [key for key in unexpected if key not in own]
        if own:
            self.pool.load(state, f"{prefix}{self._saved_as}.", missing, errors)
