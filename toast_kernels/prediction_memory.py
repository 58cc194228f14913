"""PredictionMemory: every training sample's last prediction, for distillation an epoch later."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from .checks import came, check_floating, check_int, check_positive
from .distributed import Ranks
from .replay import PastPredictions
from .soft_targets import SoftTargets
from .softmax_statistics.op import softmax_statistics
from .state import warn
from .top_predictions import TopPredictions


class PredictionMemory:
    """The last prediction of every training sample, for distillation one epoch later, without replay. [PS-KD]

        past = memory.past(sample)                            # sample: int64 [N], positions in the data set
        loss = criterion(logits, y, past)
        ...
        memory.keep(sample, logits)                           # or the TopPredictions of ToastLoss.linear

    On several ranks of torch.distributed each has a memory of its own: keep to samples that stay on their rank.

    Args:
        num_samples, num_classes: the table is [num_samples, num_classes], or top_k wide.
        temperature: of the predictions: the loss's temperature.
        top_k: keep top-k rows, 8 k bytes a sample.
        dtype: of the stored probabilities; default bfloat16, for top-k float32.
        device: where the table lives; rows are moved to and from it.
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        temperature: float = 3.0,
        top_k: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        num_samples, num_classes = check_int("num_samples", num_samples, 1), check_int("num_classes", num_classes, 1)
        dtype = dtype or (torch.bfloat16 if top_k is None else torch.float32)
        self.top_k = top_k
        with torch.inference_mode(False):
            targets = SoftTargets.empty(num_samples, num_classes, top_k=top_k, dtype=dtype, device=device)
        self.targets = replace(targets, temperature=check_positive("temperature", temperature))
        self._warned = False

    def reset(self) -> None:
        """Forgets all predictions."""
        self.targets.filled.fill_(False)

    def past(self, sample: Tensor) -> PastPredictions:
        """The last predictions of these samples; index is -1 where there is none yet."""
        targets = self.targets[self._rows(sample)].to(sample.device)
        index = torch.arange(len(sample), dtype=torch.int64, device=sample.device)
        index = torch.where(targets.filled, index, -1)
        return PastPredictions(targets, index, len(sample), temperature=targets.temperature)

    @torch.no_grad()
    def keep(self, sample: Tensor, logits: Tensor | TopPredictions) -> None:
        """Stores softmax(logits / temperature), [N, C], or the top_k largest of these from TopPredictions at this
        temperature. A row that is not finite leaves its sample's last one."""
        if not self._warned and Ranks().size > 1:
            self._warned = True
            warn(
                "a PredictionMemory knows the predictions of its own rank only: a sample that another rank had in the "
                "last epoch (as with a DistributedSampler that shuffles) gets an older prediction or none; give each "
                "rank the same samples in every epoch"
            )
        rows = self._rows(sample)
        of_classes, settings = self.targets.num_classes, {"dtype": self.targets.values.dtype}
        listed = isinstance(logits, TopPredictions)
        if not listed:
            check_floating("logits", logits)
        shape = (*logits.logsumexp.shape, logits.num_classes) if listed else logits.shape
        if shape != (len(rows), of_classes):
            expected = [len(rows), of_classes]
            raise ValueError(f"logits must have shape {expected} (from sample and num_classes), got {list(shape)}")
        temperature = self.targets.temperature
        if listed:
            finite = logits.logsumexp.isfinite()
            packed = logits.packed(self.top_k, temperature, logits.logsumexp_at_temperature)[finite]
            new = SoftTargets.from_listed(*packed.chunk(2, dim=1), of_classes, temperature, **settings)
        else:
            finite = softmax_statistics(logits, 1.0)[0].isfinite()
            new = SoftTargets.from_logits(logits[finite], temperature, top_k=self.top_k, **settings)
        self.targets[rows[finite.to(rows.device)]] = new

    def state_dict(self) -> dict[str, Tensor]:
        """The table's tensors, not copied, and the temperature."""
        state = {name: x for name, x in self.targets.state_dict().items() if isinstance(x, Tensor)}
        return {**state, "temperature": torch.tensor(self.targets.temperature, dtype=torch.float64, device="cpu")}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(f"the state must have {', '.join(own)} (indices with top_k), got {', '.join(state)}")
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                expected = f"{name} {list(tensor.shape)} (from num_samples, num_classes and top_k)"
                raise ValueError(f"the state must have {expected}, got {list(state[name].shape)}")
        if not math.isclose(state["temperature"], self.targets.temperature, rel_tol=1e-2):
            temperature = float(state["temperature"])
            raise ValueError(f"the state must have temperature {self.targets.temperature}, got {temperature}")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def _rows(self, sample: Tensor) -> Tensor:
        if not isinstance(sample, Tensor) or sample.dtype != torch.int64 or sample.dim() != 1:
            raise ValueError(f"sample must be an int64 tensor of shape [N], got {came(sample)}")
        if sample.device.type == "cpu" and len(sample) and not 0 <= sample.min() <= sample.max() < len(self.targets):
            raise IndexError(
                f"sample must be in [0, {len(self.targets)}), got {int(sample.min())} to {int(sample.max())}"
            )
        return sample.to(self.targets.device)
