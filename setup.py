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
NO_COMPILER = "no C++ compiler was found (looked for $CXX, c++, g++, clang++)"


def find_compiler():
    """The C++ compiler CMake would pick, or None."""
    if "CXX" in os.environ:
        return shutil.which(os.environ["CXX"].split()[0])
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


class CMakeBuild(build_ext):
    def build_extension(self, extension):
        wanted = os.environ.get("TOAST_CPU", "auto")
        if wanted not in ("auto", "0", "1"):
            raise SystemExit(f"TOAST_CPU must be 0, 1 or unset, got {wanted!r}")
        compiler = find_compiler()
        if wanted == "1" and compiler is None:
            raise SystemExit(f"TOAST_CPU=1, but {NO_COMPILER}")
        if wanted == "0" or compiler is None:
            self.skip(extension, "TOAST_CPU=0" if wanted == "0" else NO_COMPILER)
        else:
            print(f"toast_kernels: building the C++ kernels with {compiler}", file=sys.stderr)
            self.build_with_cmake(extension, compiler)

    def skip(self, extension, why):
        print(f"toast_kernels: C++ kernels are not built: {why}. The PyTorch reference is used.", file=sys.stderr)
        extension.optional = True  # an editable install is not to look for the file
        root = ROOT if self.editable_mode else Path(self.build_lib)
        (root / self.get_ext_filename(extension.name)).unlink(missing_ok=True)  # of an earlier build

    def build_with_cmake(self, extension, compiler):
        import pybind11

        # cmake and ninja installed as Python packages lie beside the interpreter, which need not be on PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        cmake, ninja = (shutil.which(tool, path=path) for tool in ("cmake", "ninja"))
        if cmake is None or ninja is None:
            raise SystemExit("building toast_kernels needs cmake and ninja (pip install cmake ninja)")
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
            "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]  # fmt: skip
        # A build folder configured by other tools, such as those of a pip environment that is gone, starts anew.
        flags = [os.environ.get(name, "") for name in ("CXX", "CXXFLAGS", "LDFLAGS")]
        settings = "\n".join([*configure, compiler, *flags])
        record = build / "configured-with"
        fresh = [] if record.exists() and record.read_text() == settings else ["--fresh"]
        output = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        environment = {**os.environ, "PATH": path}
        subprocess.run([*configure, *fresh, f"-DTOAST_OUTPUT_DIRECTORY={output}"], check=True, env=environment)
        record.write_text(settings)
        subprocess.run([cmake, "--build", build, "--target", "_C"], check=True, env=environment)


# What the source distribution must hold for the build.
sources = ["CMakeLists.txt", *(str(file.relative_to(ROOT)) for file in ROOT.glob("csrc/**/*") if file.is_file())]

# optional=False: a compiler that is there and fails is an error, never a silent fall-back.
setup(
    ext_modules=[Extension("toast_kernels._C", sources=[], depends=sorted(sources))],
    cmdclass={"build_ext": CMakeBuild},
)
