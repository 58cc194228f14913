"""What the kernels of class_medoids' Triton backend read and write: nothing beyond their arguments."""

import pytest
import torch
from medoid_cases import logits, random_labels, scipy_medoids
from medoids_on_triton import every_metric, panels, small_tiles  # noqa: F401

from toast_kernels import backends, class_medoids

pytestmark = pytest.mark.skipif(not backends.interpreted(), reason="needs TRITON_INTERPRET=1")


@every_metric
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("rows", "width", "classes"), [(40, 8, 3), (67, 21, 5)])
def test_kernels_touch_only_their_arguments(metric, count, rows, width, classes, panels):  # noqa: F811
    from memory_bounds import within_arguments

    panels(count)
    x, labels = logits(rows, width), random_labels(rows, classes)
    with within_arguments():
        found = class_medoids(x, labels, classes, metric=metric, backend="triton")
    assert found.equal(scipy_medoids(x, labels, classes, metric))


@every_metric
def test_and_where_rows_lie_apart(metric):
    from memory_bounds import within_arguments

    x, labels = logits(50, 24)[:, :13], random_labels(50, 4)
    x[3, 5] = torch.nan
    with within_arguments():
        found = class_medoids(x, labels, 4, metric=metric, backend="triton")
    labels[3] = -1
    assert found.equal(scipy_medoids(x, labels, 4, metric))
