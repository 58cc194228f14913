"""The seeded-fault check itself, on a few of its faults; `make faults` runs them all."""

import subprocess
import sys
from pathlib import Path

import pytest
import seeded_faults

SAMPLES = (
    ["half() rounds the state", "two rows go to one place"],
    [
        "the bound stays in the panels' scale",
        "the gradient lacks the hard label of a chunk's last class",
        "a row's next neighbour is left out",
        "a block's barrier for the cluster's",
        "vectors of the gradient are one class off",
        "vectors begin where the row does",
    ],
)


def run(*arguments):
    return subprocess.run(
        [sys.executable, Path(seeded_faults.__file__), *arguments], capture_output=True, text=True, timeout=600
    )


def test_every_fault_still_fits_the_code():
    done = run("--list")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(seeded_faults.read_faults()) > 80


@pytest.mark.more
@pytest.mark.parametrize("names", SAMPLES, ids=["Python", "C++"])
def test_a_sample_is_caught(names):
    done = run("--only", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in names:
        assert f"caught   {name}" in done.stdout


@pytest.fixture
def tree(tmp_path):
    """With a module and tests that need no torch."""
    tree = seeded_faults.Tree(tmp_path)
    (tree.root / "tools" / "made.py").write_text("ONE = 1\n")
    (tree.root / "test_made.py").write_text(
        "import made\n\ndef test_one():\n    assert made.ONE == 1\n\ndef test_blind():\n    assert made.ONE\n"
    )
    return tree


def fault(test):
    return seeded_faults.Fault("any", "tools/made.py", "1", "2", f"test_made.py::{test}")


def test_a_fault_is_caught_or_missed(tree, capsys):
    assert seeded_faults.check([fault("test_one"), fault("test_blind")], tree) == {"caught": 1, "MISSED": 1}
    assert (tree.root / "tools" / "made.py").read_text() == "ONE = 1\n"
    printed = capsys.readouterr().out
    assert "caught   any  ->  test_made.py::test_one" in printed
    assert "MISSED   any  ->  test_made.py::test_blind" in printed


def test_a_test_that_fails_without_a_fault_is_an_error(tree):
    (tree.root / "tools" / "made.py").write_text("ONE = 1 + 1\n")
    with pytest.raises(SystemExit, match="without any fault this fails"):
        seeded_faults.check([fault("test_one")], tree)


def test_a_test_that_does_not_exist_is_an_error(tree):
    with pytest.raises(SystemExit, match="was not run"):
        seeded_faults.check([fault("test_none")], tree)
