"""Builds toast_kernels._C and _cuda with CMake; everything else about the package stands in pyproject.toml.

Without a C++ compiler the package still installs and runs on its PyTorch reference. TOAST_CPU=1 turns that
into an error, TOAST_CPU=0 skips the C++ kernels on purpose. TOAST_CUDA does the same for the CUDA kernels, which
are built where nvcc is found; they need no GPU to be built.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_compiler():
    """The C++ compiler CMake would pick, or None."""
    if command := os.environ.get("CXX", "").split():
        return shutil.which(command[0])
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def find_nvcc():
    """nvcc of CUDA 12 or later, if there is one and the C++ compiler that it works with."""
    if find_compiler() is None:
        return None
    homes = [os.path.join(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    path = os.pathsep.join([*homes, os.environ.get("PATH", "")])
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc", path=path)
    version = nvcc and subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)", version or "")
    return None if release and int(release[1]) < 12 else nvcc


class Kernels(NamedTuple):
    name: str
    variable: str  # 0, 1 or unset: where the compiler is found
    find: object  # the compiler
    nothing_found: str
    instead: str


KERNELS = {
    "_C": Kernels(
        "C++ kernels", "TOAST_CPU", find_compiler,
        "no C++ compiler was found (looked for $CXX, c++, g++, clang++)", "The PyTorch reference is used.",
    ),
    "_cuda": Kernels(
        "CUDA kernels", "TOAST_CUDA", find_nvcc,
        "no nvcc of CUDA 12 with a C++ compiler was found (looked for $CUDACXX, nvcc in $CUDA_HOME, $CUDA_PATH, $PATH)",
        "Triton is used on a GPU.",
    ),
}  # fmt: skip


class CMakeBuild(build_ext):
    def build_extension(self, extension):
        kernels = KERNELS[extension.name.rpartition(".")[2]]
        wanted = os.environ.get(kernels.variable, "auto")
        if wanted not in ("auto", "0", "1"):
            raise SystemExit(f"{kernels.variable} must be 0, 1 or unset, got {wanted!r}")
        compiler = kernels.find()
        if wanted == "1" and compiler is None:
            raise SystemExit(f"{kernels.variable}=1, but {kernels.nothing_found}")
        if wanted == "0" or compiler is None:
            self.skip(extension, kernels, f"{kernels.variable}=0" if wanted == "0" else kernels.nothing_found)
        else:
            print(f"toast_kernels: building the {kernels.name} with {compiler}", file=sys.stderr)
            self.build_with_cmake(extension)

    def skip(self, extension, kernels, why):
        print(f"toast_kernels: {kernels.name} are not built: {why}. {kernels.instead}", file=sys.stderr)
        extension.optional = True  # an editable install is not to look for the file
        root = ROOT if self.editable_mode else Path(self.build_lib)
        (root / self.get_ext_filename(extension.name)).unlink(missing_ok=True)  # of an earlier build

    def build_with_cmake(self, extension):
        import pybind11

        # cmake and ninja installed as Python packages lie beside the interpreter, which need not be on PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        cmake, ninja = (shutil.which(tool, path=path) for tool in ("cmake", "ninja"))
        if cmake is None or ninja is None:
            raise SystemExit("building toast_kernels needs cmake and ninja (pip install cmake ninja)")
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
            "-DCMAKE_BUILD_TYPE=Release", *self.cuda_options(), f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]  # fmt: skip
        # A build folder of other compilers or flags starts anew. That of a pip environment that is gone does not: where
        # its tools lay is told anew, and the kernels' objects stay.
        flags = [os.environ.get(name, "") for name in ("CXX", "CXXFLAGS", "LDFLAGS", "CUDAHOSTCXX", "CUDAFLAGS")]
        settings = "\n".join([sys.executable, find_compiler(), *flags, *self.cuda_options()])
        record = build / "configured-with"
        fresh = [] if record.exists() and record.read_text() == settings else ["--fresh"]
        output = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        environment = {**os.environ, "PATH": path}
        subprocess.run([*configure, *fresh, f"-DTOAST_OUTPUT_DIRECTORY={output}"], check=True, env=environment)
        record.write_text(settings)
        target = extension.name.rpartition(".")[2]
        subprocess.run([cmake, "--build", build, "--target", target], check=True, env=environment)

    @staticmethod
    def cuda_options():
        nvcc = find_nvcc()
        if nvcc is None or os.environ.get("TOAST_CUDA") == "0":
            return ["-DTOAST_CUDA=0"]
        options = ["-DTOAST_CUDA=1", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
        if "TOAST_CUDA_ARCHITECTURES" in os.environ:
            options.append(f"-DTOAST_CUDA_ARCHITECTURES={os.environ['TOAST_CUDA_ARCHITECTURES']}")
        return options


# What the source distribution must hold for the build.
sources = ["CMakeLists.txt", *(str(file.relative_to(ROOT)) for file in ROOT.glob("csrc/**/*") if file.is_file())]

# optional=False: a compiler that is there and fails is an error, never a silent fall-back.
setup(
    ext_modules=[Extension(f"toast_kernels.{name}", sources=[], depends=sorted(sources)) for name in KERNELS],
    cmdclass={"build_ext": CMakeBuild},
)
