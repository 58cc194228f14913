"""The kept launch of a Triton kernel: kernel[grid](...) less what it finds out anew at every call.

To bind and specialise the arguments and to look the compiled kernel up takes Triton tens of microseconds, and cannot
come out differently while shapes, strides and dtypes stay the same: a Launch does it once.
"""

import ctypes
import inspect

import torch
import triton

# CompiledKernel.run is no public interface. With these versions, over a stand-in for libcuda.so, the parameters were
# those of kernel[grid] byte for byte; a call took 10 us where kernel[grid] took 14 to 48 (a busy machine).
TRIED = ((3, 6), (3, 7), (3, 8), (3, 9))
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
ALIGNMENT = 16  # bytes; of which pointers are multiples of it a kernel is compiled for


class Launch:
    """Launches kernel[grid](*arguments, **keywords), and once more at each call, with other addresses and floats:

        launch = Launch(scale, (len(x),), x, x.stride(0), 0.5, BLOCK=1024, num_warps=4)
        launch(y.data_ptr(), 0.25)  # scale[(len(x),)](y, x.stride(0), 0.25, BLOCK=1024, num_warps=4)

    arguments are tensors, floats, integers, None, and NamedTuples of these. A call takes an address for each tensor and
    a number for each float, in the order of the kernel's parameters and of the fields in them, constexprs left out. All
    else is the same at each call: integers, what is None, layouts and dtypes of the tensors. They are the current
    device's, and the caller keeps them alive. Threads may share a Launch.

    A call is a kernel[grid](...) too in the interpreter (where tensors are on the CPU), on AMD's GPUs, on a Triton not
    in TRIED, on another device, while launch hooks are set (by profilers), and where an address is less aligned.
    """

    def __init__(self, kernel, grid, *arguments, **keywords):
        self.kernel, self.grid = kernel, grid
        signature = inspect.signature(kernel.fn)
        bound = signature.bind(*arguments, **{k: v for k, v in keywords.items() if k in signature.parameters})
        bound.apply_defaults()
        self.options = {k: v for k, v in keywords.items() if k not in signature.parameters}  # num_warps, ...
        self.fill, first = _template(bound)
        self.tensors = {
            i: (value.dtype, value.untyped_storage().size())
            for i, value in enumerate(first)
            if isinstance(value, torch.Tensor)
        }
        self.aligned = [i for i in self.tensors if first[i].data_ptr() % ALIGNMENT == 0]
        compiled = kernel[grid](*bound.args, **self.options)
        self.run = None
        if VERSION in TRIED and compiled is not None and compiled.metadata.target.backend == "cuda":
            driver = triton.runtime.driver.active
            self.current_device, self.current_stream = driver.get_current_device, driver.get_current_stream
            self.device = self.current_device()
            self.blocks = (*grid, 1, 1)[:3]
            self.run, self.function, self.metadata = compiled.run, compiled.function, compiled.packed_metadata

    def __call__(self, *values):
        bits = 0
        for i in self.aligned:
            bits |= values[i]
        if self.run is None or bits % ALIGNMENT or _hooks() or self.current_device() != self.device:
            values = [_pointer(v, *self.tensors[i]) if i in self.tensors else v for i, v in enumerate(values)]
            self.kernel[self.grid](*self.fill(*values), **self.options)
        else:
            self.run(
                *self.blocks, self.current_stream(self.device), self.function, self.metadata, None, None, None,
                *self.fill(*values),
            )  # fmt: skip


MOST_LAUNCHES = 1024


def keep(launches: dict, kind, launch: Launch) -> None:
    """launches[kind] = launch, of at most so many."""
    if len(launches) >= MOST_LAUNCHES:
        launches.clear()
    launches[kind] = launch


def _template(bound):
    """(fill, values): the tensors and floats of the arguments, and a function that puts others in their place.

    fill is compiled from a line such as `lambda v0, v1: (v0, new(c1, (v1, c2,)), c3,)`: of the ways to fill nested
    tuples in the fastest.
    """
    names, values = {"new": tuple.__new__}, []

    def constant(value):
        names[f"c{len(names)}"] = value
        return f"c{len(names) - 1}"

    def source(name, value):
        if isinstance(value, torch.Tensor | float):
            values.append(value)
            return f"v{len(values) - 1}"
        if isinstance(value, tuple):
            fields = getattr(value, "_fields", range(len(value)))
            items = "".join(f"{source(f'{name}.{field}', item)}, " for field, item in zip(fields, value, strict=True))
            return f"new({constant(type(value))}, ({items}))"
        if value is None or isinstance(value, int):
            return constant(value)
        raise TypeError(
            f"{name} must be a tensor, a float, an integer, None or a NamedTuple of these, got {type(value).__name__}"
        )

    items = ""
    for name, value in bound.arguments.items():
        fixed = "constexpr" in str(bound.signature.parameters[name].annotation)
        items += f"{constant(value) if fixed else source(name, value)}, "
    parameters = ", ".join(f"v{i}" for i in range(len(values)))
    return eval(f"lambda {parameters}: ({items})", names), values


def _hooks():
    """Whether anyone wants to know of launches: hooks are chains of calls, or functions, or None."""
    runtime = triton.knobs.runtime
    return any(getattr(hook, "calls", hook) for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook))


class _Pointer:
    """What Triton asks of a tensor."""

    def __init__(self, address, dtype, size):
        self.address, self.dtype, self.size = address, dtype, size

    def data_ptr(self):
        return self.address

    def ptr_range(self):  # bytes; AMD's buffer loads need to know
        return self.size


def _pointer(address, dtype, size):
    if not triton.knobs.runtime.interpret:
        return _Pointer(address, dtype, size)
    # The interpreter asks for a storage; it reads and writes by addresses, whatever the storage's size.
    if not address:
        return torch.empty(0, dtype=dtype, device="cpu")
    return torch.frombuffer((ctypes.c_char * dtype.itemsize).from_address(address), dtype=dtype)
