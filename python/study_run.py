"""One run of the study: a method, under a regime, with a seed, from the data to the scores."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import image_data
import study_regimes
import torch
from augment import AUGMENTATIONS, MIXES, to_inputs
from image_data import ImageData
from metrics import scores
from options import parser
from study_methods import METHODS, Setting
from study_regimes import REGIMES
from torch import Tensor
from training import Training, hits

CURVE_POINTS = 16  # of the learning curves


@dataclass(frozen=True)
class Spec:
    """What a run is: the same spec gives the same numbers."""

    data: str
    classes: int
    image_size: int
    backbone: str
    batch_size: int
    epochs: int  # of the base regime and a method of budget 1
    regime: str
    method: str
    settings: str  # "alpha=0.3 lr=0.01", by name
    seed: int

    def __str__(self) -> str:
        return f"{self.regime}, {self.method}, seed {self.seed}, {self.settings}"


KEY = tuple(field.name for field in fields(Spec))
SCORES = ("top1", "top5", "nll", "ece")
COLUMNS = (
    *KEY, "trained_epochs", "steps", "new_rows", "forward_rows", "train_top1",
    *(f"{split}_{score}" for split in ("val", "test") for score in SCORES), "seconds",
)  # fmt: skip
CURVE_COLUMNS = (*KEY, "epoch", "forward_rows", "train_ce", *(f"val_{score}" for score in SCORES))


def write_settings(settings: dict[str, float]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in sorted(settings.items()))


def read_settings(text: str) -> dict[str, float]:
    return {name: float(value) for name, _, value in (pair.partition("=") for pair in text.split())}


def load(spec: Spec, data_dir: Path) -> ImageData:
    """The data of a spec, before its regime."""
    data = image_data.load(spec.data, data_dir, spec.image_size)
    return replace(data.first_classes(spec.classes), input_size=spec.image_size)


class Run(Training):
    """A training with a method's loss and past. Replayed images are augmented anew [DLB], mixed ones are not."""

    def __init__(self, spec: Spec, data: ImageData, device: torch.device) -> None:
        regime, method = REGIMES[spec.regime], METHODS[spec.method]
        if regime.mix != "none" and not method.mixes:
            raise ValueError(f"{spec.method} is not defined for mixed images ({spec.regime})")
        settings = read_settings(spec.settings)
        options = parser().parse_args([])
        options.backbone, options.batch_size, options.augment = spec.backbone, spec.batch_size, regime.mix
        options.lr, options.weight_decay = settings.pop("lr"), settings.pop("weight_decay")
        under = study_regimes.apply(regime, data, spec.seed)
        as_many_steps = len(data.train) / len(under.train)
        options.epochs = round(spec.epochs * regime.epochs * method.budget * as_many_steps)
        super().__init__(under.to(device), "ce", spec.seed, options, device)
        self.spec = spec
        labels = self.data.train.labels
        generator = torch.Generator(device).manual_seed(spec.seed)
        self.criterion, self.past = method.make(
            Setting(labels, len(data.classes), options.epochs, self.predict_in_training, generator), **settings
        )
        self.criterion.to(device).set_epoch(0)
        self.forward_rows = 0
        self.curve: list[dict] = []

    def train_step(self, rows: Tensor) -> None:
        self.model.train()
        x, y = self.data.train.images[rows], self.data.train.labels[rows]
        mix = MIXES.get(self.options.augment)
        if mix is not None:
            x, y = mix(self.inputs(x), y, self.mixes)
        x, y, past = self.past.extend(x, y, rows)
        logits = self.forward(x if mix is not None else self.inputs(x))
        loss, stats = self.criterion(logits, y, past, return_stats=True)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.past.keep(x, y, logits.detach(), stats.cross_entropy, rows)

        fresh = len(rows)
        self.sums[0] += stats.cross_entropy[:fresh].sum()
        self.sums[1] += hits(stats.argmax, y)[:fresh].sum()
        self.sums[2] += fresh
        self.step += 1

    def inputs(self, images: Tensor) -> Tensor:
        return to_inputs(images, self.data.input_size, AUGMENTATIONS[self.data.augmentation], self.moves)

    def forward(self, x: Tensor) -> Tensor:
        self.forward_rows += len(x)
        return self.model(x)

    @torch.no_grad()
    def predict_in_training(self, rows: Tensor) -> Tensor:
        return self.forward(self.inputs(self.data.train.images[rows]))

    def end_epoch(self) -> None:
        self.epoch, self.step = self.epoch + 1, 0
        last = self.epoch == self.options.epochs
        points = min(CURVE_POINTS, self.options.epochs)
        if last or self.epoch * points // self.options.epochs > (self.epoch - 1) * points // self.options.epochs:
            cross_entropy, self.train_top1 = self.running()
            val = scores(*self.judge(self.data.val))
            self.curve.append(
                {
                    **asdict(self.spec),
                    "epoch": self.epoch,
                    "forward_rows": self.forward_rows,
                    "train_ce": cross_entropy,
                    **{f"val_{name}": score for name, score in val.items()},
                }
            )
        self.sums.zero_()
        if not last:
            self.criterion.set_epoch(self.epoch)

    def run(self) -> tuple[dict, list[dict]]:
        """A row of COLUMNS and some of CURVE_COLUMNS."""
        began = time.perf_counter()
        while self.epoch < self.options.epochs:
            for rows in self.epoch_batches():
                self.train_step(rows)
            self.end_epoch()
        seconds = time.perf_counter() - began
        test = scores(*self.judge(self.data.test))
        result = {
            **asdict(self.spec),
            "trained_epochs": self.epoch,
            "steps": self.epoch * self.steps_per_epoch,
            "new_rows": self.epoch * len(self.data.train),
            "forward_rows": self.forward_rows,
            "train_top1": self.train_top1,
            **{f"val_{score}": self.curve[-1][f"val_{score}"] for score in SCORES},
            **{f"test_{score}": test[score] for score in SCORES},
            "seconds": seconds,
        }
        return result, self.curve
