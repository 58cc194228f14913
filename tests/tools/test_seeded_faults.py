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


def test_a_fault_is_caught(tmp_path, capsys):
    (noticed,) = (one for one in seeded_faults.read_faults() if one.name == "half() rounds the state")
    assert seeded_faults.check([noticed], seeded_faults.Tree(tmp_path)) == {"caught": 1}
    assert "caught   half() rounds the state  ->" in capsys.readouterr().out


def fault(test):
    return seeded_faults.Fault("any", "toast_kernels/mixup.py", "import torch\n", "", test)


def test_a_fault_that_nothing_notices_is_missed(tmp_path, capsys, monkeypatch):
    tree = seeded_faults.Tree(tmp_path)
    monkeypatch.setattr(tree, "test", lambda test, native: ("passed", ""))
    assert seeded_faults.check([fault("a test")], tree) == {"MISSED": 1}
    assert "MISSED   any  ->  a test" in capsys.readouterr().out


def test_a_test_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="was not run"):
        seeded_faults.check(
            [fault("tests/toast_loss/test_toast_loss_state.py::test_none")], seeded_faults.Tree(tmp_path)
        )
