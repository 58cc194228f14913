"""class_medoids as an op and as a public function: opcheck, compile, no gradient, clear errors."""

import re
from pathlib import Path

import pytest
import torch
from medoid_cases import BACKENDS, METRICS, logits, random_labels

from toast_kernels.functional import class_medoids

every_backend = pytest.mark.parametrize("backend", BACKENDS)


@every_backend
@pytest.mark.parametrize("metric", METRICS)
def test_opcheck(metric, backend):
    x, labels = logits(200, 5).requires_grad_(), random_labels(200, 3)
    op = torch.ops.toast_kernels.medoids.default
    torch.library.opcheck(op, (x, labels, None, 3, metric, -100, backend))
    torch.library.opcheck(op, (x[:, ::2], labels.int(), labels > 0, 3, metric, 1, backend))


def test_metrics_have_the_numbers_of_the_kernels():
    header = (Path(__file__).parents[2] / "csrc" / "medoids.h").read_text()
    (named,) = re.findall(r"enum class Metric : int \{ (.*) \};", header)
    assert tuple(named.split(", ")) == METRICS


@every_backend
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_a_break(backend, dynamic):
    torch.compiler.reset()
    compiled = torch.compile(class_medoids, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (300, 301):
        x, labels = logits(rows, 11), random_labels(rows, 4)
        for metric in METRICS[:2]:
            expected = class_medoids(x, labels, 4, metric=metric, mask=labels != 2, backend=backend)
            assert compiled(x, labels, 4, metric=metric, mask=labels != 2, backend=backend).equal(expected)


def test_no_gradient_flows_and_nothing_is_written():
    x, labels = logits(300, 7).requires_grad_(), random_labels(300, 3)
    before, version = x.detach().clone(), x._version
    medoids = class_medoids(x, labels, 3)
    assert not medoids.requires_grad
    assert x._version == version
    assert x.detach().equal(before)
    x[medoids].sum().backward()  # the rows that were picked carry their gradient as any index does
    assert x.grad[medoids].eq(1).all()
    assert x.grad.sum() == 21


def test_default_dtype_and_device_are_not_used():
    x, labels = logits(900, 90), torch.zeros(900, dtype=torch.int64)
    expected = class_medoids(x, labels, 2)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert class_medoids(x, labels, 2, backend="cpu").equal(expected)
    finally:
        torch.set_default_dtype(torch.float32)


@every_backend
def test_label_out_of_range_names_the_row_and_the_value(backend):
    x, labels = logits(8, 3), torch.zeros(8, dtype=torch.int64)
    labels[5], labels[6] = 4, -1
    with pytest.raises(IndexError, match=r"labels must be in \[0, 4\).*ignore_index = -100, got 4 at position 5"):
        class_medoids(x, labels, 4, backend=backend)
    with pytest.raises(IndexError, match=r"got -1 at position 6"):
        class_medoids(x, labels.int(), 5, backend=backend)


X, Y = torch.zeros(8, 3), torch.zeros(8, dtype=torch.int64)
BAD = {
    "x not a tensor": (([[1.0]], Y, 2), {}, TypeError, r"x must be a .* tensor, got list"),
    "x of integers": ((X.long(), Y, 2), {}, TypeError, r"x must be a float64.*, got a torch.int64 tensor"),
    "x 1-d": ((X[0], Y, 2), {}, ValueError, r"x must have shape \[N, D\], got \[3\]"),
    "x 3-d": ((X[None], Y, 2), {}, ValueError, r"x must have shape \[N, D\], got \[1, 8, 3\]"),
    "labels too short": ((X, Y[1:], 2), {}, ValueError, r"labels must have shape \[N\] with N = 8 \(from x\), .*\[7\]"),
    "labels 2-d": ((X, Y[:, None], 2), {}, ValueError, r"labels must have shape \[N\] with N = 8.*, got \[8, 1\]"),
    "labels of floats": ((X, Y.float(), 2), {}, TypeError, r"labels must hold int64.* a torch.float32"),
    "labels int16": ((X, Y.short(), 2), {}, TypeError, r"labels must hold int64, int32 or uint8 .* torch.int16"),
    "labels a list": ((X, [0] * 8, 2), {}, TypeError, r"labels must hold int64, int32 or uint8 labels, got list"),
    "labels elsewhere": ((X, Y.to("meta"), 2), {}, ValueError, r"labels must be on the device of x, cpu, got meta"),
    "mask of ints": ((X, Y, 2), {"mask": Y}, TypeError, r"mask must be a bool tensor or None, got a torch.int64"),
    "mask too long": ((X, Y, 2), {"mask": torch.ones(9) > 0}, ValueError, r"mask must have shape .* N = 8.*\[9\]"),
    "no class": ((X, Y, 0), {}, ValueError, r"num_classes must be an int >= 1, got 0"),
    "classes not an int": ((X, Y, 2.0), {}, TypeError, r"num_classes must be an int >= 1, got 2.0"),
    "ignore_index None": ((X, Y, 2), {"ignore_index": None}, TypeError, r"ignore_index must be an int, got None"),
    "unknown metric": ((X, Y, 2), {"metric": "l2"}, ValueError, r"metric must be one of 'euclidean', .*, got 'l2'"),
    "unknown backend": ((X, Y, 2), {"backend": "gpu"}, ValueError, r"backend must be one of .*, got 'gpu'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_explained(name):
    arguments, options, error, message = BAD[name]
    with pytest.raises(error, match=message):
        class_medoids(*arguments, **options)


def test_a_backend_that_is_not_there_says_why(monkeypatch):
    with pytest.raises(ValueError, match="meta"):
        class_medoids(X.to("meta"), Y.to("meta"), 2, backend="cpu")
    from toast_kernels import backends

    monkeypatch.setattr(backends, "_C", None)
    monkeypatch.setattr(backends, "_WHY_NO_CPU_KERNELS", "no module named _C", raising=False)
    with pytest.raises(RuntimeError, match=r"not available: .*not built .*with a C\+\+ compiler reinstall"):
        class_medoids(X, Y, 2, backend="cpu")
    assert class_medoids(X, Y, 2).tolist() == [0, -1]  # "auto" falls back to the reference
