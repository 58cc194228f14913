"""The CUDA kernels for tests: on the GPU there is, else the same sources on tools/cuda_on_cpu, built into build/; and
what nvcc made of them."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

from toast_kernels import backends

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "cuda_on_cpu"
# A block's registers on the CPU, of which a thread has 128: rows of a few hundred classes already need a cluster.
REGISTERS_ON_CPU = 32 * 128

TRITONS = Path(getattr(importlib.util.find_spec("triton"), "origin", "")).parent / "backends/nvidia/bin/cuobjdump"
CUOBJDUMP = shutil.which("cuobjdump") or shutil.which(TRITONS)
# How the types of the kernel's template are written in its mangled name, and its kinds of rows, as in csrc/cuda.
DTYPES = {"f": "float32", "13__nv_bfloat16": "bfloat16", "6__half": "float16"}
KINDS = ("labels", "lists", "past", "dense", "any")


def use():
    """Makes backend="cuda" work, or returns why it cannot."""
    if torch.cuda.is_available():
        return backends.missing("cuda", torch.device("cuda"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    missing = [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool, path=path) is None]
    if missing:
        return f"the CUDA kernels cannot be built to run on the CPU without {', '.join(missing)}"
    backends._cuda = load(build({**os.environ, "PATH": path}))
    backends._cuda.set_registers(REGISTERS_ON_CPU)
    return None


def build(environment):
    import pybind11

    configure = [
        "cmake", "-S", ROOT, "-B", FOLDER, "-G", "Ninja", "-DTOAST_CUDA=0", "-DTOAST_CUDA_ON_CPU=ON",
        "-DTOAST_SIMD=OFF", "-DCMAKE_CXX_FLAGS_RELEASE=-O1",  # -O3 takes longer to compile than all tests take to run
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DTOAST_OUTPUT_DIRECTORY={FOLDER}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", FOLDER, "--target", "_cuda_on_cpu"]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    (module,) = FOLDER.glob("_cuda_on_cpu.*.so")
    return module


def load(path):
    spec = importlib.util.spec_from_file_location("_cuda_on_cpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled():
    """The module that nvcc built, or None."""
    return next(Path(backends.__file__).parent.glob("_cuda.*.so"), None)


def resources():
    """(architecture, kernel, {resource: amount}) of every kernel in the module; REG: registers, LOCAL: bytes."""
    command = [CUOBJDUMP, "--dump-resource-usage", compiled()]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    architecture, found = None, []
    for line in listing.splitlines():
        architecture = (re.search(r"arch = (\w+)", line) or [None, architecture])[1]
        if name := re.search(r"Function (\S+):", line):
            found.append((architecture, name[1], {}))
        elif "REG:" in line:
            found[-1][2].update({key: int(amount) for key, amount in re.findall(r"(\w+):(\d+)", line)})
    return found


def memory_accesses():
    """(architecture, kernel, {instruction: how many}) of every kernel in the module: global and local ones."""
    listing = subprocess.run([CUOBJDUMP, "-sass", compiled()], capture_output=True, text=True, check=True).stdout
    for of_one in re.split(r"^Fatbin elf code:$", listing, flags=re.M)[1:]:
        architecture = re.search(r"arch = (\w+)", of_one)[1]
        for code in of_one.split("Function : ")[1:]:
            yield architecture, code.split(maxsplit=1)[0], Counter(re.findall(r" ((?:LD|ST)[GL]\b[\w.]*)", code))


def of_rows(kernel):
    """(dtype, kind) of the kernel that works on rows; of others None."""
    made_of = re.search(rf"17blended_kl_kernelI({'|'.join(DTYPES)})LNS_7RowKindE(\d)E", kernel)
    return made_of and (DTYPES[made_of[1]], KINDS[int(made_of[2])])
