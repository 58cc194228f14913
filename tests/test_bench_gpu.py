"""make gpu, bench/gpu.py: what it runs in its nine minutes, and what stops it."""

import importlib
import itertools
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("gpu")


def names(run):
    return [[step.name for step in together] for together in run]


def test_parts_and_limits(gpu):
    everything = gpu.steps(None, "python", True, "compute-sanitizer")
    gates = [["tests", "small run"], ["memcheck", "racecheck", "synccheck"]]
    last = [["more tests"], ["tables"]]
    assert names(everything) == [["install"], *gates, ["loss"], ["medoids"], ["training"], *last]
    assert names(gpu.steps("medoids", "python", False, None)) == [["install"], gates[0], [], ["medoids"], *last]
    for part in (None, "loss", "medoids", "training"):
        run = gpu.steps(part, "python", True, "compute-sanitizer")
        limits = [max(step.seconds for step in together) for together in run if together[0].name != "more tests"]
        assert sum(limits) <= 60 * gpu.MINUTES
    for step in itertools.chain(*everything):
        assert step.gate == any(step.name in gate for gate in gates)
        files = [word for word in step.command if word.endswith(".py")]
        assert all((ROOT / file).exists() for file in files), step


def collected(step):
    done = subprocess.run([*step.command, "--collect-only"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line for line in done.stdout.splitlines() if "::" in line}


def test_the_gate_has_every_kernel_in_every_file_that_tests_it(gpu):
    """A slip in what pytest is to choose would leave a kernel out, and nobody would see it."""
    steps = itertools.chain(*gpu.steps(None, sys.executable, False, None))
    first, more = (collected(step) for step in steps if "tests" in step.name)
    assert not first & more
    assert {test.partition("::")[0] for test in first | more} == set(gpu.FILES)
    for file in ("extremes", "rows", "cross_entropy", "autograd", "layouts"):
        for kernel in ("triton", "cuda"):
            chosen = [test for test in first if re.search(rf"_{file}\.py::.*\b{kernel}\b", test)]
            assert len(chosen) >= 15, (file, kernel)
    for wanted in ("every_pair_of_encodings", "long_rows", "a_cuda_graph"):
        assert any(f"_cuda.py::test_{wanted}" in test for test in first), wanted
    assert any("_triton.py::test_a_cuda_graph" in test for test in first)
    assert any("_triton.py::test_any_combination" in test for test in more)


def test_a_checker_that_cannot_run_stops_nothing_and_one_that_finds_something_does(gpu, capfd):
    after = gpu.Step("loss", [sys.executable, "-c", "print('timed')"], 20)
    for code, goes_on in ((255, True), (gpu.FOUND, False)):
        checker = gpu.Step("memcheck", [sys.executable, "-c", f"raise SystemExit({code})"], 20, True, gpu.FOUND)
        assert gpu.run_all([[checker], [after]], {}, time.monotonic() + 60) == goes_on
        assert ("timed\n" in capfd.readouterr().out) == goes_on


def test_nothing_is_timed_behind_a_failing_gate(gpu, capfd):
    run = [
        [gpu.Step("tests", [sys.executable, "-c", "raise SystemExit(3)"], 20, gate=True)],
        [gpu.Step("loss", [sys.executable, "-c", "print('timed')"], 20)],
    ]
    assert not gpu.run_all(run, {}, time.monotonic() + 60)
    out = capfd.readouterr().out
    assert "FAILED with 3" in out
    assert "nothing was timed" in out
    assert "timed\n" not in out


def test_a_step_that_hangs_is_ended_and_the_next_runs(gpu, capfd):
    run = [
        [gpu.Step("loss", ["/bin/sh", "-c", "sleep 60 & wait"], 1)],
        [gpu.Step("tables", [sys.executable, "-c", "print('drawn')"], 20)],
    ]
    start = time.monotonic()
    assert not gpu.run_all(run, {}, start + 60)
    assert time.monotonic() - start < 20
    out = capfd.readouterr().out
    assert "ran out of time" in out
    assert "drawn" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_without_a_gpu_it_says_so(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "sees no GPU" in capsys.readouterr().err
