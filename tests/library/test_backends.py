"""Which backend runs an op on which tensors: the table in backends.py, what choose makes of it, README's copy of it."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from optional import needs_triton

from toast_kernels import backends, toast_loss
from toast_kernels.backends import FLOATS, KERNELS, choose

README = Path(__file__).parents[2] / "README.md"
CPU, CUDA, META = map(torch.device, ("cpu", "cuda", "meta"))
BY_NAME = ("reference", "cpu", "triton", "cuda")


@pytest.fixture
def everything(monkeypatch):
    """A machine with a GPU on which all kernels are installed."""
    for why in ("_why_no_triton", "_why_no_gpu"):
        monkeypatch.setattr(backends, why, lambda *_: None)
    for module in ("_C", "_cuda"):
        monkeypatch.setattr(backends, module, SimpleNamespace(on_cpu=False))


def cell(op, backend):
    """What README says of a backend in the row of an op."""
    if backend not in KERNELS[op]:
        return ""
    kernels = KERNELS[op][backend]
    dtypes = [str(dtype).removeprefix("torch.") for dtype in kernels.dtypes]
    auto = f'; "auto" for some rows from {kernels.auto_from:,} classes' if kernels.auto_from else ""
    return ("all four" if len(dtypes) == len(FLOATS) else ", ".join(dtypes)) + auto


def test_readme_has_the_table():
    header, *rows = re.findall(r"^\| (?:op|`\w+`, behind .*) \|.*$", README.read_text(), re.MULTILINE)
    columns = re.findall(r'\| `"(\w+)"`', header)
    assert set(columns) == set(BY_NAME)
    rows = {row.split("`")[1]: [cell.strip() for cell in row.split("|")[2:-1]] for row in rows}
    assert rows == {op: [cell(op, backend) for backend in columns] for op in KERNELS}


def test_every_name_is_in_the_table_and_the_reference_can_do_all():
    assert set(backends.BACKENDS) == {"auto", *BY_NAME} == {"auto"}.union(*KERNELS.values())
    for row in KERNELS.values():
        assert list(row)[-1] == "reference"
        assert row["reference"] == backends.Kernels(None, FLOATS, None, 0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("op", KERNELS)
def test_auto_takes_kernels_that_can(everything, op, dtype):
    assert choose(op, "auto", CPU, dtype) == "cpu"
    for width in (None, 2, 1 << 20):
        can = dtype in KERNELS[op]["triton"].dtypes
        assert choose(op, "auto", CUDA, dtype, width) == ("triton" if can else "reference")
    assert choose(op, "auto", META, dtype) == "reference"


def test_auto_takes_cuda_for_long_rows_that_it_holds(everything, monkeypatch):
    for width, held, backend in ((65_535, True, "triton"), (65_536, True, "cuda"), (65_536, False, "triton")):
        assert choose("blended_kl", "auto", CUDA, torch.bfloat16, width, held=held) == backend
    assert choose("blended_kl", "auto", CUDA, torch.float64, 65_536, held=True) == "reference"
    monkeypatch.setattr(backends, "_why_no_gpu", lambda device, oldest=(8, 0): "too old" if oldest > (8, 0) else None)
    assert choose("blended_kl", "auto", CUDA, torch.bfloat16, 65_536, held=True) == "triton"


def test_auto_leaves_to_the_reference_what_no_kernel_can(everything):
    wide = KERNELS["blended_kl"]["triton"].widest
    assert choose("blended_kl", "auto", CUDA, torch.float32, wide) == "triton"
    assert choose("blended_kl", "auto", CUDA, torch.float32, wide + 1) == "reference"
    assert choose("blended_kl", "auto", CPU, torch.float32, wide + 1) == "cpu"


@pytest.mark.parametrize("op", KERNELS)
def test_auto_does_without_what_is_not_installed(everything, monkeypatch, op):
    monkeypatch.setattr(backends, "_C", None)
    monkeypatch.setattr(backends, "_WHY_NO_CPU_KERNELS", "no compiler", raising=False)
    monkeypatch.setattr(backends, "_why_no_triton", lambda: "Triton is 2")
    for device in (CPU, CUDA):
        assert choose(op, "auto", device, torch.float32) == "reference"


@needs_triton
def test_triton_by_its_interpreter_is_never_auto(monkeypatch):
    monkeypatch.setattr(backends, "_C", None)
    monkeypatch.setattr(backends, "_WHY_NO_CPU_KERNELS", "no compiler", raising=False)
    monkeypatch.setattr(backends, "interpreted", lambda: True)
    assert choose("blended_kl", "auto", CPU, torch.float32) == "reference"
    assert choose("blended_kl", "triton", CPU, torch.float32) == "triton"


@pytest.mark.parametrize("backend", BY_NAME)
@pytest.mark.parametrize("op", KERNELS)
def test_a_name_is_taken_at_its_word(everything, op, backend):
    if backend in KERNELS[op]:
        device = CUDA if KERNELS[op][backend].device == "cuda" else CPU
        assert choose(op, backend, device, torch.float32) == backend
    else:
        with pytest.raises(ValueError, match=f'"{backend}" has no kernel for {op}; use "auto" or "cpu" or "triton"'):
            choose(op, backend, CUDA, torch.float32)


REFUSED = {
    "float64": ("triton", CUDA, torch.float64, 5, "computes in float32, and the logits are float64"),
    "float64, CUDA": ("cuda", CUDA, torch.float64, 5, "computes in float32, and the logits are float64"),
    "too wide": ("triton", CUDA, torch.float32, 2**31, "takes rows of at most 2147418112 .* have 2147483648"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_cannot_says_why_and_what_can(everything, name):
    backend, device, dtype, width, why = REFUSED[name]
    with pytest.raises(ValueError, match=f'^backend "{backend}" {why}; use "auto" or "reference"$'):
        choose("blended_kl", backend, device, dtype, width)
    assert choose("blended_kl", "reference", device, dtype, width) == "reference"


def test_tensors_elsewhere(everything):
    for backend, device, where in (("cpu", CUDA, "the CPU"), ("cuda", CPU, "a GPU"), ("triton", META, "a GPU")):
        with pytest.raises(ValueError, match=f'^backend "{backend}" needs tensors on {where}, got .* on {device}$'):
            choose("blended_kl", backend, device, torch.float32)


def test_triton_on_a_cpu_hints_at_its_interpreter(everything, monkeypatch):
    monkeypatch.setattr(backends, "interpreted", lambda: False)
    with pytest.raises(ValueError, match=r"needs tensors on a GPU, got tensors on cpu \(TRITON_INTERPRET=1"):
        choose("blended_kl", "triton", CPU, torch.float32)


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', 'reference', .*, got 'gpu'"):
        choose("blended_kl", "gpu", CPU, torch.float32)


def test_the_loss_asks_with_its_dtype_and_its_target():
    logits, target = torch.zeros(2, 5), torch.full((2, 5), 0.2, requires_grad=True)
    with pytest.raises(ValueError, match=r'^target requires grad, and backend "cpu" gives it no gradient'):
        toast_loss(logits, target, backend="cpu")
    toast_loss(logits, target).backward()  # by the reference
    assert target.grad is not None
    with torch.no_grad():
        assert toast_loss(logits, target, backend="cpu").isfinite()
