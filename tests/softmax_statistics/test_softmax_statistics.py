"""softmax_statistics: logsumexp and entropy of softmax(z / T), by the kernels and by PyTorch, against SciPy."""

import importlib

import numpy as np
import pytest
import torch
from blended_kl_cases import device_of
from scipy.special import entr, logsumexp, softmax

from toast_kernels import backends

KERNELS = [name for name in ("cpu", "triton") if not backends.missing(name, torch.device(device_of(name)))]
every_backend = pytest.mark.parametrize("backend", ["reference", *KERNELS])
every_kernel = pytest.mark.parametrize("backend", KERNELS)
OP = torch.ops.toast_kernels.softmax_statistics.default
triton_only = pytest.mark.skipif("triton" not in KERNELS, reason="Triton cannot be used")


def statistics(logits, temperature, backend):
    """The op on the backend's device; the results on the CPU."""
    device = device_of(backend)
    strided = torch.empty(0, dtype=logits.dtype, device=device)
    memory = logits.untyped_storage() if device == "cpu" else logits.untyped_storage().cuda()
    strided.set_(memory, logits.storage_offset(), logits.shape, logits.stride())
    return [found.cpu() for found in OP(strided, temperature, backend)]


def normal(*shape, dtype=torch.float32, scale=3.0, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (shift + scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def check(logits, temperature, backend):
    z = logits.double().numpy() / temperature
    found_logsumexp, found_entropy = statistics(logits, temperature, backend)
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


@every_kernel
@pytest.mark.parametrize("classes", [17, 2053, 50_000])
def test_a_peaked_row_has_its_small_entropy(classes, backend):
    """To float32's digits, although its largest class has all but 3e-6 a class of the probability."""
    logits = torch.full((3, classes), -60.0)
    logits[0, 0] = logits[1, -1] = logits[2, classes // 2] = -20.0
    logits += normal(3, classes, scale=0.1)
    exact = entr(softmax(logits.double().numpy() / 3.0, axis=1)).sum(axis=1)
    np.testing.assert_allclose(statistics(logits, 3.0, backend)[1], exact, rtol=3e-6)


@triton_only
@pytest.mark.parametrize("depth", [60.0, 100.0, 200.0])
def test_entropies_that_even_a_float64_loses_beside_1(depth):
    """From 3e-5 down to 5e-25; float32 ends soon below."""
    logits = normal(4, 700, scale=0.1) - depth
    logits[0, 0] = logits[1, -1] = logits[2, 300] = logits[3, 8] = 0
    d = logits.double() / 3.0
    d = d - d.amax(dim=1, keepdim=True)
    others = torch.where(d == 0, 0, d.exp()).sum(dim=1)
    exact = others.log1p() - (d.exp() * d).sum(dim=1) / (1 + others)
    found = statistics(logits, 3.0, "triton")[1]
    np.testing.assert_allclose(found, exact, rtol=3e-6)
    assert 0 < exact.min() < 1e-4


@every_backend
def test_several_largest_classes_share_the_probability(backend):
    logits = torch.full((3, 900), -1000.0)
    logits[0, [5, 6]] = logits[1, [0, 899]] = logits[2, [3, 300, 301, 302]] = 7.0
    expected = torch.tensor([2.0, 2.0, 4.0]).log()
    found_logsumexp, found_entropy = statistics(logits, 1.0, backend)
    torch.testing.assert_close(found_entropy, expected)
    torch.testing.assert_close(found_logsumexp, 7 + expected.double(), rtol=1e-7, atol=0)


@every_backend
@pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
def test_a_maximum_that_moves(backend, descending):
    """Each logit is larger than all before it, by little or by much: all sums are held against another maximum."""
    steps = torch.tensor([1e-6, 1e-3, 1.0, 30.0])[:, None] * torch.arange(5000.0)
    check(steps.flip(1) if descending else steps, 2.0, backend)


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
    found_logsumexp, found_entropy = statistics(logits, 2.0, backend)
    assert found_entropy.isnan().tolist() == [False, False, True, True, True, False]
    expected = torch.tensor([False, False, True, True, False, False])
    assert found_logsumexp.isnan().equal(expected)
    assert found_logsumexp[4] == -torch.inf  # as torch.logsumexp has it
    assert found_logsumexp[[0, 1, 5]].isfinite().all()


@every_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("classes", [3, 21, 1500])
def test_a_bad_logit_is_seen_wherever_it_is(classes, value, backend):
    where = range(classes) if classes < 100 else (0, 1, 7, 8, 511, 512, 1023, 1024, 1495, 1496, 1499)
    logits = normal(len(where), classes)
    for row, column in enumerate(where):
        logits[row, column] = value
    assert statistics(logits, 2.0, backend)[1].isnan().all()


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [1, 5, 7, 8, 9, 16, 31, 275])
def test_nothing_is_read_into_a_row_from_around_it(classes, dtype, backend):
    """Rows begin and end at every place of a vector of 16 bytes, between logits that would show."""
    storage = torch.empty(9, classes + 3, dtype=dtype)
    for begin in range(3):
        logits = storage[:, begin : begin + classes]
        for seed, around in enumerate((torch.inf, torch.nan)):  # the second call is of a layout that was seen
            storage.fill_(around)
            logits.copy_(normal(9, classes, dtype=dtype, seed=seed))
            check(logits, 2.0, backend)


@every_kernel
def test_memory_that_begins_at_an_odd_address(backend):
    """Of another library, say: there is nothing before it."""
    bytes_of = bytearray(4 * 70 + 64)
    address = torch.frombuffer(bytes_of, dtype=torch.uint8).data_ptr()
    logits = torch.frombuffer(bytes_of, dtype=torch.float32, offset=-address % 16 + 4, count=70).view(2, 35)
    check(logits.copy_(normal(2, 35)), 2.0, backend)


@every_backend
def test_equal_rows_that_are_one_in_memory(backend):
    check(normal(1, 33).expand(4, 33), 2.0, backend)


@every_kernel
def test_logits_beyond_2_to_the_31_elements(backend):
    memory = torch.empty((1 << 31) + 64, dtype=torch.float16, device=device_of(backend))
    logits = memory.as_strided((3, 37), ((1 << 30) + 8, 1))  # strides and widths fit into an int32, their product not
    logits.copy_(normal(3, 37))
    small = logits.clone()
    for found, expected in zip(OP(logits, 2.0, backend), OP(small, 2.0, backend), strict=True):
        torch.testing.assert_close(found, expected)


@triton_only
def test_further_calls_of_one_layout_read_their_own_logits_and_temperature(monkeypatch):
    module = importlib.import_module("toast_kernels.softmax_statistics.triton")
    monkeypatch.setattr("toast_kernels.triton_launch.MOST_LAUNCHES", 3)
    for seed, temperature in enumerate((1.0, 3.0, 0.1, 3.0)):
        for rows in range(1, 6):
            check(normal(rows, 130, seed=seed), temperature, "triton")
            assert len(module._launches) <= 3
        check(normal(rows, 130, seed=seed + 9), temperature, "triton")


@triton_only
def test_temperature_is_not_rounded_to_float32():
    logits = normal(3, 20, scale=0.5) + 2**20
    top = logits.double().amax(dim=1)
    found = statistics(logits, 0.1, "triton")[0] - top / 0.1
    torch.testing.assert_close(found, logsumexp_of((logits.double() - top[:, None]) / 0.1), rtol=0, atol=1e-6)


def logsumexp_of(z):
    return torch.from_numpy(logsumexp(z.numpy(), axis=1))


@every_backend
def test_no_rows(backend):
    for found in statistics(torch.empty(0, 6), 2.0, backend):
        assert found.shape == (0,)


@every_backend
def test_opcheck(backend):
    for dtype, temperature in ((torch.float32, 2.0), (torch.bfloat16, 1.0)):
        logits = normal(5, 7, dtype=dtype).to(device_of(backend))
        torch.library.opcheck(OP, (logits, temperature, backend))


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
