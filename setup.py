"""Builds toast_kernels._C with CMake; everything else about the package stands in pyproject.toml.

Without a C++ compiler the package still installs and runs on its PyTorch reference. TOAST_CPU=1 turns that
into an error, TOAST_CPU=0 skips the C++ kernels on purpose.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_compiler():
    """The C++ compiler CMake would pick, or None."""
    if "CXX" in os.environ:
        return shutil.which(os.environ["CXX"].split()[0])
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++", "cl"))), None)


class CMakeBuild(build_ext):
    def build_extension(self, extension):
        wanted = os.environ.get("TOAST_CPU", "auto")
        if wanted not in ("auto", "0", "1"):
            raise SystemExit(f"TOAST_CPU must be 0, 1 or unset, got {wanted!r}")
        compiler = find_compiler()
        if wanted == "0" or (compiler is None and wanted == "auto"):
            why = "TOAST_CPU=0" if wanted == "0" else "no C++ compiler was found (looked for $CXX, c++, g++, clang++, cl)"
            print(f"toast_kernels: C++ kernels are not built: {why}. The PyTorch reference is used.", file=sys.stderr)
            return
        if compiler is None:
            raise SystemExit("TOAST_CPU=1, but no C++ compiler was found (looked for $CXX, c++, g++, clang++, cl)")
        print(f"toast_kernels: building the C++ kernels with {compiler}", file=sys.stderr)

        import pybind11

        # cmake and ninja installed as Python packages lie beside the interpreter, which need not be on PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path}
        cmake = shutil.which("cmake", path=path)
        if cmake is None:
            raise SystemExit("building toast_kernels needs cmake (pip install cmake ninja)")
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        output = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        subprocess.run(
            [
                cmake, "-S", ROOT, "-B", build, "-G", "Ninja", "--fresh", "-DCMAKE_BUILD_TYPE=Release",
                f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DTOAST_OUTPUT_DIRECTORY={output}",
            ],
            check=True, env=environment,
        )  # fmt: skip
        subprocess.run([cmake, "--build", build, "--target", "_C"], check=True, env=environment)


# optional=False: a compiler that is there and fails is an error, never a silent fall-back.
setup(ext_modules=[Extension("toast_kernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
