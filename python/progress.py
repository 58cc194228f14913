"""What is seen while a training runs: a live bar in a terminal, a line an epoch anywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from training import Training

REFRESH_STEPS = 10  # reading the loss makes a GPU wait: not in every step


class Watch:
    """Shows one training after another; its on_step and on_epoch are what Training.run calls."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[epoch]}  {task.fields[step]}  {task.fields[score]}  {task.fields[pace]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> Watch:
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    @contextmanager
    def of(self, training: Training) -> Iterator[None]:
        """While this training runs, the bar is its own."""
        self.pace = Pace(training)
        self.task = self.bar.add_task(
            training.record.name, total=training.total_steps, epoch="", step="", score="", pace=""
        )
        yield
        self.bar.remove_task(self.task)

    def on_step(self, training: Training) -> None:
        if self.console.is_terminal and training.step % REFRESH_STEPS == 0:
            cross_entropy, accuracy = training.running()
            self.bar.update(
                self.task,
                completed=training.steps_done,
                epoch=f"epoch {training.epoch + 1}/{training.options.epochs}",
                step=f"step {training.step}/{training.steps_per_epoch}",
                score=f"loss {cross_entropy:.3f}, accuracy {accuracy:.1%}",
                pace=f"{self.pace.ms_a_step(training):.0f} ms a step,",
            )

    def on_epoch(self, training: Training) -> None:
        last = training.record.history[-1]
        left = (training.total_steps - training.steps_done) * self.pace.ms_a_step(training) / 1000
        self.console.print(
            f"{training.record.name:12}  epoch {training.epoch:2}/{training.options.epochs}  "
            f"loss {last['train_ce']:.3f}  accuracy {last['train_top1']:6.2%}  "
            f"validation {last['top1']:6.2%}, NLL {last['nll']:.3f}  "
            f"{self.pace.ms_a_step(training):.0f} ms a step, {left:.0f} s left"
        )


class Pace:
    """The mean time of a step since the training was begun or resumed, all in: data, validation and medoids too."""

    def __init__(self, training: Training) -> None:
        self.began, self.steps_before = time.perf_counter(), training.steps_done

    def ms_a_step(self, training: Training) -> float:
        return 1000 * (time.perf_counter() - self.began) / (training.steps_done - self.steps_before)
