"""What pages say of training with very many classes, held to the numbers in bench/results."""

import csv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "python" / "README.md").read_text()
MEMORY = "train.py --data all-glyphs --method toast --epochs 2"
ACCURACY = "train.py --classes 1000 --method toast --alpha 0.5 --past-weight 1 --epochs 4 --seeds 0 1"


@pytest.fixture(scope="module")
def values():
    """{(command, what): values with their unit, by seed}"""
    found = {}
    with open(ROOT / "bench" / "results" / "training" / "many_classes.csv", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault((row["command"], row["what"]), []).append((row["value"], row["unit"]))
    return found


@pytest.mark.parametrize(("first", "option"), [("all logits, all classes", ""), ("`--top-k 64`", " --top-k 64")])
def test_memory_and_time(values, first, option):
    whats = ("peak memory of the process", "its pool", "its soft targets", "a step", "of that the loss")
    cells = [" ".join(*values[MEMORY + option, what]) for what in whats]
    ((seconds, _),) = values[MEMORY + option, "class medoids of an epoch"]
    assert f"| {first} | {' | '.join(cells)} | {seconds} s an epoch |\n" in PAGE


@pytest.mark.parametrize(
    ("first", "option"),
    [("all classes", ""), ("`--top-k 64`", " --top-k 64"), ("`--top-k 16`", " --top-k 16")],
)
def test_shares_and_accuracy(values, first, option):
    cells = ["".join(*values[ACCURACY + option, what]) for what in ("share at 1", "share at 3")]
    for what in ("test top-1", "test NLL"):
        cells.append(", ".join(value for value, _ in values[ACCURACY + option, what]))
    assert f"| {first} | {' | '.join(cells)} |\n" in PAGE


def test_the_recipe(values):
    recipe = " ".join((ROOT / "docs" / "recipes" / "many-classes.md").read_text().split())
    example = "examples/many_classes.py 360000"
    ((peak, _),), ((torch, _),) = (
        values[example, what] for what in ("peak memory of the process", "of that Python and PyTorch")
    )
    assert f"360,000 classes, 64 features, float32 and 384 rows a step it peaks at {peak} MB" in recipe
    assert f"{torch} MB of them Python and PyTorch" in recipe


def test_the_page_has_the_commands():
    assert f"`{MEMORY.removeprefix('train.py ')}`" in PAGE
    assert {*ACCURACY.split()} <= {*PAGE.split()}
