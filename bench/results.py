"""The rows of results/*.csv: their columns, what they say of the machine, and how they are added and read.

Rows are only ever added. A row holds one peer's times for one case in one run: one process is one run.
"""

import csv
import datetime
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

OURS, COPY, PRODUCTS = "toast_kernels", "copying the bytes", "torch.mm"
FLOORS = (COPY, PRODUCTS)  # timed beside the peers, and not peers
METHOD = 3  # one higher when something is measured in another way: report.py compares nothing across it
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FOLDER = Path(os.environ.get("TOAST_BENCH_RESULTS") or Path(__file__).parent / "results")
RUN = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # two runs never start at once
PEER_PACKAGES = ("kmedoids", "scipy", "pykeops", "liger-kernel", "cut-cross-entropy")
COLUMNS = [
    "run", "commit", "method", "device", "threads", "malloc", "python", "torch", "triton", "peers", "load", "gpu_state",
    "backend", "work", "size", "dtype", "peer", "rounds", "p20_ms", "p50_ms", "p80_ms",
    "bytes", "gb_s", "of_copy", "of_copy_p20", "of_copy_p80",
    "flops", "gflop_s", "percent_of_mm", "peak_mb", "ours_faster", "ours_faster_p20", "ours_faster_p80",
]  # fmt: skip
CONFIGURATION = ("device", "threads", "malloc", "torch")  # runs that differ in one of these are never pooled


def check(suite):
    """Stops unless rows can be added to FOLDER/SUITE.csv: called before anything is timed."""
    path = FOLDER / f"{suite}.csv"
    text = path.read_text() if path.exists() else ""
    header = text.split("\n", 1)[0]
    assert not text or header == ",".join(COLUMNS), f"{path} has other columns: move it away, two kinds do not mix"
    assert not text or text.endswith("\n"), f"{path} ends in the middle of a row: take that row out"
    return path


def append(suite, rows):
    """Adds rows to FOLDER/SUITE.csv; what a row does not say is left empty."""
    path = check(suite)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read(suite):
    """The rows of FOLDER/SUITE.csv that were measured as now."""
    path = check(suite)
    if not path.exists():
        return []
    with path.open(newline="") as lines:
        return [row for row in csv.DictReader(lines) if row["method"] == str(METHOD)]


@functools.cache
def conditions():
    """What is measured where: what all rows of a run have in common."""
    return {
        "run": RUN, "commit": commit(), "method": METHOD, "device": device_name(), "threads": torch.get_num_threads(),
        "malloc": "keeps" if os.environ.get("MALLOC_TRIM_THRESHOLD_") else "default",
        "python": platform.python_version(), "torch": torch.__version__, "triton": version("triton"),
        "peers": ", ".join(f"{name} {version(name)}" for name in PEER_PACKAGES if version(name)),
    }  # fmt: skip


def version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def load():
    """How busy the machine is now: the processor's load, and a GPU's driver, clocks and power."""
    state = ""
    if DEVICE.type == "cuda":
        asked = "--query-gpu=driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
        try:
            command = ["nvidia-smi", asked, "--format=csv,noheader"]
            state = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.splitlines()[0]
        except (OSError, subprocess.TimeoutExpired, IndexError):
            state = "no nvidia-smi"
    return {"load": f"{os.getloadavg()[0]:.1f}", "gpu_state": state}


def device_name():
    """The GPU's name, or the processor's with its cores and the widest vectors that torch uses on it."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name} ({os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()})"


def commit():
    """Short commit of the working tree, with + where a tracked file has changed since, other than results and pages."""
    git = ["git", "-c", "safe.directory=*"]
    asked = (
        ["rev-parse", "--short", "HEAD"],
        ["status", "--porcelain", "-uno", "--", ":/", ":!/bench/results", ":!/*.md"],
    )
    try:
        head, changed = (
            subprocess.run([*git, *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
            for words in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("TOAST_BENCH_COMMIT", "unknown")
    return head.strip() + "+" * bool(changed.strip())
