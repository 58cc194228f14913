"""class_medoids on the CPU: C++ kernels (csrc/medoids.h). torch makes the matrix products of large euclidean classes,
and float64 ones of undecided classes."""

import math
from typing import NamedTuple

import torch

from ..backends import _C
from ..native import DTYPE, address
from .reference import METRICS, raise_label

EUCLIDEAN = METRICS.index("euclidean")
NEEDS_PRODUCTS = -2
PANEL = 1 << 22  # elements of a panel of rows, at most
STRIP = 128  # rows of a tile of products; on the diagonal half a strip is computed for nothing
FEW = 1 << 24  # differences: so many are added up exactly in less time than a finer pass takes


def class_medoids(
    x,  # [N, D]
    labels,  # [N] int64 or int32
    mask,  # [N] bool or None
    num_classes,
    metric,
    ignore_index,
):  # -> [K] int64
    threads = torch.get_num_threads()
    matrix = (DTYPE[x.dtype], x.data_ptr(), *x.shape, *x.stride())
    offsets = torch.empty(num_classes + 1, dtype=torch.int64, device="cpu")
    order = torch.empty(x.shape[0], dtype=torch.int64, device="cpu")
    medoids = torch.empty(num_classes, dtype=torch.int64, device="cpu")
    wrong = _C.medoids_group(
        matrix, labels.data_ptr(), labels.dtype == torch.int64, labels.stride(0),
        address(mask), 0 if mask is None else mask.stride(0),
        ignore_index, num_classes, offsets.data_ptr(), order.data_ptr(), threads,
    )  # fmt: skip
    if wrong >= 0:
        raise_label(wrong, int(labels[wrong]), num_classes, ignore_index)
    _C.medoids_all(
        matrix, METRICS.index(metric), offsets.data_ptr(), order.data_ptr(), num_classes, medoids.data_ptr(), threads
    )
    if metric == "euclidean":
        with torch.autocast("cpu", enabled=False):
            for k in (medoids == NEEDS_PRODUCTS).nonzero().flatten().tolist():
                medoids[k] = _EuclideanClass(matrix, order[offsets[k] : offsets[k + 1]], threads).medoid()
    return medoids


class _Panel(NamedTuple):
    """Rows of a class as they enter the products; see csrc/medoids.h."""

    positions: torch.Tensor  # [count] int64, ascending
    rows: torch.Tensor  # [count, D]
    squares: torch.Tensor  # [count]
    lengths: torch.Tensor  # [count]
    errors: torch.Tensor  # [count] float64


class _EuclideanClass:
    """One class: products in float32 nominate, in float64 where many rows are left, and exact costs decide."""

    def __init__(self, matrix, rows, threads):
        self.n, self.width, self.threads = len(rows), matrix[3], threads
        self.rows = rows  # alive as long as its address is used
        self.fields = (matrix, rows.data_ptr(), self.n)
        self.everyone = torch.arange(self.n, dtype=torch.int64, device="cpu")
        self.mean = self._zeros(self.width)
        self.radius = _C.medoids_centre(self.fields, self.mean.data_ptr(), threads)
        self.block = max(STRIP, min(2048, PANEL // max(1, self.width)))

    def medoid(self):
        kept = self.everyone.clone()
        cost = self._zeros(self.n)
        bound = cost + math.inf
        # Out of this range squares over- or underflow in float64: nothing is nominated, exact costs alone decide.
        dtypes = _product_dtypes(self.width) if 2.0**-400 < self.radius < 2.0**400 else ()
        for dtype in dtypes:
            cost, bound = self._nominate(kept, dtype)
            kept = kept[: _C.medoids_narrow(self.fields, EUCLIDEAN, _candidates(kept, cost, bound), self.threads)]
            if len(kept) * self.n * self.width <= FEW:
                break
        return _C.medoids_decide(self.fields, EUCLIDEAN, _candidates(kept, cost, bound), self.threads)

    def _zeros(self, *shape):
        return torch.zeros(shape, dtype=torch.float64, device="cpu")

    def _panel(self, positions, dtype, scale):
        count = len(positions)
        rows = torch.empty(count, self.width, dtype=dtype, device="cpu")
        squares, lengths = torch.empty(2, count, dtype=dtype, device="cpu")
        errors = torch.empty(count, dtype=torch.float64, device="cpu")
        _C.medoids_panel(
            self.fields, positions.data_ptr(), self.mean.data_ptr(), scale, DTYPE[dtype],
            rows.data_ptr(), squares.data_ptr(), lengths.data_ptr(), errors.data_ptr(), count, self.threads,
        )  # fmt: skip
        return _Panel(positions, rows, squares, lengths, errors)

    def _nominate(self, kept, dtype):
        """Cost of each row that is kept and a bound on its error, over all pairs with the class, a tile at a time.

        While every row is kept, only the upper triangle is computed, and its tiles are added up by columns too.
        """
        triangle = len(kept) == self.n
        scale = 0.5 ** math.frexp(self.radius)[1]  # exact; brings the longest row to about 1
        cost, bound, errors = self._zeros(3, len(kept))
        total_error = 0.0
        for j in range(0, self.n, self.block):
            columns = self._panel(self.everyone[j : j + self.block], dtype, scale)
            total_error += columns.errors.sum().item()
            for i in range(0, j + 1 if triangle else len(kept), self.block):
                diagonal = triangle and i == j
                rows = columns if diagonal else self._panel(kept[i : i + self.block], dtype, scale)
                errors[i : i + self.block] = rows.errors
                for s in range(0, rows.rows.shape[0], STRIP):
                    self._add_tile(rows, s, columns, s if diagonal else 0, cost, bound, i, j, triangle)
        bound += self.n * errors + total_error
        return cost / scale, bound / scale

    def _add_tile(self, rows, r, columns, c, cost, bound, i, j, by_columns):
        """Rows r to r + STRIP of the panel at candidate i against columns c and on of the panel at class row j."""
        products = rows.rows[r : r + STRIP] @ columns.rows[c:].t()
        size, costs, bounds = products.element_size(), cost.data_ptr(), bound.data_ptr()
        _C.medoids_tile(
            DTYPE[products.dtype], products.data_ptr(), *products.shape, self.width,
            rows.positions.data_ptr() + 8 * r, j + c,
            rows.squares.data_ptr() + size * r, rows.lengths.data_ptr() + size * r,
            columns.squares.data_ptr() + size * c, columns.lengths.data_ptr() + size * c,
            costs + 8 * (i + r), bounds + 8 * (i + r),
            costs + 8 * (j + c) if by_columns else 0, bounds + 8 * (j + c) if by_columns else 0, self.threads,
        )  # fmt: skip


def _candidates(kept, cost, bound):
    return kept.data_ptr(), cost.data_ptr(), bound.data_ptr(), len(kept)


def _product_dtypes(width):
    """float32 first, unless torch was told to make its products of factors rounded to bfloat16 or TF32."""
    if hasattr(torch.backends.mkldnn, "matmul"):
        precision = torch.backends.mkldnn.matmul.fp32_precision
    else:
        precision = torch.get_float32_matmul_precision()
    exact = precision in ("none", "ieee", "highest") and width < 1 << 20
    return (torch.float32, torch.float64) if exact else (torch.float64,)
