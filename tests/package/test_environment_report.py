"""python -m toast_kernels says what is installed, which backend runs, and why."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from optional import needs_triton

from toast_kernels import __version__, backends
from toast_kernels.__main__ import main

WITHOUT = (
    "import runpy, sys; sys.modules.update({'toast_kernels._C': None, 'triton': None}); sys.argv[1:] = [];"
    "runpy.run_module('toast_kernels', run_name='__main__')"
)


def report(*command, **variables):
    """The parsed output of a Python that is given this command, without Triton's interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "0"} | variables
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=120)
    assert run.returncode == 0, run.stderr
    return parse(run.stdout)


def parse(output):
    """The report's two tables: {first column: the rest} and {(op, device): (backend, why)}."""
    installed, choices = output.split("\n\n")
    rows = [line.split(maxsplit=3) for line in choices.splitlines()[1:]]
    named = {name.strip(): rest.strip() for name, rest in (line.split("  ", 1) for line in installed.splitlines())}
    return named, {(op, device): (backend, why) for op, device, backend, why in rows}


@pytest.fixture
def report_here(monkeypatch, capsys):
    def run():
        monkeypatch.setattr(sys, "argv", ["toast_kernels"])
        main()
        return parse(capsys.readouterr().out)

    return run


def test_versions_and_choices(report_here):
    installed, choices = report_here()
    assert installed["toast_kernels"].startswith(__version__)
    assert installed["torch"] == torch.__version__
    assert platform.python_version() in installed["Python"]
    assert installed["threads"].split()[0] == str(torch.get_num_threads())
    assert ("no device" in installed["CUDA"]) == (not torch.cuda.is_available())
    assert set(choices) == {(op, device) for op in backends.KERNELS for device in ("cpu", "cuda")}
    for (op, device), (backend, why) in choices.items():
        assert backend == backends.choose(op, "auto", torch.device(device), torch.float32)
        assert why


@pytest.mark.skipif(backends._C is None, reason="the C++ kernels are not built")
def test_instruction_set_and_no_gpu():
    installed, choices = report("-m", "toast_kernels", TOAST_CPU_ISA="generic")
    assert "built, instruction set generic" in installed["C++ kernels"]
    assert choices["medoids", "cpu"] == choices["softmax_statistics", "cpu"] == ("cpu", "C++ kernels")
    assert choices["blended_kl", "cpu"] == ("cpu", "C++ kernels; the reference for a target that requires grad")
    if not torch.cuda.is_available():
        assert installed["Triton kernels"] == "torch sees no GPU"
        assert choices["blended_kl", "cuda"][0] == "reference"


def test_an_instruction_set_that_is_not_there(monkeypatch, report_here):
    class Extension:
        def cpu_isa():
            raise RuntimeError("TOAST_CPU_ISA must be one of generic, got z80")

    monkeypatch.setattr(backends, "_C", Extension)
    assert "unusable: TOAST_CPU_ISA must be one of generic, got z80" in report_here()[0]["C++ kernels"]


def test_missing_kernels_and_a_missing_triton_are_reported_with_the_reason():
    installed, choices = report("-c", WITHOUT)
    assert "not built" in installed["C++ kernels"]
    assert "toast_kernels._C halted" in installed["C++ kernels"]  # the import error itself
    assert "found no compiler or had TOAST_CPU=0; with a C++ compiler reinstall" in installed["C++ kernels"]
    for op in backends.KERNELS:
        backend, why = choices[op, "cpu"]
        assert backend == "reference"
        assert "the C++ kernels cannot be used" in why
    assert "Triton cannot be imported" in installed["Triton kernels"]
    assert "pip install triton" in installed["Triton kernels"]
    assert choices["blended_kl", "cuda"][0] == "reference"


def test_cuda_kernels_that_were_left_out_are_not_put_down_to_nvcc(monkeypatch, report_here):
    monkeypatch.setattr(backends, "_cuda", None)
    monkeypatch.setattr(backends, "_WHY_NO_CUDA_KERNELS", "No module named 'toast_kernels._cuda'")
    said = report_here()[0]["CUDA kernels"]
    assert "(No module named 'toast_kernels._cuda'): this build found no compiler or had TOAST_CUDA=0; with" in said


@needs_triton
def test_triton_is_what_auto_takes_on_a_gpu(monkeypatch, report_here):
    monkeypatch.setattr(backends, "_why_no_gpu", lambda *_: None)
    monkeypatch.setattr(backends, "_cuda", None)
    installed, choices = report_here()
    assert "usable, Triton 3" in installed["Triton kernels"]
    assert choices["medoids", "cuda"] == ("triton", "Triton kernels")
    assert choices["softmax_statistics", "cuda"] == ("triton", "Triton kernels; the reference for float64")
    why = "Triton kernels; the reference for float64 and a target that requires grad"
    assert choices["blended_kl", "cuda"] == ("triton", why)
    monkeypatch.setattr(backends, "_cuda", SimpleNamespace(on_cpu=False))
    why += "; the CUDA kernels for rows of 65,536 numbers and more, some kinds of them"
    assert report_here()[1]["blended_kl", "cuda"] == ("triton", why)


@needs_triton
def test_a_gpu_or_triton_that_is_too_old(monkeypatch):
    import triton

    for why in (backends._why_no_triton, backends._why_no_gpu):
        monkeypatch.setattr(backends, why.__name__, why.__wrapped__)
    device = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")

    def choose(requested):
        return backends.choose("blended_kl", requested, device, torch.float32)

    assert choose("auto") == "reference"
    with pytest.raises(RuntimeError, match=r"Tesla T4 has compute capability 7\.5, and the kernels need 8\.0"):
        choose("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose("auto") == choose("triton") == "triton"
    monkeypatch.setattr(triton, "__version__", "3.1.0")
    with pytest.raises(RuntimeError, match=r"Triton is 3\.1\.0, and the kernels need 3\.6"):
        choose("triton")
