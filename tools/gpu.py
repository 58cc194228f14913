"""make gpu: on a machine with a GPU the gate, a test of every kernel, and only behind it the benchmarks and the tables.

    python tools/gpu.py [--part gate|loss|medoids|step|linear|tests|checkers] [--results FOLDER]

Without a part: the gate and three suites of benchmarks (loss, medoids, step), within nine minutes. A part takes 150
seconds at most; a suite of benchmarks does without the gate where that has passed on the same library and machine. Uses
the Python it is run with, what is built, if it is, and nothing from a network. What runs out of its time keeps what it
has: benchmarks the rows they have written, tests the failures they have shown. Exits with 1 unless all passed.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
GATE_PASSED = ROOT / "build" / "gate-passed"  # what it passed on
LIMIT, LIMIT_OF_A_PART = 540, 150  # seconds
TABLES = 15  # seconds that no other step may take
stop_asked = []  # signals: raised where they come, one might hit while a step is started and not yet known
PASSED, FAILED, UNFINISHED = "passed", "FAILED", "ran out of time"


class Step(NamedTuple):
    name: str
    command: list[str]
    seconds: int
    gate: bool = False  # nothing is timed unless it passes
    fails_with: int | None = None  # the one exit code that is a failure; others mean that it could not be done
    environment: dict = {}  # noqa: RUF012


# What tests run side by side, by pytest's own selection, so that no plugin is needed.
ONCE = "tests/library/test_every_kernel_once.py"
OWN = [f"tests/blended_kl/test_blended_kl_{name}.py" for name in ("triton", "triton_launch", "cuda")]
ON_A_GPU = "cuda_graph or nothing_waits or hold_one_gradient or ordinary_loop"
GATE = {
    "gate: triton": ["-k", "triton", ONCE],
    "gate: medoids": ["-k", "not triton and not cuda", ONCE],
    "gate: cuda": ["-k", f"kernel_once and cuda or {ON_A_GPU}", ONCE, *OWN, "tests/library/test_step.py"],
}
MANY = "any_combination or widths or every_pair"  # each case another kernel that Triton compiles
LOSS = (
    "extremes", "rows", "cross_entropy", "autograd", "layouts", "plan", "masked_top_k", "learned", "hostile_input",
)  # fmt: skip
SHARED = [f"tests/blended_kl/test_blended_kl_{name}.py" for name in LOSS]
OTHERS = [
    "tests/softmax_statistics/test_softmax_statistics.py",
    "tests/kept_rows/test_kept_rows.py",
    "tests/kept_rows/test_kept_rows_pool.py",
    "tests/linear_blended_kl/test_linear_toast_loss.py",
    "tests/library/test_step.py",
    "tests/library/test_operands.py",
    "tests/library/test_export.py",
    "tests/toast_loss/test_mixup.py",
]
TESTS = {
    "tests: many": ["-k", MANY, OWN[0]],
    "tests: loss": ["-k", f"_cuda.py or not ({MANY})", *OWN],
    "tests: shared": ["-k", "triton or cuda", *SHARED, *OTHERS],
    "tests: medoids": [
        f"tests/medoids/test_medoids_triton{topic}.py" for topic in ("", "_decide", "_bounds", "_memory")
    ],
}
SUITES = {
    "loss": ("bench_blended_kl", "bench_softmax_statistics"),
    "medoids": ("bench_medoids",),
    "step": ("bench_training_step",),
    "linear": ("bench_linear",),
}
WITHOUT_A_PART = ("loss", "medoids", "step")  # all that nine minutes hold
PARTS = ("gate", *SUITES, "tests", "checkers")
CHECKERS = ("memcheck", "racecheck", "synccheck")
FOUND = 9  # what compute-sanitizer is to exit with if it found something


def steps(part: str | None, python: str, built: bool, proven: bool, sanitizer: str) -> list[list[Step]]:
    """What is run, in order; the steps of one list at the same time."""
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps", "-e", "."]
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    small = [python, "tools/small_run.py"]
    checker = [sanitizer, "--error-exitcode", str(FOUND), "--tool"]
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that what lies beyond a tensor is nobody's
    run = [] if built else [[Step("install", install, 80, gate=True)]]
    if part in ("gate", None) or (part in SUITES and not proven):
        run.append([Step(name, [*pytest, "-x", *choice], 60, gate=True) for name, choice in GATE.items()])
    for suite, names in SUITES.items():
        files = [f"bench/{name}.py" for name in names]
        if part == suite or (part is None and suite in WITHOUT_A_PART):
            run.append([Step(suite, [*pytest, "-s", "--benchmark-disable-gc", *files], 135)])
    if part == "tests":
        run.append([Step(name, [*pytest, "-m", "", *choice], 135) for name, choice in TESTS.items()])
    if part == "checkers":
        kernels = ("triton", "cuda", "medoids")
        run.append(
            [Step(f"small: {name}", [*small, name], 60, gate=True) for name in kernels]
        )  # compiles what they run
        run.append([Step(tool, [*checker, tool, *small], 75, False, FOUND, alone) for tool in CHECKERS])
    if part in (*SUITES, None):
        run.append([Step("tables", [python, "bench/report.py"], TABLES)])
    return run


def start(step: Step, environment: dict) -> subprocess.Popen:
    return subprocess.Popen(step.command, cwd=ROOT, env=environment | step.environment, start_new_session=True)


def end(*processes: subprocess.Popen, grace: float = 3):
    """Ctrl-C, on which pytest says what has failed so far; after `grace` seconds the end of them and of their process
    groups. What has moved to a group of its own, as a daemon does, lives on."""
    for number in (signal.SIGINT, signal.SIGKILL):
        deadline = time.monotonic() + grace
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # all of the group have ended
                os.killpg(process.pid, number)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - time.monotonic()))


def judge(step: Step, code: int) -> tuple[str, str]:
    if code == 0:
        return PASSED, PASSED
    if step.fails_with in (None, code):
        return FAILED, f"{FAILED} with {code}"
    return PASSED, f"could not be done (exit code {code})"


def run_together(steps: list[Step], environment: dict, deadline: float) -> list[tuple[str, str]]:
    """(PASSED, FAILED or UNFINISHED, a line that says so) of each step. None runs on when this returns or raises."""
    began = time.monotonic()
    running, outcomes = {}, {}

    def note(step: Step, outcome: str, words: str):
        outcomes[step.name] = outcome, f"{step.name:14} {time.monotonic() - began:6.1f} s  {words}"

    try:
        for step in steps:
            try:
                running[step.name] = start(step, environment)
            except OSError as error:
                checks = step.fails_with is not None
                note(step, PASSED if checks else FAILED, f"{'could not be done' if checks else FAILED}: {error}")
        while running:
            if stop_asked:
                raise KeyboardInterrupt
            for step in steps:
                process = running.get(step.name)
                if process is None:
                    continue
                left = deadline - began - (0 if step.name == "tables" else TABLES)
                if (code := process.poll()) is not None:
                    note(step, *judge(step, code))
                elif time.monotonic() - began > max(1, min(step.seconds, left)):
                    end(process)
                    note(step, UNFINISHED, f"{UNFINISHED}; what it has written is kept")
                else:
                    continue
                del running[step.name]
            time.sleep(0.02)
    finally:  # Ctrl-C does not reach them: each has a session of its own
        end(*running.values())
    return [outcomes[step.name] for step in steps]


def run_all(run: list[list[Step]], environment: dict, deadline: float, gate_passed=lambda: None) -> bool:
    """Whether all passed. gate_passed: called once the tests that are the gate have."""
    good = True
    summary = []
    for together in run:
        outcomes = run_together(together, environment, deadline)
        summary += [line for _, line in outcomes]
        states = {outcome for outcome, _ in outcomes}
        good = good and states == {PASSED}
        if together[0].gate and FAILED in states:
            summary.append("nothing was timed: a speed counts only behind a gate that passed")
            break
        if together[0].gate and UNFINISHED in states:
            summary.append("nothing was timed: the gate has NOT FAILED, it RAN OUT OF TIME before all of it had run.")
            summary.append("What it has compiled is kept, so that it takes less when it is run again.")
            break
        if together[0].name in GATE:
            gate_passed()
    print("\n" + "\n".join(summary))
    return good


def built(python: str, environment: dict) -> str | None:
    """The two compiled modules of the library as this Python imports them, or None if one is missing."""
    look = "from toast_kernels import backends; print(backends._C.__file__, backends._cuda.__file__)"
    done = subprocess.run([python, "-c", look], cwd=ROOT, env=environment, capture_output=True, text=True)
    return None if done.returncode else done.stdout.strip()


def library(machine: str) -> str:
    """A digest of the library as it lies here, what is built included, and of the machine."""
    digest = hashlib.sha256(machine.encode())
    for path in sorted((ROOT / "toast_kernels").rglob("*")):
        if path.suffix in (".py", ".so"):
            digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()


def stop_on_signals():
    """Ctrl-C and SIGTERM end the steps that run, also where a shell has had Ctrl-C ignored, as in background jobs."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop_asked.append(number))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--part", choices=PARTS, help="this alone")
    parser.add_argument("--results", help="folder for the results (default bench/results)")
    arguments = parser.parse_args()
    stop_on_signals()
    try:
        import torch
    except ImportError as error:
        parser.error(f"{sys.executable} has no PyTorch ({error}); name another with make gpu PYTHON=...")
    if not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} in {sys.executable} sees no GPU; make bench is for a CPU")
    deadline = time.monotonic() + (LIMIT_OF_A_PART if arguments.part else LIMIT)
    python_path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(python_path),
        "PATH": os.pathsep.join([os.environ["PATH"], "/usr/local/cuda/bin"]),  # where nvcc is, if nowhere else
        "TOAST_CUDA_ARCHITECTURES": "{}{}-real".format(*torch.cuda.get_device_capability()),  # a third of the time
    }
    environment.pop("TRITON_INTERPRET", None)
    if arguments.results:
        environment["TOAST_BENCH_RESULTS"] = str(Path(arguments.results).resolve())
    sanitizer = shutil.which("compute-sanitizer", path=environment["PATH"]) or "compute-sanitizer"
    modules = built(sys.executable, environment)
    if modules:
        print(f"built beforehand, so nothing is installed: {modules}", flush=True)
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {sys.version}"
    proven = GATE_PASSED.exists() and GATE_PASSED.read_text() == library(machine)
    if proven and arguments.part in SUITES:
        print("the gate has passed on this library and machine (make gpu PART=gate runs it again)", flush=True)

    def gate_passed():
        GATE_PASSED.parent.mkdir(exist_ok=True)
        GATE_PASSED.write_text(library(machine))

    run = steps(arguments.part, sys.executable, bool(modules), proven, sanitizer)
    if any(step.name in GATE for together in run for step in together):
        GATE_PASSED.unlink(missing_ok=True)
    return 0 if run_all(run, environment, deadline, gate_passed) else 1


if __name__ == "__main__":
    sys.exit(main())
