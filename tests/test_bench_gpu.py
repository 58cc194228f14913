"""make gpu, bench/gpu.py: what it runs in its nine minutes, and what stops it."""

import importlib
import itertools
import re
import signal
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


STOPPED = """
import gpu, signal, sys, time

signal.signal(signal.SIGTERM, signal.default_int_handler)
hangs = ["/bin/sh", "-c", 'sleep 60 & echo "started $!"; wait']
run = [[gpu.Step("tests", hangs, 50), gpu.Step("small run", hangs, 50)], [gpu.Step("loss", ["echo", "timed"], 50)]]
gpu.run_all(run, {}, time.monotonic() + 60)
"""


def alive(process):
    """Whether it runs; one that has ended may still wait for its parent, which is not ours to be."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_who_stops_it_ends_the_steps_that_run(stop):
    start = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED], cwd=ROOT / "bench", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        started = [int(program.stdout.readline().split()[1]) for _ in range(2)]
        assert all(map(alive, started))
        program.send_signal(stop)
        out, error = program.communicate(timeout=30)
    assert time.monotonic() - start < 30
    assert "KeyboardInterrupt" in error
    assert "timed" not in out
    for _ in range(100):
        if not any(map(alive, started)):
            break
        time.sleep(0.05)
    assert not any(map(alive, started))


def test_more_tests_may_run_out_of_time_but_not_fail(gpu, capfd):
    assert [step.name for step in itertools.chain(*gpu.steps(None, "python", True, None)) if step.may_run_out] == [
        "more tests"
    ]
    for command, good in (("sleep 60", True), ("exit 1", False)):
        step = gpu.Step("more tests", ["/bin/sh", "-c", command], 1, may_run_out=True)
        assert gpu.run_all([[step]], {}, time.monotonic() + 60) == good
    out = capfd.readouterr().out
    assert "ran out of time" in out
    assert "FAILED with 1" in out


def test_a_step_that_cannot_be_started_fails_and_says_why(gpu, capfd):
    run = [
        [gpu.Step("loss", ["/no/such/program"], 20), gpu.Step("medoids", ["/bin/sh", "-c", "echo timed"], 20)],
        [gpu.Step("memcheck", ["/no/such/checker"], 20, True, gpu.FOUND)],
        [gpu.Step("tables", ["/bin/sh", "-c", "echo drawn"], 20)],
    ]
    assert not gpu.run_all(run, {}, time.monotonic() + 60)
    out = capfd.readouterr().out
    assert re.search(r"loss .* FAILED: .*/no/such/program", out)
    assert re.search(r"memcheck .* could not be done: .*/no/such/checker", out)
    assert "timed\n" in out
    assert "drawn\n" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_without_a_gpu_it_says_so(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "sees no GPU" in capsys.readouterr().err
