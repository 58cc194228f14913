"""The compile gate sees what it should: on kernels of which one knows what a compiler makes of them."""

import pytest
import torch

triton = pytest.importorskip("triton")
tl = triton.language

from compile_only import CHIPS, compile_all  # noqa: E402

TENSOR_CORES = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}


@triton.jit
def exp_rows(
    x,  # [N, C]
    y,  # [N, C]
    C,
    BLOCK: tl.constexpr,
):
    j = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * C
    value = tl.load(x + row + j, mask=j < C, other=0.0)
    tl.store(y + row + j, tl.exp2(value), mask=j < C)


@triton.jit
def whole_row(
    x,  # [C]
    y,  # [C]
    BLOCK: tl.constexpr,
):
    j = tl.arange(0, BLOCK)
    value = tl.load(x + j)
    exp = tl.exp2(value - tl.max(value))
    tl.store(y + j, value * exp / tl.sum(exp))


@triton.jit
def sum_of_exps(
    x,  # [C]
    y,  # [BLOCK]
    C,
    BLOCK: tl.constexpr,
):
    j = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, C, BLOCK):
        total += tl.exp2(tl.load(x + start + j, mask=start + j < C, other=0.0))
    tl.store(y + j, total)


@triton.jit
def product(
    a,  # [TILE, D]
    b,  # [TILE, D]
    c,  # [TILE, TILE]
    D,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
):
    i = tl.arange(0, TILE)
    k = tl.arange(0, STEP)
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, D, STEP):
        left = tl.load(a + i[:, None] * D + (start + k)[None, :])
        right = tl.load(b + i[None, :] * D + (start + k)[:, None])
        total = tl.dot(left, right, total)
    tl.store(c + i[:, None] * TILE + i[None, :], total)


@triton.jit
def broken(x):
    tl.store(x, tl.arange(0, 3))


def exps(offset=0, columns=1024):
    x = torch.ones(4 * 1024 + 16)
    y = torch.zeros_like(x)
    exp_rows[lambda constants: (constants["BLOCK"] // 256, 2)](x[offset:], y, columns, BLOCK=1024)
    assert not y.any(), "the kernel ran"


def aligned():
    exps()


def misaligned():
    exps(offset=1)


def odd():
    exps(columns=1023)


def crowded():
    """Two arrays of 256 values a thread, more than the registers hold."""
    wide = 256 * 4 * triton.runtime.driver.active.get_current_target().warp_size
    whole_row[(1,)](torch.empty(wide), torch.empty(wide), BLOCK=wide)


def looped():
    sum_of_exps[(1,)](torch.empty(4096), torch.empty(2048), 4096, BLOCK=2048)


def tiles():
    a = torch.empty(128, 256, dtype=torch.bfloat16)
    product[(1,)](a, a, torch.empty(128, 128), 256, TILE=128, STEP=64)


def fails():
    broken[(1,)](torch.empty(4))


# Of those that an ordinary run compiles for, and of the one whose compiler writes assembly.
EVERY_RUN = ("sm_90", "gfx942")


@pytest.fixture(scope="module")
def compiled(request):
    """For the chips whose tests were asked for."""
    chips = {item.callspec.params["chip"] for item in request.session.items if item.path == request.path}
    launches = (aligned, misaligned, odd, crowded, looped, tiles, fails)
    return compile_all([(chip, launch) for chip in chips for launch in launches])


@pytest.fixture(params=[pytest.param(chip, marks=() if chip in EVERY_RUN else pytest.mark.more) for chip in CHIPS])
def chip(request):
    return request.param


@pytest.fixture
def kernel(compiled, chip):
    """The one kernel that a launch compiled to."""

    def only(launch):
        (kernel,) = compiled[chip, launch]
        return kernel

    return only


def test_a_launch_is_recorded_as_asked_for(kernel):
    one = kernel(aligned)
    assert (one.name, one.constants, one.grid, one.programs) == ("exp_rows", {"BLOCK": 1024}, (4, 2, 1), 8)
    assert (one.num_warps, one.num_stages, one.instructions > 20) == (4, 2 if one.chip == "gfx942" else 3, True)


def test_an_exp_a_lane_is_counted_once(kernel):
    assert kernel(aligned).exps * kernel(aligned).threads == 1024


def test_aligned_rows_are_loaded_and_stored_in_128_bits(kernel):
    one = kernel(aligned)
    assert one.loads == one.stores == {16: 1024 * 4 // 16 // one.threads}


def test_a_misaligned_pointer_gives_no_128_bit_loads_but_stores(kernel):
    one = kernel(misaligned)
    assert one.loads == {4: 1024 // one.threads}
    assert one.stores == {16: 1024 * 4 // 16 // one.threads}


def test_an_odd_row_length_gives_no_128_bits_at_all(kernel):
    assert set(kernel(odd).loads) == set(kernel(odd).stores) == {4}


def test_a_row_too_wide_for_the_registers_spills(kernel):
    one = kernel(crowded)
    assert one.spilled > 0
    assert one.local_bytes > 0
    assert kernel(aligned).spilled == kernel(aligned).local_bytes == 0


def test_a_loop_is_found_and_straight_code_has_none(kernel):
    assert kernel(aligned).loops == ()
    assert len(kernel(looped).loops) == 1
    assert sum(kernel(looped).loops[0].values()) < kernel(looped).instructions


def test_a_product_takes_the_tensor_cores_of_its_chip(kernel):
    one = kernel(tiles)
    assert set(one.matrix) == {TENSOR_CORES[one.chip]}
    assert 32 << 10 <= one.shared_bytes <= CHIPS[one.chip].shared_bytes
    assert one.tensor_memory == (128 if one.chip == "sm_100" else 0)
    assert kernel(aligned).matrix == {}


def test_blocks_are_bound_by_warps_registers_or_shared_memory(kernel):
    """By NVIDIA's occupancy calculator: 16 blocks of 4 warps, 2 of 64 KB on sm_80 or 96 KB on later ones."""
    assert kernel(aligned).blocks == (8 if kernel(aligned).chip == "gfx942" else 16)
    assert kernel(tiles).blocks == 2


def test_a_kernel_that_does_not_compile_says_why_and_stops_no_other(compiled, chip):
    assert "power of 2" in compiled[chip, fails]
