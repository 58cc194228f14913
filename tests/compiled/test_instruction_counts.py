"""What the C++ kernels cost, in instructions and not in time: a guard that a noisy machine cannot trip.

valgrind counts the instructions of one call, on one thread, with AVX2 (valgrind knows no AVX-512).
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"  # by setup.py
COMPILER = (
    subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True).stdout.strip()
    if shutil.which("g++")
    else ""
)
MARGIN = 1.05 if COMPILER == "12" else 1.2  # the counts are of GCC 12; for other compilers

# Instructions for an element of the logits (forward and backward; an instruction works on eight) or of x. Who makes a
# kernel cheaper lowers its number here.
COUNTS = {
    ("plain", 1000): 5.88,
    ("blended", 1000): 8.99,
    ("blended-bfloat16", 1000): 10.5,
    ("probabilities with stats", 1000): 11.7,
    ("top-k", 20_000): 5.55,
    ("euclidean", 100): 73.1,
    ("euclidean", 200): 108,
    ("sqeuclidean", 100): 14.2,
    ("cosine", 100): 16.0,
    ("cityblock", 100): 63.2,
    ("jeffreys", 100): 36.4,
    ("softmax statistics", 3250): 5.59,
}

CPUINFO = Path("/proc/cpuinfo")
pytestmark = pytest.mark.skipif(not CPUINFO.exists() or " avx2 " not in CPUINFO.read_text(), reason="needs AVX2")


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    if not shutil.which("valgrind") or not COMPILER or not BUILT.exists():
        # Where CI is set the guard must not vanish unseen.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"needs valgrind and g++ (apt-get install valgrind g++), and the kernels built in {BUILT} (make setup)"
        )
    program = tmp_path_factory.mktemp("count") / "count_instructions"
    source, kernels = ROOT / "tests/cpp/count_instructions.cpp", BUILT / "libtoast_cpu.a"
    command = ["g++", "-std=c++17", "-O3", "-fopenmp", f"-I{ROOT / 'csrc'}", source, kernels, "-o", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return program


def instructions(program, name, rows, width):
    options = ["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=counted"]
    command = ["valgrind", *options, program, name, str(rows), str(width)]
    environment = os.environ | {"TOAST_CPU_ISA": "avx2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(re.search(r"Collected : (\d+)", done.stderr)[1])


@pytest.mark.parametrize(("name", "width"), COUNTS, ids=lambda value: str(value))
def test_instructions_an_element(program, name, width):
    # euclidean: a class that has all pairs at once, and one that has products.
    rows = {("euclidean", 100): 100, ("euclidean", 200): 500}.get((name, width), 1000 if width == 100 else 64)
    each = instructions(program, name, rows, width) / (rows * width)
    print(f"{name}: {each:.3f} instructions an element")
    assert COUNTS[name, width] / MARGIN <= each <= MARGIN * COUNTS[name, width]
