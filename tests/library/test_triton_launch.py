"""A kept launch does what kernel[grid](...) does, and hands the same arguments to the compiled kernel."""

from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch

triton = pytest.importorskip("triton")
tl = triton.language

from recorded_launches import compiling_process, recorded  # noqa: E402

from toast_kernels import triton_launch  # noqa: E402
from toast_kernels.triton_launch import Launch  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def compiled():
    with compiling_process() as run:
        yield run


class Scale(NamedTuple):
    factor: float
    classes: Any  # [C]


class Matrix(NamedTuple):
    data: Any  # [N, C]
    stride: int
    scale: Scale


@triton.jit
def scaled_sum(
    x,  # Matrix
    offset,  # [N] or None
    shift,
    y,  # [N, C] out
    C,
    BLOCK: tl.constexpr,
    SLOPE: tl.constexpr = 0.5,
):
    """y = factor * x * classes + offset + shift * SLOPE"""
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    value = tl.load(x.data + row * x.stride + j, mask=j < C) * tl.load(x.scale.classes + j, mask=j < C)
    value = value * x.scale.factor + shift * SLOPE
    if offset is not None:
        value += tl.load(offset + row)
    tl.store(y + row * C + j, value, mask=j < C)


def arguments(seed, shift, factor, with_offset=True, align=0):
    """Of scaled_sum for 3 x 16 numbers, y last: it starts `align` elements behind a multiple of 16 bytes."""
    g = torch.Generator().manual_seed(seed)
    x, classes, offset = torch.randn(3, 20, generator=g), torch.randn(16, generator=g), torch.randn(3, generator=g)
    y = torch.full((64,), torch.nan, device=DEVICE)[align : align + 48].view(3, 16)
    x = Matrix(x.to(DEVICE)[:, :16], 20, Scale(factor, classes.to(DEVICE)))
    return x, offset.to(DEVICE) if with_offset else None, shift, y, 16


def values(x, offset, shift, y, _):
    """Of a Launch of scaled_sum, in the order it wants them."""
    tensors = [] if offset is None else [offset.data_ptr()]
    return x.data.data_ptr(), x.scale.factor, x.scale.classes.data_ptr(), *tensors, shift, y.data_ptr()


def expected(x, offset, shift, y, _):
    rows = 0 if offset is None else offset[:, None]
    return x.scale.factor * x.data * x.scale.classes + rows + shift * 0.5


@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "none"])
def test_a_call_launches_the_kernel_on_other_addresses_with_other_floats(with_offset):
    first, second, unaligned = (
        arguments(seed, shift, factor, with_offset, align)
        for seed, shift, factor, align in ((0, 0.3, 1.5, 0), (1, -2.0, 0.7, 0), (2, 0.1, 0.2, 3))
    )
    launch = Launch(scaled_sum, (3,), *first, BLOCK=16, num_warps=1)
    launch(*values(*second))
    launch(*values(*unaligned))
    for given in (first, second, unaligned):
        torch.testing.assert_close(given[3], expected(*given))


def test_an_empty_tensor_has_no_address():
    empty = torch.empty(0, 16, device=DEVICE)
    given = (Matrix(empty, 16, Scale(1.0, empty)), None, 0.0, empty, 0)
    launch = Launch(scaled_sum, (1,), *given, BLOCK=16, num_warps=1)
    launch(*values(*given))


def test_what_is_neither_number_nor_tensor_is_refused_by_its_name():
    x, *others = arguments(0, 0.0, 1.0)
    bad = x._replace(scale=Scale("2", x.scale.classes))
    with pytest.raises(TypeError, match=r"^x.scale.factor must be a tensor, a float, .* got str$"):
        Launch(scaled_sum, (3,), bad, *others, BLOCK=16)


def test_a_call_with_too_few_values_is_refused():
    given = arguments(0, 0.0, 1.0)
    launch = Launch(scaled_sum, (3,), *given, BLOCK=16)
    with pytest.raises((TypeError, ValueError, IndexError)):
        launch(*values(*given)[:-1])


def addresses(argument):
    if isinstance(argument, tuple):
        return tuple(map(addresses, argument))
    return argument.data_ptr() if hasattr(argument, "data_ptr") else argument


def hands_over_what_triton_does(grid, with_offset):
    """In a process of its own, as all below: what reaches CompiledKernel.run is what kernel[grid] hands to it."""
    with recorded() as driver:
        first, second = arguments(0, 0.3, 1.5, with_offset), arguments(1, -2.0, 0.7, with_offset)
        launch = Launch(scaled_sum, grid, *first, BLOCK=16, num_warps=2)
        driver.stream = 8
        with patch.object(triton.runtime.JITFunction, "run", side_effect=AssertionError("not kept")):
            launch(*values(*second))
        scaled_sum[grid](*second, BLOCK=16, num_warps=2)
    made, kept, wanted = driver.launches
    assert len(kept) == len(wanted) == 9 + 7
    assert kept[:6] == wanted[:6]  # the grid, the stream, the function, its metadata
    assert (made[3], kept[3]) == (7, 8)
    assert kept[6:9] == (None, None, None)  # hooks that nobody has set
    for argument, of_triton in zip(kept[9:], wanted[9:], strict=True):
        assert type(argument) is type(of_triton) or hasattr(of_triton, "data_ptr")
        assert argument == addresses(of_triton)
    assert addresses(made[9:]) == addresses((*first, 16, 0.5))


def goes_the_long_way(why):
    """Launches a call of which `why` says what is special: how often Triton's own way was taken, which is right."""
    chip = "gfx942" if why == "AMD" else "sm_90"
    version = (3, 5) if why == "untried version" else triton_launch.VERSION
    runtime, triton_run = triton.knobs.runtime, triton.runtime.JITFunction.run
    with recorded(chip) as driver, patch.object(triton_launch, "VERSION", version):
        first, second = arguments(0, 0.3, 1.5), arguments(1, -2.0, 0.7, align=3 if why == "unaligned" else 0)
        launch = Launch(scaled_sum, (3,), *first, BLOCK=16, num_warps=2)
        if why == "another device":
            driver.device = (chip, 1)
        seen = []
        with (
            patch.object(runtime.launch_enter_hook, "calls", [seen.append] if why == "enter hook" else []),
            patch.object(runtime, "launch_exit_hook", seen.append if why == "exit hook" else None),
            patch.object(triton.runtime.JITFunction, "run", autospec=True, side_effect=triton_run) as run,
        ):
            launch(*values(*second))
            long_way = run.call_count
            scaled_sum[(3,)](*second, BLOCK=16, num_warps=2)
    _, call, wanted = driver.launches
    assert addresses(call[9:]) == addresses(wanted[9:])
    assert call[4] == wanted[4], "another compiled kernel than Triton launches"
    return long_way


@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "none"])
@pytest.mark.parametrize("grid", [(3,), (3, 2), (3, 2, 4)], ids=str)
def test_the_compiled_kernel_is_handed_what_triton_hands_to_it(compiled, grid, with_offset):
    compiled(hands_over_what_triton_does, grid, with_offset)


@pytest.mark.parametrize("why", ["unaligned", "enter hook", "exit hook", "another device", "untried version", "AMD"])
def test_where_a_kept_kernel_might_be_wrong_triton_launches(compiled, why):
    assert compiled(goes_the_long_way, why) == 1


def test_nothing_special_takes_the_short_way(compiled):
    assert compiled(goes_the_long_way, "nothing") == 0
