"""Compiles csrc and its tests for other systems, with their C++ libraries, and runs what this machine can run.

    python tools/cross_build.py [TARGET ...]

Needs ziglang (requirements-cross.txt), whose clang brings the libraries along: libc++ everywhere, with glibc, musl or
macOS's libSystem. Without it nothing is done, and that is said. The programs are tests/cpp/test_NAME.cpp of KERNELS,
without OpenMP; those of x86_64-linux-musl run on any x86-64 Linux: there the tests pass with libc++ too, on the same
random draws. Not among them: test_medoid_costs.cpp, which is compiled for each instruction set, and CUDA's.
"""

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ("blended_kl", "kept_rows", "medoids", "softmax_statistics")
# Without OpenMP its pragmas are unknown, and numbers of threads unused.
WARNINGS = ("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-variable", "-Wno-unused-parameter")
FLAGS = ("-std=c++17", "-O0", "-fPIC", "-ffp-contract=off", *WARNINGS, f"-I{ROOT / 'csrc'}")
# The instruction sets that CMakeLists.txt builds for x86-64.
AVX2 = ("-mavx2", "-mfma", "-mf16c")
ISAS = {
    "generic": (),
    "avx2": AVX2,
    "avx512": (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"),
}
TARGETS = {
    "aarch64-linux-gnu": ("generic",),
    "aarch64-linux-musl": ("generic",),
    "x86_64-linux-musl": tuple(ISAS),
    "x86_64-macos": tuple(ISAS),
    "aarch64-macos": ("generic",),
}


def build(target: str, folder: Path) -> list[Path]:
    """The test programs."""
    isas = TARGETS[target]

    def compile(*arguments):
        subprocess.run([sys.executable, "-m", "ziglang", "c++", "-target", target, *FLAGS, *arguments], check=True)

    objects = []
    for name in KERNELS:
        for isa in isas:
            objects.append(folder / f"{name}.{isa}.o")
            (source,) = (ROOT / "csrc" / "cpu").rglob(f"{name}.cpp")
            compile(*ISAS[isa], f"-DTOAST_ISA={isa}", "-c", source, "-o", objects[-1])
    objects.append(folder / "dispatch.o")
    compile(*["-DTOAST_HAS_SIMD"] * (len(isas) > 1), "-c", ROOT / "csrc" / "cpu" / "dispatch.cpp", "-o", objects[-1])
    programs = []
    for name in KERNELS:
        programs.append(folder / f"test_{name}")
        compile(ROOT / "tests" / "cpp" / f"test_{name}.cpp", *objects, "-o", programs[-1])
    return programs


def main() -> int:
    if importlib.util.find_spec("ziglang") is None:
        print("skipped: ziglang is not installed (pip install -r requirements-cross.txt)")
        return 0
    for target in sys.argv[1:] or TARGETS:
        with tempfile.TemporaryDirectory(prefix="toast-cross-") as folder:
            programs = build(target, Path(folder))
            print(f"{target}: built", flush=True)
            if target == "x86_64-linux-musl" and (platform.system(), platform.machine()) == ("Linux", "x86_64"):
                for program in programs:
                    run = subprocess.run([program], env=os.environ | {"TOAST_CPU_ISA": "generic"})
                    if run.returncode:
                        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
