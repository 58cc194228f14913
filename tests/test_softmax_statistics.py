"""softmax_statistics: logsumexp and entropy of softmax(z / T), by the C++ kernel and by PyTorch, against SciPy."""

import importlib

import numpy as np
import pytest
import torch
from scipy.special import entr, logsumexp, softmax

from toast_kernels import backends

BACKENDS = ["reference", *(["cpu"] if backends._C else [])]
every_backend = pytest.mark.parametrize("backend", BACKENDS)
OP = torch.ops.toast_kernels.softmax_statistics.default


def normal(*shape, dtype=torch.float32, scale=3.0, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (shift + scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def check(logits, temperature, backend):
    z = logits.double().numpy() / temperature
    found_logsumexp, found_entropy = OP(logits, temperature, backend)
    tight = logits.dtype == torch.float64
    np.testing.assert_allclose(found_logsumexp, logsumexp(z, axis=1), rtol=1e-14 if tight else 2e-7, atol=1e-7)
    np.testing.assert_allclose(
        found_entropy,
        entr(softmax(z, axis=1)).sum(axis=1),
        rtol=1e-13 if tight else 2e-6,
        atol=1e-14 if tight else 1e-6,
    )
    assert found_logsumexp.dtype == torch.float64
    assert found_entropy.dtype == torch.promote_types(logits.dtype, torch.float32)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 1000, 2047, 2048, 2049, 6145])
def test_equals_scipy(dtype, classes, backend):
    check(normal(7, classes, dtype=dtype), 3.0, backend)


@every_backend
@pytest.mark.parametrize("temperature", [0.05, 1.0, 2.5, 100.0])
@pytest.mark.parametrize("scale", [0.0, 0.01, 30.0])
def test_flat_and_peaked_rows(temperature, scale, backend):
    check(normal(5, 2100, scale=scale), temperature, backend)


@pytest.mark.skipif(not backends._C, reason="the C++ kernels are not built")
@pytest.mark.parametrize("classes", [17, 2053, 50_000])
def test_a_peaked_row_has_its_small_entropy(classes):
    """To float32's digits, although its largest class has all but 3e-6 a class of the probability."""
    logits = torch.full((3, classes), -60.0)
    logits[0, 0] = logits[1, -1] = logits[2, classes // 2] = -20.0
    logits += normal(3, classes, scale=0.1)
    exact = entr(softmax(logits.double().numpy() / 3.0, axis=1)).sum(axis=1)
    np.testing.assert_allclose(OP(logits, 3.0, "cpu")[1], exact, rtol=3e-6)


@every_backend
def test_logits_far_from_zero_lose_nothing(backend):
    logits = normal(5, 3000, shift=1e4)
    check(logits, 3.0, backend)
    check(-logits, 3.0, backend)


@every_backend
def test_rows_that_lie_apart_and_columns_that_do(backend):
    storage = normal(9, 4100)
    for logits in (storage[2:, 1:3001], storage[:, ::2], storage.t()[:33], storage[3:4]):
        check(logits, 2.0, backend)


@every_backend
@pytest.mark.parametrize("classes", [40, 5000])
def test_minus_infinity_has_no_share_and_bad_rows_are_marked(classes, backend):
    logits = normal(6, classes)
    logits[0, ::2] = -torch.inf
    logits[1, 1:] = -torch.inf
    check(logits[:2], 2.0, backend)
    logits[2, -1] = torch.nan
    logits[3, 7] = torch.inf
    logits[4] = -torch.inf
    assert OP(logits, 2.0, backend)[1].isnan().tolist() == [False, False, True, True, True, False]


@every_backend
def test_no_rows(backend):
    for found in OP(torch.empty(0, 6), 2.0, backend):
        assert found.shape == (0,)


@every_backend
def test_opcheck(backend):
    torch.library.opcheck(OP, (normal(5, 7), 2.0, backend))
    torch.library.opcheck(OP, (normal(5, 7, dtype=torch.bfloat16), 1.0, backend))


@pytest.mark.skipif(not backends._C, reason="the C++ kernels are not built")
def test_threads_change_nothing():
    logits, threads = normal(65, 3001), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = OP(logits, 3.0, "cpu")
        torch.set_num_threads(4)
        for found, wanted in zip(OP(logits, 3.0, "cpu"), alone, strict=True):
            assert found.equal(wanted)
    finally:
        torch.set_num_threads(threads)


def test_without_the_cpp_kernels_it_runs_on_pytorch(monkeypatch):
    module = importlib.import_module("toast_kernels.softmax_statistics.op")
    expected = module.softmax_statistics(normal(3, 5), 2.0)
    monkeypatch.setattr(backends, "_C", None)
    monkeypatch.setattr(backends, "_WHY_NO_CPU_KERNELS", "no module named _C", raising=False)
    for found, wanted in zip(module.softmax_statistics(normal(3, 5), 2.0), expected, strict=True):
        torch.testing.assert_close(found, wanted)
