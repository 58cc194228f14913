"""TopPredictions: each row's k largest logits, where rows of all C logits are never held."""

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import type_of

MOST_CLASSES = 1 << 24  # whose numbers float32 holds


class TopPredictions(NamedTuple):
    """Each row's k largest logits, detached: all that replay and soft targets need of a row. ``...`` are the rows."""

    logits: Tensor  # [..., k], descending; among equal ones any
    indices: Tensor  # [..., k] int64
    logsumexp: Tensor  # [...] float64, of the row's C logits
    logsumexp_at_temperature: Tensor  # of the logits / temperature
    logsumexp_at_soft_temperature: Tensor
    num_classes: int  # C

    def packed(
        self,
        top_k: int | None,
        temperature: float,
        logsumexp: Tensor,  # [...] of the logits / temperature
    ) -> Tensor:  # [..., 2 top_k] float32, float64 for float64 logits
        """softmax(logits / temperature) of the top_k largest, then their classes: rows that are kept like rows of
        logits. SoftTargets.write_listed takes the halves."""
        if top_k is None or top_k > self.logits.shape[-1]:
            raise ValueError(f"top_k must be at most the {self.logits.shape[-1]} classes of predictions, got {top_k}")
        if self.num_classes > MOST_CLASSES:
            raise ValueError(f"predictions may be of {MOST_CLASSES} classes at most, got {self.num_classes}")
        probs = (self.logits[..., :top_k].double() / temperature - logsumexp[..., None]).exp()
        wide = torch.promote_types(self.logits.dtype, torch.float32)
        return torch.cat([probs, self.indices[..., :top_k]], dim=-1).to(wide)

    def first(self, rows: int) -> "TopPredictions":
        return TopPredictions(*(part[:rows] for part in self[:-1]), self.num_classes)


def check_predictions(predictions, rows: int, num_classes: int) -> None:
    """Raises unless these are predictions of so many rows of features."""
    if not isinstance(predictions, TopPredictions):
        raise TypeError(f"predictions must be TopPredictions or None, got {type_of(predictions)}")
    if predictions.indices.shape[:-1] != (rows,) or predictions.num_classes != num_classes:
        raise ValueError(
            f"predictions must be of {rows} rows (from features) and {num_classes} classes, got "
            f"{list(predictions.indices.shape[:-1])} and {predictions.num_classes}"
        )
