"""Train an image classifier on real data, with cross-entropy and with TOAST, and see which did better.

python python/train.py                                  3,250 classes of glyphs, at most five minutes on two cores
python python/train.py --data fashion-mnist --method ce stage1 stage2 toast --seeds 0 1 2
python python/train.py --data folder:my-pictures --backbone resnet --augment cutmix
python python/train.py --resume runs/glyphs-20260131-120000
torchrun --nproc-per-node 2 python/train.py             any of these by two processes
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import extras  # noqa: F401 (before all that imports those packages, or torch, which takes seconds)

# isort: split
import backbones
import parallel
import torch
from checkpoint import CheckpointError, SaveError
from image_data import DataError, ImageData, load
from options import parse_options, save_options
from progress import Watch
from record import Record
from rich.console import Console
from train_report import print_tables, save_results, verdict
from training import Interrupted, Training

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
PLAIN_WIDTH = 140  # of the tables where stdout is no terminal


def main(argv: list[str] | None = None) -> int:
    options = parse_options(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in background jobs
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    console = Console(width=width, highlight=False, quiet=parallel.RANK > 0)
    try:
        device = parallel.join(choose_device(options.device))
        options = parallel.everyones(options)[0]  # of one second, whose name the folder has
        data = load(options.data, options.data_dir, options.image_size)
        if options.classes is not None:
            data = data.first_classes(options.classes)
        if options.top_k is not None and options.top_k > len(data.classes):
            raise DataError(f"--top-k must be at most the {len(data.classes)} classes, got {options.top_k}")
        describe(console, data, options, device)
        if options.resume is None and parallel.RANK == 0:
            save_options(options)
        records = train_all(console, data.to(device), options, device)
        if parallel.RANK == 0:
            report(console, data, records, options)
    except (DataError, DeviceError, backbones.BackboneError) as error:
        return fail(error, EXIT_USAGE)
    except CheckpointError as error:
        return fail(f"{error}: remove it to start that training anew", EXIT_FAILED)
    except SaveError as error:
        begun = (options.out / "options.json").exists()
        advice = f". With room made, go on with: {resume_command(options.out)}" if begun else ""
        return fail(f"{error}{advice}", EXIT_FAILED)
    except Interrupted:
        console.print(f"Stopped and saved. To go on: {resume_command(options.out)}", soft_wrap=True)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return fail(f"interrupted; what was saved can go on: {resume_command(options.out)}", EXIT_INTERRUPTED)
    finally:
        parallel.leave()
    return 0


def train_all(console: Console, data: ImageData, options: argparse.Namespace, device: torch.device) -> list[Record]:
    """Every method with every seed, each from its checkpoint if it has one."""
    records = []
    with StopRequest() as stop, Watch(console) as watch:
        for seed in options.seeds:
            for method in options.method:
                training = Training(data, method, seed, options, device)
                of_rank = f"-of-rank-{parallel.RANK}" if parallel.RANK else ""
                checkpoint = options.out / training.record.name / f"checkpoint{of_rank}.pt"
                if checkpoint.exists():
                    training.load(checkpoint)
                if len({*parallel.everyones(training.steps_done)}) > 1:
                    raise CheckpointError(f"{checkpoint} is of another step than another process's checkpoint")
                if not training.record.finished:
                    with watch.of(training):
                        training.run(checkpoint, watch.on_step, watch.on_epoch, stop)
                records.append(training.record)
    return records


def report(console: Console, data: ImageData, records: list[Record], options: argparse.Namespace) -> None:
    import pictures  # matplotlib takes a second to load: not before it is needed

    print_tables(console, records, len(data.test))
    verdicts = verdict(records)
    for sentence in verdicts:
        console.print(sentence)
    save_results(records, verdicts, options.out / "results.json")
    written = [options.out / "results.json", options.out / "learning_curves.png"]
    pictures.learning_curves(records, data, options.backbone, written[-1])
    for record in records:
        if record.medoids is not None and record.seed == options.seeds[0]:
            written.append(options.out / f"medoids_{record.method}.png")
            pictures.medoid_targets(record, data, written[-1])
    console.print("Written: " + ", ".join(map(shown, written)), soft_wrap=True)


class StopRequest:
    """Ctrl-C, or a SIGTERM, asks for a stop after the step that is running. A second Ctrl-C does not wait."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> StopRequest:
        self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, *_) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class DeviceError(Exception):
    """The device asked for is not there."""


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"--device {name}: {str(error).splitlines()[0]}") from error


def describe(console: Console, data: ImageData, options: argparse.Namespace, device: torch.device) -> None:
    model = backbones.build(options.backbone, len(data.classes), data.channels, data.input_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    images = " + ".join(f"{len(split):,} {name}" for name, split in data.splits().items())
    console.print(
        f"{data.name}: {len(data.classes):,} classes, {images} images of {data.input_size} x {data.input_size}"
    )
    console.print(
        f"{options.backbone}: {parameters / 1e6:.2f} M parameters, {options.epochs} epochs in batches of "
        f"{options.batch_size}, learning rate to {options.lr:g}, augment {options.augment}, amp {options.amp}, {device}"
    )
    if any(method != "ce" for method in options.method):
        console.print(
            f"TOAST: alpha to {options.alpha:g}, {options.metric} medoids; replay {options.fraction:g}, max age "
            f"{options.max_age}, past weight {options.past_weight:g} at temperature {options.temperature:g}"
        )
    console.print(f"Checkpoints and results: {shown(options.out)}", soft_wrap=True)


def fail(message: object, status: int) -> int:
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    return status


def resume_command(folder: Path) -> str:
    return f"{shown(Path(sys.executable))} {shown(Path(__file__))} --resume {shown(folder)}"


def shown(path: Path) -> str:
    """As one would type it from here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    sys.exit(main())
