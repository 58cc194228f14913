"""Settings of every test run, and the kernels that tests run on."""

import importlib
import os
import sys
from pathlib import Path

# Before torch loads its OpenMP runtime: threads that wait give the processor up. Otherwise small operations take up to
# 50 times as long on a machine that is busy with something else too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import interpreter
import optional
import pairwise
import pytest
import torch
from filelock import FileLock  # torch brings it along

if optional.TRITON and not torch.cuda.is_available():
    interpreter.use()

import blended_kl_cases
import cuda_kernels

from toast_kernels import backends


@pytest.fixture(params=blended_kl_cases.KERNELS)
def kernel(request, monkeypatch):
    """Each backend with kernels in turn, as the default of blended_kl_cases.toast_loss too."""
    monkeypatch.setattr(blended_kl_cases, "kernels_under_test", request.param)
    return request.param


@pytest.fixture(
    params=["reference", *(["cpu"] if backends._C else []), *(["triton"] if backends.interpreted() else [])],
)
def kept_rows_backend(request, monkeypatch):
    """What "auto" takes for kept_rows."""
    monkeypatch.setattr("toast_kernels.kept_rows.op.choose", lambda *_: request.param)
    return request.param


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Imports a module of bench/, whose results go to tmp_path."""
    folder = Path(__file__).parent.parent / "bench"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("TOAST_BENCH_RESULTS", str(tmp_path))
    for path in folder.glob("[!c]*.py"):  # all but conftest.py
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return importlib.import_module


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    try:
        return (yield)
    except ModuleNotFoundError as error:
        optional.skip_if_missing(error)
        raise


@pytest.hookimpl(tryfirst=True)  # before pytest's own looks at markers
def pytest_collection_modifyitems(config, items):
    """GPU kernels of logits compute in float32: no float64. Where there is no GPU, CUDA's run on the CPU."""

    def runs_on(item, *kernels):
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return {parameters.get("kernel"), parameters.get("backend")} & set(kernels)

    def possible(item):
        return not (runs_on(item, "triton", "cuda") and item.callspec.params.get("dtype") == torch.float64)

    config.hook.pytest_deselected(items=[item for item in items if not possible(item)])
    items[:] = filter(possible, items)
    by_name = any("::" in argument for argument in config.args)
    if not torch.cuda.is_available() and not by_name:
        pairwise.mark_others_as_more(items)
    for item in items:
        if runs_on(item, "triton"):
            item.add_marker(optional.needs_triton)
    on_cuda = [item for item in items if runs_on(item, "cuda")]
    why_not = None
    if on_cuda and not config.option.collectonly:
        cuda_kernels.FOLDER.mkdir(parents=True, exist_ok=True)
        with FileLock(cuda_kernels.FOLDER / "lock"):  # workers of pytest-xdist build one after the other: the first
            why_not = cuda_kernels.use()
    for item in on_cuda if why_not else ():
        item.add_marker(pytest.mark.skip(reason=why_not))
