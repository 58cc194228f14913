"""make gpu: on a machine with a GPU the tests, a memory checker, and only behind them the benchmarks and the tables.

    python bench/gpu.py [--part loss|medoids|training] [--results FOLDER]

Uses the Python it is run with and nothing from a network. Each step has a limit, and all of them end within nine
minutes. A benchmark that runs out of its time keeps the rows it has written. Exits with 1 if a test failed (then no
speed was recorded) or a step did.
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
    environment: dict = {}  # noqa: RUF012


FILES = ["extremes", "rows", "cross_entropy", "autograd", "layouts", "triton"]
FILES = [f"tests/test_blended_kl_{name}.py" for name in FILES] + ["tests/test_medoids_triton.py"]
MANY = "any_combination or widths or every_pair"  # each case another kernel to compile
FOUND = 9  # what compute-sanitizer is to exit with if it found something
TABLES = 15  # seconds that no other step may take


def steps(part: str | None, python: str, parallel: bool, sanitizer: str | None) -> list[Step]:
    """What is run, in order."""
    install = ["-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "-e", "."]
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tests = [*pytest, "-x", *(["-n", "12"] if parallel else [])]
    run = [
        Step("install", [python, *install], 40),
        Step("tests", [*tests, "-k", f"triton and not ({MANY})", *FILES], 160, gate=True),
        Step("small run", [python, "bench/small_run.py"], 40, gate=True),  # compiles what the checkers run
    ]
    for tool in ("memcheck", "racecheck") if sanitizer else ():
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), python, "bench/small_run.py"]
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that what lies beyond a tensor is nobody's
        run.append(Step(tool, command, 30, gate=True, fails_with=FOUND, environment=alone))
    bench = [*pytest, "-s", "--benchmark-disable-gc"]
    suites = {
        "loss": Step("loss", [*bench, "bench/bench_blended_kl.py"], 140),
        "medoids": Step("medoids", [*bench, "bench/bench_medoids.py"], 45),
        "training": Step("training", [*bench, "bench/bench_training_step.py"], 35),
    }
    run += [suites[part]] if part else suites.values()
    more_tests = Step("more tests", [*tests, "-k", f"triton and ({MANY})", *FILES], 240)  # in what time is left
    return [*run, more_tests, Step("tables", [python, "bench/report.py"], TABLES)]


def run_step(step: Step, environment: dict, seconds: float) -> tuple[bool, str]:
    """Whether it did not fail, and what became of it. Whatever it started is ended with it."""
    process = subprocess.Popen(step.command, cwd=ROOT, env=environment | step.environment, start_new_session=True)
    try:
        code = process.wait(timeout=max(1, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return step.fails_with is not None, "ran out of time"
    if code == 0:
        return True, "passed"
    if step.fails_with not in (None, code):
        return True, f"could not be done (exit code {code})"
    return False, f"FAILED with {code}"


def run_all(run: list[Step], environment: dict, deadline: float) -> bool:
    good = True
    summary = []
    for step in run:
        start = time.monotonic()
        left = deadline - start - (0 if step.name == "tables" else TABLES)
        passed, outcome = run_step(step, environment, min(step.seconds, left))
        summary.append(f"{step.name:10} {time.monotonic() - start:6.1f} s  {outcome}")
        good = good and passed
        if step.gate and not passed:
            summary.append("nothing was timed: a speed counts only behind tests that pass")
            break
    print("\n" + "\n".join(summary))
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--part", choices=["loss", "medoids", "training"], help="this suite only")
    parser.add_argument("--results", help="folder for the results (default bench/results)")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError as error:
        parser.error(f"{sys.executable} has no PyTorch ({error}); name another with make gpu PYTHON=...")
    if not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} in {sys.executable} sees no GPU; make bench is for a CPU")
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    environment.pop("TRITON_INTERPRET", None)
    if arguments.results:
        environment["TOAST_BENCH_RESULTS"] = str(Path(arguments.results).resolve())
    has_xdist = subprocess.run([sys.executable, "-c", "import xdist"], capture_output=True).returncode == 0
    run = steps(arguments.part or None, sys.executable, has_xdist, shutil.which("compute-sanitizer"))
    return 0 if run_all(run, environment, time.monotonic() + 60 * MINUTES) else 1


if __name__ == "__main__":
    sys.exit(main())
