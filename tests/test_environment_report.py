"""python -m toast_kernels says what is installed, which backend runs, and why."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from toast_kernels import __version__, backends

WITHOUT_EXTENSION = (
    "import runpy, sys; sys.modules['toast_kernels._C'] = None; sys.argv[1:] = [];"
    "runpy.run_module('toast_kernels', run_name='__main__')"
)


def report(*command, **environment):
    """The report's two tables: {first column: the rest} and {(op, device): (backend, why)}."""
    run = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=os.environ | environment, timeout=120
    )
    assert run.returncode == 0, run.stderr
    installed, choices = run.stdout.split("\n\n")
    rows = [line.split(maxsplit=3) for line in choices.splitlines()[1:]]
    named = {name.strip(): rest.strip() for name, rest in (line.split("  ", 1) for line in installed.splitlines())}
    return named, {(op, device): (backend, why) for op, device, backend, why in rows}


def test_versions_and_choices():
    installed, choices = report("-m", "toast_kernels")
    assert installed["toast_kernels"].startswith(__version__)
    assert installed["torch"] == torch.__version__
    assert platform.python_version() in installed["Python"]
    assert installed["threads"].split()[0].isdigit()
    assert ("no device" in installed["CUDA"]) == (not torch.cuda.is_available())
    assert set(choices) == {(op, device) for op in ("blended_kl", "class_medoids") for device in ("cpu", "cuda")}
    for (_, device), (backend, why) in choices.items():
        assert backend == backends.choose("auto", torch.device(device))
        assert why


@pytest.mark.skipif(backends._C is None, reason="the C++ kernels are not built")
def test_instruction_set():
    installed, choices = report("-m", "toast_kernels", TOAST_CPU_ISA="generic")
    assert "built, instruction set generic" in installed["C++ kernels"]
    assert choices["blended_kl", "cpu"] == choices["class_medoids", "cpu"] == ("cpu", "C++ kernels")
    installed, _ = report("-m", "toast_kernels", TOAST_CPU_ISA="z80")
    assert "unusable: TOAST_CPU_ISA" in installed["C++ kernels"]


def test_missing_kernels_are_reported_with_the_reason():
    installed, choices = report("-c", WITHOUT_EXTENSION)
    assert "not built" in installed["C++ kernels"]
    assert "toast_kernels._C halted" in installed["C++ kernels"]  # the import error itself
    assert "install a C++ compiler" in installed["C++ kernels"]
    for op in ("blended_kl", "class_medoids"):
        backend, why = choices[op, "cpu"]
        assert backend == "reference"
        assert "the C++ kernels are not built" in why
