"""make gpu, tools/gpu.py: what it runs in which time, what stops it, and what it does without."""

import importlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import blended_kl_cases
import optional
import pytest
import torch
from _pytest.mark.expression import Expression
from medoid_cases import METRICS
from test_every_kernel_once import CASES, PLAIN

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu():
    return importlib.import_module("gpu")


def steps(gpu, part=None, built=False, proven=False):
    return gpu.steps(part, sys.executable, built, proven, "compute-sanitizer")


def names(run):
    return [[step.name for step in together] for together in run]


def test_parts(gpu):
    gate, suites = ["gate: triton", "gate: medoids", "gate: cuda"], [["loss"], ["medoids"], ["step"]]
    assert names(steps(gpu)) == [["install"], gate, *suites, ["tables"]]
    assert names(steps(gpu, built=True, proven=True)) == [gate, *suites, ["tables"]]
    assert names(steps(gpu, "gate", built=True, proven=True)) == [gate]
    assert names(steps(gpu, "step", built=True)) == [gate, ["step"], ["tables"]]
    assert names(steps(gpu, "step", built=True, proven=True)) == [["step"], ["tables"]]
    assert names(steps(gpu, "linear", built=True, proven=True)) == [["linear"], ["tables"]]
    assert names(steps(gpu, "tests", built=True)) == [["tests: many", "tests: loss", "tests: shared", "tests: medoids"]]
    small = ["small: triton", "small: cuda", "small: medoids"]
    assert names(steps(gpu, "checkers", built=True)) == [small, ["memcheck", "racecheck", "synccheck"]]


def test_limits_and_files(gpu):
    assert gpu.LIMIT <= 9 * 60
    assert gpu.LIMIT_OF_A_PART <= 150
    for part in gpu.PARTS:
        run = steps(gpu, part, built=True, proven=True)
        assert sum(max(step.seconds for step in together) for together in run) <= gpu.LIMIT_OF_A_PART
    for step in itertools.chain(*(itertools.chain(*steps(gpu, part)) for part in (None, *gpu.PARTS))):
        files = [word for word in step.command if word.endswith(".py") and " " not in word]
        assert all((ROOT / file).exists() for file in files), step
        assert step.gate == step.name.startswith(("install", "gate", "small"))
        assert step.seconds <= 60 or not step.name.startswith("gate")


LACKING = """
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

lacking = {"hypothesis", "expecttest", "fontTools", "rich", "liger_kernel", "cut_cross_entropy", "kmedoids", "pykeops"}
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in lacking else find(name, *rest)

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    Path(__file__).with_name("ids").write_text("\\n".join(item.nodeid for item in items))
    on_kernels = set()
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if {"triton", "cuda"} & {parameters.get("kernel"), parameters.get("backend")}:
            on_kernels.add(item.nodeid.partition("::")[0])
    Path(__file__).with_name("on_kernels").write_text("\\n".join(on_kernels))
"""


