"""Settings of every test run, and the kernels that tests run on."""

import os

# Before torch loads its OpenMP runtime: threads that wait give the processor up. Otherwise small operations take up to
# 50 times as long on a machine that is busy with something else too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import interpreter
import pytest
import torch

if not torch.cuda.is_available():
    interpreter.use()

import blended_kl_cases


@pytest.fixture(params=blended_kl_cases.KERNELS)
def kernel(request, monkeypatch):
    """Each backend with kernels in turn, as the default of blended_kl_cases.toast_loss too."""
    monkeypatch.setattr(blended_kl_cases, "kernels_under_test", request.param)
    return request.param


def pytest_collection_modifyitems(config, items):
    """Triton computes in float32: no float64 logits."""

    def possible(item):
        parameters = getattr(item, "callspec", None) and item.callspec.params
        return not parameters or not (
            "triton" in (parameters.get("kernel"), parameters.get("backend"))
            and parameters.get("dtype") == torch.float64
        )

    config.hook.pytest_deselected(items=[item for item in items if not possible(item)])
    items[:] = filter(possible, items)
