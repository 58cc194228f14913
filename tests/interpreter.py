"""Triton's interpreter on NumPy, for tests without a GPU: set up, and put right where it differs from every GPU.

It truncates float32 to bfloat16; hardware rounds to nearest even. It patches Triton's language again in every call of a
function from a kernel, which changes nothing and takes nearly half of its time; and it works out the same types and
shapes anew in every operation, a fifth to a third of the remaining time. It works out sums and products of integers a
second time in int64 to see whether they fit, which it says in debugging alone, and compares the shapes of blocks number
by number: together another third. And it reduces several values at once element by element; here as a tree, as hardware
does.
"""

import functools
import os
from dataclasses import replace

import numpy as np


def remember(made, key, *apart):
    """Objects of the class `made` have the attributes of the first with their key, but for those `apart`."""
    initialise, known = made.__init__, {}

    @functools.wraps(initialise)
    def from_the_first(self, *arguments):
        values = known.get(of := key(*arguments))
        if values is None:
            initialise(self, *arguments)
            known[of] = {name: value for name, value in vars(self).items() if name not in apart}
        else:
            vars(self).update(values)
            vars(self).update(zip(apart, arguments, strict=False))

    made.__init__ = from_the_first


def use():
    """To be called before Triton is imported: kernels are run by the interpreter, on tensors on the CPU."""
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def convert_float(values, source, target, rounding):
        if (source, target) == (tl.float32, tl.bfloat16):
            bits = values.view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
        if (source, target) == (tl.bfloat16, tl.float32):
            return values.view(np.uint16).astype(np.uint32) << 16
        return convert(values, source, target, rounding)

    patch = interpreter._patch_lang

    def patch_once(function):
        unpatched = tl.core.is_builtin(tl.load) or tl.core.is_builtin(tl.core.load)
        return patch(function) if unpatched else interpreter._LangPatchScope()

    numpy_type, numpy_types = interpreter._get_np_dtype, {}

    def numpy_type_of(dtype):
        element = dtype.scalar
        if element.name not in numpy_types:
            numpy_types[element.name] = numpy_type(element)
        return numpy_types[element.name]

    broadcast = TritonSemantic.broadcast_impl_value

    def broadcast_unless_alike(semantic, one, other):
        blocks = one.type.is_block() and other.type.is_block()
        if blocks and one.type.shape.values == other.type.shape.values:
            return one, other
        return broadcast(semantic, one, other)

    def reduce_as_a_tree(operation, inputs):
        axis = operation.axis
        parts = [(x.handle.data, x.dtype) for x in inputs]
        while (size := parts[0][0].shape[axis]) > 1:
            halves = [
                [operation.to_tensor(np.take(data, chosen, axis), dtype) for data, dtype in parts]
                for chosen in (range(size // 2), range(size // 2, size))
            ]
            combined = operation.combine_fn.fn(*halves[0], *halves[1])
            parts = [(x.handle.data, dtype) for x, (_, dtype) in zip(combined, parts, strict=True)]
        return [operation.to_tensor(data.take(0, axis), dtype) for data, dtype in parts]

    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    TritonSemantic.broadcast_impl_value = broadcast_unless_alike
    interpreter.ReduceOps.generic_reduce = reduce_as_a_tree
    interpreter._convert_float = convert_float
    interpreter._patch_lang = patch_once
    interpreter._get_np_dtype = numpy_type_of
    remember(tl.block_type, lambda element, shape: (element.name, *map(int, shape)))
    remember(tl.tensor, lambda handle, dtype: dtype.name, "handle")
