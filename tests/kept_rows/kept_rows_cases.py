"""Backends and rows that the tests of kept_rows run on."""

import pytest
import torch

from toast_kernels import backends

BACKENDS = ["reference", *(["cpu"] if backends._C else []), "triton"]
every_backend = pytest.mark.parametrize("backend", BACKENDS)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
IGNORE = -7
interpreted = backends.interpreted()
needs_interpreter = pytest.mark.skipif(not interpreted, reason="needs Triton's interpreter")


def moved(tensor, backend):
    """Where a backend's kernels run; with the same strides."""
    if tensor is None or backend != "triton" or not torch.cuda.is_available():
        return tensor
    base = tensor if tensor._base is None else tensor._base
    return base.cuda().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def rows_of(layout, rows, classes, dtype, seed=0):
    """Logits [rows, classes]; what lies around them is NaN."""
    values = 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    storage = torch.full((rows + 2, 2 * classes + 3), torch.nan, dtype=dtype)
    logits = {
        "contiguous": lambda: torch.empty(rows, classes, dtype=dtype),
        "rows apart": lambda: storage[1:-1, 1 : classes + 1],
        "columns apart": lambda: storage[1:-1, 1 : 2 * classes : 2],
    }[layout]()
    return logits.copy_(values)