@pytest.fixture(scope="module")
def on_a_gpu_machine(tmp_path_factory):
    """A few tests of all, run where packages are missing and pytest has no plugin but pytest-benchmark: what it
    printed, the ids of all tests, and the files with tests that a GPU's kernel is a parameter of."""
    folder = tmp_path_factory.mktemp("lacking")
    (folder / "lacking.py").write_text(LACKING)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "lacking", "-p", "pytest_benchmark.plugin", "--assert=plain"]
    some = ["-k", "stride_and_offset or widths_around_vectors and 129", "tests", "bench"]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([*command, *some], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, *((folder / name).read_text().splitlines() for name in ("ids", "on_kernels"))


@pytest.fixture(scope="module")
def gpu_tests(on_a_gpu_machine):
    """The ids of all tests that some step may select."""
    files = re.compile(r"tests/\w+/test_(blended_kl_|medoids_triton|every_kernel_once)\w*\.py::")
    return [test for test in on_a_gpu_machine[1] if files.match(test)]


def selected(step, tests):
    """As pytest selects by its -k: by parts of the names of the test, of its parameters and of its file."""
    words = step.command
    chosen = Expression.compile(words[words.index("-k") + 1] if "-k" in words else "test")
    of_files = [test for test in tests if test.partition("::")[0] in words]
    return [test for test in of_files if chosen.evaluate(lambda word, **_: word.lower() in test.lower())]  # noqa: B023


def test_the_gate_has_every_kernel_and_every_kind_of_input_once(gpu, gpu_tests):
    """A slip in what pytest is to choose would leave one out, and nobody would see it."""
    (gate,) = steps(gpu, "gate", built=True)
    chosen = [test for step in gate for test in selected(step, gpu_tests)]
    once = [test for test in chosen if gpu.ONCE in test]
    assert len(chosen) == len(set(chosen))
    assert set(once) == {test for test in gpu_tests if gpu.ONCE in test}
    for kernel in ("triton", "cuda"):
        assert sum(bool(re.search(rf"\b{kernel}\b", test)) for test in once) == len(CASES) + len(PLAIN)
        for wanted in ("a_cuda_graph", "nothing_waits", "hold_one_gradient"):
            assert any(re.search(rf"_{kernel}(_launch)?\.py::", test) and wanted in test for test in chosen), (
                kernel,
                wanted,
            )
    for wanted in ("statistics_of_rows", "kept_rows", *METRICS):
        assert any(re.search(rf"\b{wanted}\b|_{wanted}", test) for test in once), wanted

    assert {case.soft for case in CASES} == {case.past for case in CASES} == set(blended_kl_cases.ENCODINGS)
    assert {case.target for case in CASES} == {"labels", "mixup", "probabilities"}
    assert {case.reduction for case in CASES} == {"none", "mean", "sum"}
    assert {case.dtype for case in CASES} == set(blended_kl_cases.DTYPES[1:])
    assert {case.weighted for case in CASES} == {case.label_smoothing > 0 for case in CASES} == {False, True}


def test_the_long_suite_has_the_gpu_kernels_tests_once(gpu, gpu_tests):
    (tests,) = steps(gpu, "tests", built=True)
    chosen = [test for step in tests for test in selected(step, gpu_tests)]
    assert len(chosen) == len(set(chosen))
    assert set(chosen) >= {test for test in gpu_tests if re.search(r"_(triton|cuda)\.py::", test)}
    for file, kernel in itertools.product(gpu.SHARED, ("triton", "cuda")):
        assert sum(file in test and bool(re.search(rf"\b{kernel}\b", test)) for test in chosen) >= 3, (file, kernel)


def test_no_file_with_tests_of_gpu_kernels_is_left_out(gpu, on_a_gpu_machine):
    """But for the gate's own, and one that chooses among kernels and runs none."""
    (tests,) = steps(gpu, "tests", built=True)
    listed = {word for step in tests for word in step.command}
    assert set(on_a_gpu_machine[2]) - listed == {gpu.ONCE, "tests/library/test_backends.py"}


def test_a_package_that_is_missing_leaves_its_tests_out_by_name(on_a_gpu_machine):
    """All of tests/ and bench/ can be read without it."""
    output = on_a_gpu_machine[0]
    assert re.search(r"^\d+ passed, \d+ skipped", output, re.MULTILINE)
    assert "test_blended_kl_layouts.py:165: needs hypothesis" in re.sub(r"py:\d+", "py:165", output)
    assert "needs fontTools" in output


def test_a_package_that_torch_misses_leaves_the_test_out_by_name():
    with pytest.raises(pytest.skip.Exception, match="needs expecttest"):
        optional.skip_if_missing(ModuleNotFoundError(name="expecttest"))
    optional.skip_if_missing(ModuleNotFoundError(name="toast_kernels.gone"))


def test_a_checker_that_cannot_run_stops_nothing_and_one_that_finds_something_does(gpu, capfd):
    after = gpu.Step("loss", [sys.executable, "-c", "print('timed')"], 20)
    for code, goes_on in ((255, True), (gpu.FOUND, False)):
        checker = gpu.Step("memcheck", [sys.executable, "-c", f"raise SystemExit({code})"], 20, True, gpu.FOUND)
        assert gpu.run_all([[checker], [after]], {}, time.monotonic() + 60) == goes_on
        assert ("timed\n" in capfd.readouterr().out) == goes_on


def test_nothing_is_timed_behind_a_failing_gate(gpu, capfd):
    run = [
        [gpu.Step("gate: triton", [sys.executable, "-c", "raise SystemExit(3)"], 20, gate=True)],
        [gpu.Step("loss", [sys.executable, "-c", "print('timed')"], 20)],
    ]
    assert not gpu.run_all(run, {}, time.monotonic() + 60)
    out = capfd.readouterr().out
    assert "FAILED with 3" in out
    assert "nothing was timed" in out
    assert "timed\n" not in out


def test_behind_a_gate_that_runs_out_of_time_nothing_is_timed_and_it_says_so(gpu, capfd):
    run = [
        [gpu.Step("gate: triton", ["sleep", "60"], 1, gate=True), gpu.Step("gate: cuda", ["true"], 20, gate=True)],
        [gpu.Step("loss", [sys.executable, "-c", "print('timed')"], 20)],
    ]
    passed = []
    assert not gpu.run_all(run, {}, time.monotonic() + 60, lambda: passed.append(1))
    out = capfd.readouterr().out
    assert "the gate has NOT FAILED, it RAN OUT OF TIME" in out
    assert "timed\n" not in out
    assert not passed


def test_a_gate_that_passed_is_noted_before_the_suites(gpu, capfd):
    events = []
    run = [[gpu.Step("gate: triton", ["true"], 20, gate=True)], [gpu.Step("loss", ["false"], 20)]]
    assert not gpu.run_all(run, {}, time.monotonic() + 60, lambda: events.append("passed"))
    assert events == ["passed"]


def test_what_the_gate_passed_on(gpu, tmp_path, monkeypatch):
    """Another machine, or a file of the library that has changed, is gone or is new, is something else."""
    package = tmp_path / "toast_kernels"
    package.mkdir()
    (package / "op.py").write_text("1")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    seen = [gpu.library("H200"), gpu.library("H100")]
    (package / "op.py").write_text("2")
    seen.append(gpu.library("H200"))
    (package / "_cuda.so").write_bytes(b"3")
    seen.append(gpu.library("H200"))
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "op.pyc").write_bytes(b"4")
    assert len(set(seen)) == 4
    assert gpu.library("H200") == seen[-1]


