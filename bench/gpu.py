"""make gpu: on a machine with a GPU the tests, a memory checker, and only behind them the benchmarks and the tables.

    python bench/gpu.py [--part loss|medoids|training] [--results FOLDER]

Uses the Python it is run with and nothing from a network. Each step has a limit, and all of them end within nine
minutes. A benchmark that runs out of its time keeps the rows it has written. Exits with 1 if a test failed (then no
speed was recorded) or a step did.
"""

import argparse
import os
import shutil
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


def tests(parallel: bool) -> list[str]:
    files = ["extremes", "rows", "cross_entropy", "autograd", "layouts", "triton"]
    files = [f"tests/test_blended_kl_{name}.py" for name in files] + ["tests/test_medoids_triton.py"]
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton", *(["-n", "12"] if parallel else []), *files]


def steps(part: str | None, python: str, parallel: bool, sanitizer: str | None) -> list[Step]:
    """What is run, in order."""
    install = ["-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "-e", "."]
    run = [Step("install", [python, *install], 60, gate=True)]
    run.append(Step("tests", [python, *tests(parallel)], 200, gate=True))
    if sanitizer:
        for tool in ("memcheck", "racecheck"):
            checked = [sanitizer, "--tool", tool, "--error-exitcode", "1", python, "bench/small_run.py"]
            run.append(Step(tool, checked, 40, gate=True))
    bench = [python, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--benchmark-disable-gc"]
    suites = {
        "loss": Step("loss", [*bench, "bench/bench_blended_kl.py"], 120),
        "medoids": Step("medoids", [*bench, "bench/bench_medoids.py"], 70),
        "training": Step("training", [*bench, "bench/bench_training_step.py"], 40),
    }
    run += [suites[part]] if part else suites.values()
    return [*run, Step("tables", [python, "bench/report.py"], 20)]


def run_all(run: list[Step], environment: dict, deadline: float) -> bool:
    good = True
    summary = []
    for step in run:
        left = deadline - time.monotonic()
        start = time.monotonic()
        try:
            code = subprocess.run(
                step.command, cwd=ROOT, env=environment, timeout=max(1, min(step.seconds, left))
            ).returncode
            outcome = "passed" if code == 0 else f"FAILED with {code}"
        except subprocess.TimeoutExpired:
            code, outcome = None, "ran out of time"
        summary.append(f"{step.name:10} {time.monotonic() - start:6.1f} s  {outcome}")
        good = good and code == 0
        if step.gate and code != 0:
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
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    if arguments.results:
        environment["TOAST_BENCH_RESULTS"] = str(Path(arguments.results).resolve())
    has_xdist = subprocess.run([sys.executable, "-c", "import xdist"], capture_output=True).returncode == 0
    run = steps(arguments.part or None, sys.executable, has_xdist, shutil.which("compute-sanitizer"))
    return 0 if run_all(run, environment, time.monotonic() + 60 * MINUTES) else 1


if __name__ == "__main__":
    sys.exit(main())
