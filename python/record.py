"""What is kept of a training for the tables and pictures, once its network is gone."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from toast_kernels import SoftTargets

LEANINGS = 5
CLASSES_AT_A_TIME = 512  # whose soft targets are made dense


@dataclass
class Record:
    method: str
    seed: int
    history: list[dict[str, float]] = field(default_factory=list)  # by epoch
    test: dict[str, float] = field(default_factory=dict)  # empty until the training is finished
    test_hits: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))  # [test images]
    steps: int = 0
    fresh_rows: int = 0
    replayed_rows: int = 0
    part_seconds: dict[str, float] = field(default_factory=dict)
    wall_seconds: float = 0.0
    peak_bytes: int = 0
    medoids: Medoids | None = None

    @property
    def name(self) -> str:
        return f"{self.method}-seed{self.seed}"

    @property
    def finished(self) -> bool:
        return bool(self.test)

    def state_dict(self) -> dict:
        return {**vars(self), "medoids": vars(self.medoids) if self.medoids else None}

    @classmethod
    def from_state_dict(cls, state: dict) -> Record:
        medoids = state["medoids"]
        return cls(**{**state, "medoids": Medoids(**medoids) if medoids else None})


@dataclass
class Medoids:
    """The last epoch's class medoids, and what their soft targets are."""

    image: Tensor  # int64 [C], row of the training images, or -1
    own: Tensor  # [C], the soft target's share of the class itself
    share: Tensor  # [C, 5], its largest shares of other classes
    leaning: Tensor  # int64 [C, 5], these classes

    @classmethod
    def of(cls, image: Tensor, table: SoftTargets) -> Medoids:
        parts = []
        for classes in torch.arange(len(table), device=table.device).split(CLASSES_AT_A_TIME):
            probs = table[classes].dense()
            own = probs.gather(1, classes[:, None])
            largest = probs.scatter(1, classes[:, None], -1).topk(min(LEANINGS, len(table) - 1), dim=1)
            parts.append((own[:, 0], largest.values, largest.indices))
        return cls(*(part.cpu() for part in (image, *map(torch.cat, zip(*parts, strict=True)))))