@pytest.mark.parametrize("has_cuda", [True, False])
def test_what_is_built_beforehand_is_found(gpu, tmp_path, monkeypatch, has_cuda):
    package = tmp_path / "toast_kernels"
    package.mkdir()
    (package / "__init__.py").touch()
    modules = "import json as _C; " + ("import re as _cuda" if has_cuda else "_cuda = None")
    (package / "backends.py").write_text(modules)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    found = gpu.built(sys.executable, {})
    assert (found is not None and "json" in found) == has_cuda


def test_a_step_that_hangs_is_ended_keeps_its_output_and_the_next_runs(gpu, capfd):
    """It gets Ctrl-C first, on which pytest says what has failed; what does not hear it is killed."""
    deaf = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    hears = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('kept')"
    run = [
        [gpu.Step("loss", [sys.executable, "-c", deaf], 2), gpu.Step("step", [sys.executable, "-c", hears], 2)],
        [gpu.Step("tables", [sys.executable, "-c", "print('drawn')"], 20)],
    ]
    start = time.monotonic()
    assert not gpu.run_all(run, {}, start + 60)
    assert time.monotonic() - start < 30
    out = capfd.readouterr().out
    assert "deaf\n" in out
    assert "kept\n" in out
    assert "drawn\n" in out
    assert len(re.findall("ran out of time; what it has written is kept", out)) == 2


def test_all_ends_by_the_deadline_whatever_the_steps_may_take(gpu, monkeypatch):
    start = time.monotonic()
    run = [[gpu.Step(name, ["sleep", "60"], 50)] for name in ("loss", "step", "tables")]
    monkeypatch.setattr(gpu, "TABLES", 1)
    assert not gpu.run_all(run, {}, start + gpu.TABLES + 1)
    assert time.monotonic() - start < gpu.TABLES + 20


STOPPED = """
import gpu, time

gpu.stop_on_signals()
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
@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN], ids=["", "ignored before"])
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_who_stops_it_ends_the_steps_that_run(stop, before):
    """Also in a shell's background job, which starts with Ctrl-C ignored."""
    start = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED], cwd=ROOT / "tools", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(stop, before),
    ) as program:  # fmt: skip
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
