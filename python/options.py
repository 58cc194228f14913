"""The command line of train.py."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import augment
import backbones
from checkpoint import save_text

from toast_kernels.medoids.reference import METRICS

REPOSITORY = Path(__file__).resolve().parent.parent

METHODS = {  # name: (targets softened by class medoids, hard rows replayed)
    "ce": (False, False),
    "stage1": (True, False),
    "stage2": (False, True),
    "toast": (True, True),
}


def number(low: float, high: float = math.inf, kind: type = float, low_open: bool = False):
    """An argparse type: a number of this kind in [low, high], or (low, high]."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or value == math.inf or (low_open and value == low):
            bounds = f"{'(' if low_open else '['}{low}, {high}{']' if high < math.inf else ')'}"
            name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {name} in {bounds}, got {text!r}")
        return value

    return parse


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows every default but None, which stands for what the help itself describes."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        description="Train an image classifier with cross-entropy and with TOAST, and compare them. Without any "
        "option: 3,250 classes of glyphs, both methods, at most five minutes on two CPU cores.",
        formatter_class=Help,
    )
    add = parse.add_argument_group("what is trained").add_argument
    add("--data", default="glyphs",
        help="glyphs, all-glyphs, fashion-mnist, digits, or folder:PATH with a folder of images per class")  # fmt: skip
    add("--data-dir", type=Path, help="where data sets are kept (default: data/ beside python/)", default=None)
    add("--method", nargs="+", choices=METHODS, default=["ce", "toast"], metavar="METHOD",
        help="some of ce (cross-entropy), toast (both stages), stage1 (class medoids), stage2 (replay)")  # fmt: skip
    add("--backbone", choices=backbones.NAMES, default="cnn", help="the network; all but cnn need transformers")
    add("--augment", choices=["none", *augment.MIXES], default="none", help="mixing of images, after the usual moves")
    add("--classes", type=number(2, kind=int), help="keep only the first so many classes (default: all)", default=None)
    add("--image-size", type=number(16, 1024, int), default=64, help="side of the images of folder:PATH, in pixels")

    add = parse.add_argument_group("how long and how").add_argument
    add("--epochs", type=number(1, kind=int), default=12, help="passes over the training images")
    add("--batch-size", type=number(2, kind=int), default=128, help="new images a step; replayed ones come on top")
    add("--lr", type=number(0, low_open=True), default=None,
        help="peak of the one-cycle learning rate (default: 0.01 for cnn, 0.001 for the others)")  # fmt: skip
    add("--weight-decay", type=number(0), default=0.02, help="of AdamW")
    add("--seeds", nargs="+", type=number(0, 2**31, int), default=[0], metavar="SEED", help="each method once for each")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--amp", choices=["off", "bf16"], default="off", help="automatic mixed precision")

    # alpha and past weight: what did best on the glyphs' validation face, see README.md; as the library's
    add = parse.add_argument_group("TOAST").add_argument
    add("--alpha", type=number(0, 1), default=0.1, help="weight of the medoid targets, reached in the last epoch")
    add("--metric", choices=METRICS, default="euclidean", help="the distance between logits that medoids minimise")
    add("--fraction", type=number(0, 1, low_open=True), default=0.5, help="share of a batch that the next one replays")
    add("--max-age", type=number(1, kind=int), default=1, help="times in a row that one image may be replayed")
    add("--past-weight", type=number(0), default=0.3, help="weight of the replayed rows' past predictions")
    add("--temperature", type=number(0, low_open=True), default=3.0, help="of the past predictions")
    add("--top-k", type=number(1, kind=int), default=None,
        help="the linear form: logits are never whole, and soft targets and past predictions are of the so many most "
        "probable classes (default: all logits, all classes); needs the backbone cnn")  # fmt: skip

    add = parse.add_argument_group("where it goes").add_argument
    add("--out", type=Path, default=None, help="a new folder for results and checkpoints (default: runs/DATA-TIME)")
    add("--resume", type=Path, default=None, metavar="OUT", help="continue the run in this folder, with its options")
    return parse


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Options complete and checked; for --resume those of OUT/options.json."""
    parse = parser()
    options = parse.parse_args(argv)
    if options.resume is not None:
        changed = [
            name for name, value in vars(options).items() if name != "resume" and value != parse.get_default(name)
        ]
        if changed:
            parse.error(f"--resume takes every option from the run: leave out --{changed[0].replace('_', '-')}")
        return _resumed(parse, options.resume)

    if options.data.startswith("folder:"):
        options.data = f"folder:{Path(options.data.removeprefix('folder:')).resolve()}"
    if options.data_dir is None:
        options.data_dir = REPOSITORY / "data"
    elif not options.data_dir.is_dir():
        parse.error(f"no folder {options.data_dir} (--data-dir)")
    options.data_dir = options.data_dir.resolve()
    for name in ("method", "seeds"):
        if len(set(getattr(options, name))) < len(getattr(options, name)):
            parse.error(f"--{name} names the same one twice")
    if options.top_k is not None and options.backbone != "cnn":
        parse.error(f"--top-k needs --backbone cnn, whose last layer is known, got {options.backbone}")
    if options.image_size % 4:
        parse.error(f"--image-size must be a multiple of 4, got {options.image_size}")
    if options.lr is None:
        options.lr = 0.01 if options.backbone == "cnn" else 0.001
    if options.out is None:
        name = options.data.rpartition("/")[2]
        options.out = REPOSITORY / "runs" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (options.out / "options.json").exists():
        parse.error(f"{options.out} already holds a run: --resume {options.out} continues it, or give another --out")
    return options


def save_options(options: argparse.Namespace) -> None:
    values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    save_text(json.dumps(values, indent=2) + "\n", options.out / "options.json")


def _resumed(parse: argparse.ArgumentParser, folder: Path) -> argparse.Namespace:
    if not (folder / "options.json").exists():
        parse.error(f"nothing to resume in {folder}: it has no options.json")
    options = argparse.Namespace(**json.loads((folder / "options.json").read_text()))
    options.data_dir, options.out, options.resume = Path(options.data_dir), folder, folder
    return options
