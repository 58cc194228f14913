"""Breaks the code on purpose, one planted fault at a time, and demands that a named test fails.

    python tools/seeded_faults.py [--list] [--only NAME ...]

Works on a copy of the tree, on which the same tests must pass first. The faults stand in tools/faults/*.py:

    FAULTS = {"csrc/cpu/simd.h": [(what is broken, old text, new text, test), ...], ...}

where old must occur exactly once in its file and test is a pytest node, "ctest NAME.ISA" or "ctest NAME". Exits with
1 if a fault is missed or its text no longer fits.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns("__pycache__", ".*")


class Fault(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    test: str

    @property
    def native(self) -> bool:
        return self.file.startswith("csrc/")


def read_faults() -> list[Fault]:
    faults = []
    for path in sorted(ROOT.glob("tools/faults/*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for file, entries in module.FAULTS.items():
            faults += [Fault(name, file, old, new, test) for name, old, new, test in entries]
    return faults


class Tree:
    """A copy of the sources and of the installed kernels, with what is built anew as tests need it."""

    def __init__(self, folder: Path):
        self.root = folder
        for name in ("csrc", "python", "tests", "tools", "toast_kernels"):
            shutil.copytree(ROOT / name, folder / name, ignore=NOT_COPIED)
        for name in ("CMakeLists.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, *command) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=self.root, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=600,
        )  # fmt: skip

    def build(self, target: str, simd: bool, *options: str) -> Path:
        """Builds target with little optimisation; only what changed since the last time is compiled."""
        folder = self.root / "build" / f"{'module' if target == '_C' else 'tests'}-{'simd' if simd else 'generic'}"
        configure = ("cmake", "-S", ".", "-B", folder, "-G", "Ninja", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")
        commands = [("cmake", "--build", folder, "--target", target)]
        if not folder.exists():
            commands.insert(0, (*configure, f"-DTOAST_SIMD={'ON' if simd else 'OFF'}", *options))
        for command in commands:
            done = self.run(*command)
            if done.returncode:
                raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}")
        return folder

    def build_module(self):
        import pybind11

        self.build(
            "_C", False, "-DTOAST_CUDA=0",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DTOAST_OUTPUT_DIRECTORY={self.root / 'toast_kernels'}",
        )  # fmt: skip

    def test(self, test: str, native: bool) -> tuple[str, str]:
        """ "passed", "failed" or, where this processor lacks the instruction set, "skipped"; and what was printed."""
        if test.startswith("ctest "):
            name, _, isa = test.removeprefix("ctest ").partition(".")
            folder = self.build(f"test_{name}", isa not in ("", "generic"), "-DTOAST_TESTS=ON")
            done = self.run("ctest", "--test-dir", folder, "-R", f"^{name}{isa and '.' + isa}$", "--output-on-failure")
            if "***Skipped" in done.stdout:
                return "skipped", done.stdout
            ran = "out of 1" in done.stdout
        else:
            if native:
                self.build_module()
            pytest = (
                sys.executable, "-m", "pytest", "-x", "-q", "-m", "", "-p", "no:cacheprovider", "--hypothesis-seed=0",
            )  # fmt: skip
            done = self.run(*pytest, *test.split())
            ran = done.returncode <= 1  # 0 passed, 1 failed, less: killed by a signal
        if not ran:
            raise SystemExit(f"{test} was not run\n{done.stdout}")
        return "failed" if done.returncode else "passed", done.stdout

    def must_pass(self, tests: set[str], native: bool):
        alone = sorted(test for test in tests if test.startswith("ctest "))
        together = " ".join(sorted(tests.difference(alone)))
        for test in [*alone, together] if together else alone:
            outcome, printed = self.test(test, native)
            if outcome == "failed":
                raise SystemExit(f"without any fault this fails: {test}\n{printed}")


def check(faults: list[Fault], tree: Tree) -> Counter:
    """Prints a line a fault; returns how many were caught, missed and skipped."""
    count = Counter()
    for native in (False, True):  # first with the kernels as they are installed, then with what is built here
        chosen = sorted((fault for fault in faults if fault.native == native), key=lambda fault: fault.test)
        tree.must_pass({fault.test for fault in chosen}, native)
        for fault in chosen:
            start = time.perf_counter()
            file = tree.root / fault.file
            source = file.read_text()
            file.write_text(source.replace(fault.old, fault.new))
            outcome = {"failed": "caught", "passed": "MISSED", "skipped": "skipped"}[tree.test(fault.test, native)[0]]
            file.write_text(source)
            count[outcome] += 1
            print(f"{outcome:7}  {fault.name}  ->  {fault.test}  ({time.perf_counter() - start:.0f} s)", flush=True)
    return count


def misfit(fault: Fault) -> Iterator[str]:
    """What no longer fits the code."""
    if (ROOT / fault.file).read_text().count(fault.old) != 1 or fault.old == fault.new:
        yield f"the old text of {fault.name!r} does not occur exactly once in {fault.file}"
    file, _, test = fault.test.partition("::")
    if test and not ((ROOT / file).exists() and f"def {test.partition('[')[0]}(" in (ROOT / file).read_text()):
        yield f"the test of {fault.name!r} is not there: {fault.test}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the faults and their tests, and run nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="faults whose name contains one of these")
    arguments = parser.parse_args()
    faults = read_faults()
    misfits = [message for fault in faults for message in misfit(fault)]
    print(*misfits, sep="\n", end="\n" * bool(misfits), file=sys.stderr)
    if arguments.only:
        faults = [fault for fault in faults if any(part in fault.name for part in arguments.only)]
    if not faults:
        parser.error("no such fault")
    if arguments.list:
        for fault in faults:
            print(f"{fault.file}: {fault.name}  ->  {fault.test}")
        return bool(misfits)
    if misfits:
        return 1
    with tempfile.TemporaryDirectory(prefix="toast-faults-") as folder:
        count = check(faults, Tree(Path(folder)))
    print(", ".join(f"{number} {outcome}" for outcome, number in count.items()), f"of {len(faults)} faults")
    return bool(count["MISSED"])


if __name__ == "__main__":
    sys.exit(main())
