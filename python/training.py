"""One method trained with one seed, in steps that can stop after any of them and go on bit for bit."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import backbones
import parallel
import torch
from augment import AUGMENTATIONS, MIXES, NONE, Mixed, to_inputs
from checkpoint import load_tensors, save_tensors
from image_data import ImageData, Split
from metrics import judged, scores
from options import METHODS
from record import Medoids, Record
from stopwatch import PeakMemory, Stopwatch
from torch import Tensor

from toast_kernels import HardReplay, PastPredictions, ToastLoss

EVAL_BATCH = 512
WARM_UP = 0.15  # share of the steps before the learning rate's peak


class Interrupted(Exception):
    """Asked to stop; the checkpoint on the disk is of this very step."""


class Training:
    """The state of a training: all of it is in state_dict, the data are not."""

    def __init__(self, data: ImageData, method: str, seed: int, options: argparse.Namespace, device: torch.device):
        self.data, self.options, self.device = data, options, device
        self.use_medoids, use_replay = METHODS[method]
        self.steps_per_epoch = -(-len(data.train) // options.batch_size)
        self.total_steps = options.epochs * self.steps_per_epoch

        torch.manual_seed(seed)
        model = backbones.build(options.backbone, len(data.classes), data.channels, data.input_size)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, options.lr, total_steps=self.total_steps, pct_start=WARM_UP
        )
        self.criterion = ToastLoss(
            len(data.classes),
            alpha=options.alpha if self.use_medoids else 0.0,
            past_weight=options.past_weight,
            temperature=options.temperature,
            metric=options.metric,
            num_epochs=options.epochs,
            top_k=options.top_k,
            num_features=None if options.top_k is None else self.model[-1].in_features,
            dtype=torch.float32,
            pool_rows=len(data.train),
            save_pool=self.use_medoids,  # so that a training that was stopped in mid-epoch goes on bit for bit
        ).to(device)
        self.criterion.set_epoch(0)
        self.replay = None
        if use_replay:
            self.replay = HardReplay(
                options.fraction, options.max_age, temperature=options.temperature, top_k=options.top_k
            )
        self.moves = torch.Generator(device).manual_seed(parallel.generator_seed(seed))
        self.mixes = torch.Generator().manual_seed(parallel.generator_seed(seed))

        self.epoch = self.step = 0  # the step to take next is self.step of self.epoch
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # this epoch's cross-entropy, hits, new rows
        self.stopwatch = Stopwatch(device)
        self.record = Record(method, seed)

    @property
    def steps_done(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step

    def run(self, checkpoint: Path, on_step: Callable, on_epoch: Callable, should_stop: Callable[[], bool]) -> None:
        """Train to the end from wherever it stands, saving to `checkpoint` after each epoch."""
        memory, began = PeakMemory(self.device), time.perf_counter()
        before = self.record.wall_seconds, self.record.peak_bytes

        def save() -> None:
            self.record.wall_seconds = before[0] + time.perf_counter() - began
            self.record.peak_bytes = max(before[1], memory.bytes())
            save_tensors(self.state_dict(), checkpoint)

        while self.epoch < self.options.epochs:
            for rows in self.epoch_batches()[self.step :]:
                if parallel.any_asked(should_stop(), self.device):
                    save()
                    raise Interrupted
                self.train_step(rows)
                on_step(self)
            self.end_epoch()
            on_epoch(self)
            save()
        of_rows = self.judge(self.data.test)
        self.record.test, self.record.test_hits = scores(*of_rows), of_rows[0][:, 0].cpu()
        save()

    def epoch_batches(self) -> tuple[Tensor, ...]:
        """The rows of each of this epoch's steps, the same whenever they are asked for."""
        return self.epoch_order().tensor_split(self.steps_per_epoch)

    def epoch_order(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.record.seed * 2**31 + self.epoch)
        return torch.randperm(len(self.data.train), generator=generator).to(self.device)

    def train_step(self, rows: Tensor) -> None:
        part = self.stopwatch.part
        self.model.train()
        past = None
        with part("data"):
            x, y = self.draw(parallel.share(rows))
        if self.replay is not None:
            with part("replay"):
                x, y, past = self.replay.extend(x, y)
        loss, stats, predictions = self.loss_of(x, y, past)
        with part("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            parallel.average_gradients(self.model)
        with part("optimiser"):
            self.optimizer.step()
            self.scheduler.step()
        if self.replay is not None:
            with part("replay"):
                self.replay.keep(x, y, predictions, stats.cross_entropy)

        fresh = len(parallel.share(rows))
        self.sums[0] += stats.cross_entropy[:fresh].sum()
        self.sums[1] += hits(stats.argmax, y)[:fresh].sum()
        self.sums[2] += fresh
        self.step += 1
        self.record.steps += 1
        self.record.fresh_rows += len(rows)
        if past is not None and past.targets is not None:  # in the first step all slots are empty
            self.record.replayed_rows += (len(x) - fresh) * parallel.SIZE

    def loss_of(self, x: Tensor, y: Tensor | Mixed, past: PastPredictions | None):
        """(loss, its stats, what replay is to keep)."""
        part, linear = self.stopwatch.part, self.options.top_k is not None
        with part("forward"), self.autocast():
            outputs = self.model.features(x) if linear else self.model(x)
        with part("loss"):
            if not linear:
                return *self.criterion(outputs, y, past, return_stats=True), outputs.detach()
            with self.autocast():
                weight, bias = self.model[-1].parameters()
                return self.criterion.linear(outputs, weight, y, past, bias, return_stats=True, return_top_k=True)

    def draw(self, rows: Tensor) -> tuple[Tensor, Tensor | Mixed]:
        """Augmented inputs and their labels, mixed or plain."""
        images, y = self.data.train.images[rows], self.data.train.labels[rows]
        x = to_inputs(images, self.data.input_size, AUGMENTATIONS[self.data.augmentation], self.moves)
        if self.options.augment != "none":
            return MIXES[self.options.augment](x, y, self.mixes)
        return x, y

    def running(self) -> tuple[float, float]:
        """Cross-entropy and accuracy of this epoch's new rows (of this process), each as it was when its step came."""
        cross_entropy, hit, rows = self.sums.tolist()
        return cross_entropy / rows, hit / rows

    def end_epoch(self) -> None:
        parallel.add_up(self.sums)
        parallel.average_statistics(self.model)
        cross_entropy, accuracy = self.running()
        self.record.history.append(
            {
                "alpha": self.criterion.alpha.item(),
                "train_ce": cross_entropy,
                "train_top1": accuracy,
                **scores(*self.judge(self.data.val)),
            }
        )
        self.sums.zero_()
        batches = self.epoch_batches()
        order = torch.cat([parallel.share(rows, rank) for rank in range(parallel.SIZE) for rows in batches])
        self.epoch, self.step = self.epoch + 1, 0
        with self.stopwatch.part("medoids"):
            if self.epoch < self.options.epochs:
                self.criterion.set_epoch(self.epoch)
            elif self.use_medoids:
                soft_targets = self.criterion.bank.compute()
                medoids = self.criterion.bank.medoids
                self.record.medoids = Medoids.of(
                    torch.where(medoids >= 0, order[medoids.clamp(min=0)], -1), soft_targets
                )
                self.criterion.bank.reset()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp == "bf16")

    @torch.no_grad()
    def judge(self, split: Split) -> list[Tensor]:
        """What metrics.judged says of the images as they are, of a batch at a time: all logits would be a lot."""
        self.model.eval()
        parts = []
        with self.autocast():
            for images, labels in zip(split.images.split(EVAL_BATCH), split.labels.split(EVAL_BATCH), strict=True):
                parts.append(judged(self.model(to_inputs(images, self.data.input_size, NONE)), labels))
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def state_dict(self) -> dict:
        self.record.part_seconds = self.stopwatch.seconds()
        return {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "criterion": self.criterion.state_dict(),
            "replay": self.replay.state_dict() if self.replay is not None else None,
            "moves": self.moves.get_state(),
            "mixes": self.mixes.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else None,
            "record": self.record.state_dict(),
        }

    def load(self, checkpoint: Path) -> None:
        """Stand where the training that wrote this file stood."""
        state = load_tensors(checkpoint)
        self.epoch, self.step = state["epoch"], state["step"]
        self.sums.copy_(state["sums"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.criterion.load_state_dict(state["criterion"])
        if self.replay is not None:
            self.replay.load_state_dict(state["replay"])
        self.moves.set_state(state["moves"])
        self.mixes.set_state(state["mixes"])
        torch.set_rng_state(state["torch_rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.record = Record.from_state_dict(state["record"])
        self.stopwatch.load(self.record.part_seconds)


def hits(predicted: Tensor, y: Tensor | Mixed) -> Tensor:
    """Per row 1 where the prediction is the label; for a mixed image, the share of the label that it is."""
    if isinstance(y, Tensor):
        return (predicted == y).double()
    y_a, y_b, lam = y
    return lam * (predicted == y_a).double() + (1 - lam) * (predicted == y_b).double()
