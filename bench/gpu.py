"""make gpu: on a machine with a GPU the tests, memory checkers, and only behind them the benchmarks and the tables.

    python bench/gpu.py [--part loss|medoids|training] [--results FOLDER]

Uses the Python it is run with and nothing from a network. Each step has a limit, and all of them end within nine
minutes. A benchmark that runs out of its time keeps the rows it has written. Exits with 1 if a test failed (then no
speed was recorded) or a step did; that "more tests" runs out of time is no failure.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
MINUTES = 9


class Step(NamedTuple):
    name: str
    command: list[str]
    seconds: int
    gate: bool = False  # nothing is timed if it fails
    fails_with: int | None = None  # the one exit code that is a failure; others mean that it could not be done
    may_run_out: bool = False  # of time, and that is no failure
    environment: dict = {}  # noqa: RUF012


FILES = ["extremes", "rows", "cross_entropy", "autograd", "layouts", "triton", "cuda"]
FILES = [f"tests/test_blended_kl_{name}.py" for name in FILES] + ["tests/test_medoids_triton.py"]
MANY = "triton and (any_combination or widths or every_pair)"  # each case another kernel to compile
CHECKERS = ("memcheck", "racecheck", "synccheck")
FOUND = 9  # what compute-sanitizer is to exit with if it found something
TABLES = 15  # seconds that no other step may take


def steps(part: str | None, python: str, parallel: bool, sanitizer: str | None) -> list[list[Step]]:
    """What is run, in order; the steps of one list at the same time."""
    install = ["-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "-e", "."]
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tests = [*pytest, "-x", *(["-n", "12"] if parallel else [])]
    small = [python, "bench/small_run.py"]
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that what lies beyond a tensor is nobody's
    bench = [*pytest, "-s", "--benchmark-disable-gc"]
    suites = {
        "loss": Step("loss", [*bench, "bench/bench_blended_kl.py"], 130),
        "medoids": Step("medoids", [*bench, "bench/bench_medoids.py"], 45),
        "training": Step("training", [*bench, "bench/bench_training_step.py"], 35),
    }
    if part:  # it has the others' time too
        suites = {part: suites[part]._replace(seconds=sum(suite.seconds for suite in suites.values()))}
    return [
        [Step("install", [python, *install], 80)],
        [
            Step("tests", [*tests, "-k", f"(triton or cuda) and not ({MANY})", *FILES], 150, gate=True),
            Step("small run", small, 100, gate=True),  # compiles what the checkers run
        ],
        [
            Step(
                tool,
                [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), *small],
                75,
                True,
                FOUND,
                environment=alone,
            )
            for tool in CHECKERS
            if sanitizer
        ],
        *([suite] for suite in suites.values()),
        [Step("more tests", [*tests, "-k", MANY, *FILES], 240, may_run_out=True)],  # in what time is left
        [Step("tables", [python, "bench/report.py"], TABLES)],
    ]


def start(step: Step, environment: dict) -> subprocess.Popen:
    return subprocess.Popen(step.command, cwd=ROOT, env=environment | step.environment, start_new_session=True)


def end(process: subprocess.Popen):
    """Ends it and its process group; what it has moved to a group of its own, as a daemon does, lives on."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def judge(step: Step, code: int) -> tuple[bool, str]:
    if code == 0:
        return True, "passed"
    if step.fails_with in (None, code):
        return False, f"FAILED with {code}"
    return True, f"could not be done (exit code {code})"


def run_together(steps: list[Step], environment: dict, deadline: float) -> list[tuple[bool, str]]:
    """Of each step whether it did not fail, and what became of it. None runs on when this returns or raises."""
    began = time.monotonic()
    running, outcomes = {}, {}

    def note(step: Step, passed: bool, outcome: str):
        outcomes[step.name] = passed, f"{step.name:10} {time.monotonic() - began:6.1f} s  {outcome}"

    try:
        for step in steps:
            try:
                running[step.name] = start(step, environment)
            except OSError as error:
                checks = step.fails_with is not None
                note(step, checks, f"{'could not be done' if checks else 'FAILED'}: {error}")
        while running:
            for step in steps:
                process = running.get(step.name)
                if process is None:
                    continue
                left = deadline - began - (0 if step.name == "tables" else TABLES)
                if (code := process.poll()) is not None:
                    note(step, *judge(step, code))
                elif time.monotonic() - began > max(1, min(step.seconds, left)):
                    end(process)
                    note(step, step.fails_with is not None or step.may_run_out, "ran out of time")
                else:
                    continue
                del running[step.name]
            time.sleep(0.02)
    finally:  # Ctrl-C does not reach them: each has a session of its own
        for process in running.values():
            if process.poll() is None:
                end(process)
    return [outcomes[step.name] for step in steps]


def run_all(run: list[list[Step]], environment: dict, deadline: float) -> bool:
    good = True
    summary = []
    for together in run:
        outcomes = run_together(together, environment, deadline)
        summary += [line for _, line in outcomes]
        failed = [step for step, (passed, _) in zip(together, outcomes, strict=True) if not passed]
        good = good and not failed
        if any(step.gate for step in failed):
            summary.append("nothing was timed: a speed counts only behind tests that pass")
            break
    print("\n" + "\n".join(summary))
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--part", choices=["loss", "medoids", "training"], help="this suite only")
    parser.add_argument("--results", help="folder for the results (default bench/results)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: the steps that run are ended
    try:
        import torch
    except ImportError as error:
        parser.error(f"{sys.executable} has no PyTorch ({error}); name another with make gpu PYTHON=...")
    if not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} in {sys.executable} sees no GPU; make bench is for a CPU")
    python_path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(python_path),
        "PATH": os.pathsep.join([os.environ["PATH"], "/usr/local/cuda/bin"]),  # where nvcc is, if nowhere else
        "TOAST_CUDA_ARCHITECTURES": "{}{}-real".format(*torch.cuda.get_device_capability()),  # a third of the time
    }
    environment.pop("TRITON_INTERPRET", None)
    if arguments.results:
        environment["TOAST_BENCH_RESULTS"] = str(Path(arguments.results).resolve())
    has_xdist = subprocess.run([sys.executable, "-c", "import xdist"], capture_output=True).returncode == 0
    sanitizer = shutil.which("compute-sanitizer", path=environment["PATH"])
    if sanitizer is None:
        print(f"{', '.join(CHECKERS)} are left out: no compute-sanitizer in {environment['PATH']}")
    run = steps(arguments.part or None, sys.executable, has_xdist, sanitizer)
    return 0 if run_all(run, environment, time.monotonic() + 60 * MINUTES) else 1


if __name__ == "__main__":
    sys.exit(main())
