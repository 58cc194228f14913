"""setup.py with and without a compiler: what is built, what is said, and what then runs."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pybind11
import pytest

from toast_kernels import backends

ROOT = Path(__file__).resolve().parents[2]
USE_IT = """
import torch
from toast_kernels import __main__, class_medoids, toast_loss

logits, target = torch.eye(4, 3), torch.tensor([0, 1, 2, 0])
torch.testing.assert_close(toast_loss(logits, target), torch.nn.functional.cross_entropy(logits, target))
assert class_medoids(logits, target, 3).tolist() == [0, 1, 2]
for op in (lambda: toast_loss(logits, target, backend="cpu"), lambda: class_medoids(logits, target, 3, backend="cpu")):
    try:
        op()
    except RuntimeError as error:
        assert "not built" in str(error) and "TOAST_CPU=1" in str(error), error
    else:
        raise AssertionError("backend='cpu' ran without kernels")
__main__.main()
"""
EDITABLE = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"


@pytest.fixture
def source(tmp_path):
    """A copy of what the package is built from."""
    folder = tmp_path / "source"
    for name in ("csrc", "toast_kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "README.md").touch()
    return folder


def python(folder, *arguments, compiler=True, **variables):
    """Runs this Python in a folder, if need be where no compiler is to be found."""
    ours = ("CXX", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "TOAST_CPU", "TOAST_CUDA")
    environment = {k: v for k, v in os.environ.items() if k not in ours} | {"TOAST_CUDA": "0"} | variables
    if not compiler:
        environment["PATH"] = str(folder)
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_without_a_compiler_the_package_installs_and_runs_on_its_reference(source, tmp_path):
    target = tmp_path / "target"
    install = ("-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps", "--no-index", "--no-compile")
    run = python(source, *install, "--target", target, source, compiler=False)
    assert run.returncode == 0, run.stderr
    assert "C++ kernels are not built: no C++ compiler was found" in run.stdout + run.stderr
    assert (target / "toast_kernels" / "py.typed").exists()
    run = python(target, "-c", USE_IT)  # in its folder, which comes before all others
    assert run.returncode == 0, run.stderr
    assert f"in {target}" in run.stdout
    assert "not built" in run.stdout
    assert "TOAST_CPU=1" in run.stdout


@pytest.mark.skipif(not (ROOT / ".github").exists(), reason="not a checkout")
def test_a_wheel_without_kernels_fails_its_test(source):
    workflow = (ROOT / ".github" / "workflows" / "wheels.yml").read_text()
    command = re.search(r"CIBW_TEST_COMMAND: >-\n((?: {12}.+\n)+)", workflow)[1].replace("\n", " ")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = command.rpartition("&&")[2]  # what comes before only prints
    run = subprocess.run(command, shell=True, cwd=source, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    assert "the C++ kernels are not built" in run.stderr


@pytest.mark.parametrize("variables", [{"compiler": False}, {"TOAST_CPU": "0"}], ids=["no compiler", "TOAST_CPU=0"])
def test_an_editable_install_without_kernels_leaves_none_from_before(source, tmp_path, variables):
    stale = source / "toast_kernels" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    stale.touch()
    run = python(source, "-c", EDITABLE, tmp_path, **variables)
    assert run.returncode == 0, run.stderr
    assert not stale.exists()


def test_kernels_that_are_wanted_need_a_compiler(source):
    run = python(source, "setup.py", "build_ext", compiler=False, TOAST_CPU="1")
    assert run.returncode != 0
    assert "TOAST_CPU=1, but no C++ compiler was found" in run.stderr


def test_cuda_kernels_need_nvcc_if_they_are_wanted(source):
    run = python(source, "setup.py", "build_ext", compiler=False, TOAST_CUDA="1")
    assert run.returncode != 0
    assert "TOAST_CUDA=1, but no nvcc" in run.stderr


def test_without_nvcc_and_with_kernels_left_out_on_purpose_the_package_is_complete(source):
    """And it says so: nvcc is looked for on a path that has a C++ compiler only."""
    cxx = shutil.which("c++")
    run = python(source, "setup.py", "build_ext", compiler=False, CXX=cxx, TOAST_CUDA="auto", TOAST_CPU="0")
    assert run.returncode == 0, run.stderr
    assert "CUDA kernels are not built: no nvcc" in run.stderr
    assert "C++ kernels are not built: TOAST_CPU=0" in run.stderr


def test_an_nvcc_that_is_too_old_is_not_used(source):
    old = source / "nvcc"
    old.write_text("#!/bin/sh\necho Cuda compilation tools, release 11.8, V11.8.89\n")
    old.chmod(0o755)
    run = python(source, "setup.py", "build_ext", TOAST_CUDA="1", TOAST_CPU="0", CUDACXX=str(old))
    assert run.returncode != 0
    assert "no nvcc of CUDA 12" in run.stderr


def test_a_variable_that_is_empty_is_as_good_as_unset(source):
    (source / "bin").mkdir()
    for tool in ("c++", "nvcc", "bin/nvcc"):
        (source / tool).write_text("#!/bin/sh\nexit 1\n")
        (source / tool).chmod(0o755)
    empty = dict.fromkeys(("CXX", "CUDACXX", "CUDA_HOME", "CUDA_PATH"), "")
    run = python(source, "setup.py", "build_ext", compiler=False, TOAST_CUDA="1", TOAST_CPU="0", **empty)
    assert f"building the CUDA kernels with {source / 'nvcc'}" in run.stderr


def test_an_nvcc_that_fails_is_an_error(source):
    run = python(source, "setup.py", "build_ext", TOAST_CUDA="1", TOAST_CPU="0", CUDACXX=shutil.which("false"))
    assert run.returncode != 0
    assert "toast_kernels: building the CUDA kernels with" in run.stderr


def test_a_compiler_that_fails_is_an_error(source):
    run = python(source, "setup.py", "build_ext", CXX=shutil.which("false"))
    assert run.returncode != 0
    assert "not able to compile a simple test program" in run.stderr


def test_a_warning_is_no_error_where_the_package_is_installed():
    """Newer compilers warn of more; the project's own builds ask for errors by NVCC_APPEND_FLAGS."""
    files = [ROOT / "CMakeLists.txt", *ROOT.glob("csrc/**/*.cmake")]
    assert len(files) > 1
    assert not any("Werror" in file.read_text() for file in files)


CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.exists() or not backends._C, reason="needs Linux and the C++ kernels")
@pytest.mark.skipif("TOAST_CPU_ISA" in os.environ, reason="TOAST_CPU_ISA is set")
def test_the_best_instruction_set_of_this_processor_is_used():
    flags = set(CPUINFO.read_text().split())
    sets = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"}}
    best = "generic"
    for name, needed in sets.items():
        if not needed <= flags:
            break
        best = name
    assert backends._C.cpu_isa() == best


@pytest.mark.parametrize("variable", ["TOAST_CPU", "TOAST_CUDA"])
def test_the_variables_are_0_or_1(source, variable):
    run = python(source, "setup.py", "build_ext", **{"TOAST_CPU": "0", variable: "banana"})
    assert run.returncode != 0
    assert f"{variable} must be 0, 1 or unset, got 'banana'" in run.stderr


def test_the_source_distribution_holds_what_the_build_needs(source, tmp_path):
    """Without MANIFEST.in, too."""
    patterns = ("csrc/**/*.*", "toast_kernels/**/*.py", "toast_kernels/py.typed")
    needed = [file for pattern in patterns for file in source.glob(pattern) if file.is_file()]
    needed += [source / name for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE")]
    missing = {file.relative_to(source).as_posix() for file in needed} - source_distribution(source, tmp_path)
    assert not missing


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_source_distribution_holds_what_its_tests_and_tools_need(tmp_path):
    """The whole repository, but for what is the repository's own."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    copy, own = tmp_path / "copy", (".ci/", ".github/", ".gitignore", ".pre-commit-config.yaml")
    for file in filter(Path.is_file, map(ROOT.joinpath, tracked.splitlines())):
        (copy / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy / file.relative_to(ROOT))
    packed = source_distribution(copy, tmp_path)
    missing = {name for name in tracked.splitlines() if not name.startswith(own) and (ROOT / name).exists()} - packed
    assert not missing


def source_distribution(folder, destination):
    """The names of the files that it holds."""
    run = python(folder, "setup.py", "sdist", "--dist-dir", destination)
    assert run.returncode == 0, run.stderr
    (archive,) = destination.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


# What of the standard library stands in which of its headers: a compiler's own includes hide what other libraries miss.
HEADER_OF = {
    "algorithm": r"std::(min|max|clamp|fill|fill_n|copy|copy_n|sort|stable_sort|nth_element|any_of|all_of)\b",
    "cfloat": r"\b(DBL|FLT)_[A-Z]+\b",
    "cmath": r"std::(exp|log|log1p|sqrt|fabs|isnan|isinf|isfinite|ldexp|frexp|nearbyint)\b|\b(INFINITY|NAN)\b",
    "cstdint": r"\bu?int(8|16|32|64)_t\b",
    "cstdlib": r"std::(getenv|abort|free|malloc|aligned_alloc|strtol)\b",
    "cstring": r"std::(memcpy|memset|memmove|memcmp|strcmp)\b",
    "limits": r"std::numeric_limits\b",
    "map": r"std::map\b",
    "memory": r"std::(unique_ptr|shared_ptr|make_unique)\b",
    "mutex": r"std::(mutex|lock_guard)\b",
    "new": r"std::(align_val_t|bad_alloc|nothrow)\b",
    "stdexcept": r"std::(runtime_error|invalid_argument|logic_error|out_of_range)\b",
    "string": r"std::(string|to_string)\b",
    "tuple": r"std::(tuple|tie|make_tuple)\b",
    "type_traits": r"std::(is_\w+|enable_if\w*|conditional\w*|remove_\w+|make_\w*signed\w*)\b",
    "utility": r"std::(move|swap|pair|forward|exchange)\b",
    "vector": r"std::vector\b",
}
CPP = [path for files in ("csrc/**/*", "tests/cpp/*", "tools/cuda_on_cpu/test_*") for path in sorted(ROOT.glob(files))]
CPP = [path for path in CPP if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
HEADERS = [path for path in CPP if "csrc" in path.parts and path.suffix in (".h", ".cuh")]


def code_of(file):
    return re.sub("//.*", "", file.read_text())


def included(file, seen):
    """The standard headers that a file includes, itself or by this project's own."""
    headers = set()
    for bracket, name in re.findall(r'#include ([<"])([^>"]+)', code_of(file)):
        if bracket == "<":
            headers.add(name)
            continue
        folders = (ROOT / "csrc", file.parent, ROOT / "tools" / "cuda_on_cpu", ROOT / "tests" / "cpp")
        own = next(folder / name for folder in folders if (folder / name).exists()).resolve()
        if own not in seen:
            seen.add(own)
            headers |= included(own, seen)
    return headers


@pytest.mark.parametrize("file", CPP, ids=lambda file: str(file.relative_to(ROOT)))
def test_standard_headers_are_included_where_they_are_used(file):
    headers, code = included(file, set()), code_of(file)
    missing = [header for header, names in HEADER_OF.items() if header not in headers and re.search(names, code)]
    assert not missing


@pytest.mark.more  # a second each; what is built includes them all
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.parametrize("header", HEADERS, ids=lambda file: str(file.relative_to(ROOT)))
def test_each_header_compiles_alone(header):
    includes = [ROOT / "csrc", ROOT / "tools" / "cuda_on_cpu", pybind11.get_include(), sysconfig.get_path("include")]
    options = ["-std=c++17", "-fsyntax-only", "-DTOAST_ISA=generic", *(f"-I{folder}" for folder in includes)]
    source = f'#include "{header.relative_to(ROOT / "csrc")}"\n'
    run = subprocess.run(["g++", *options, "-xc++", "-"], input=source, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
