"""Every kernel of a GPU, every encoding of a target and every width at which a kernel changes, once each.

What make gpu runs before it times anything: few cases, since each is a kernel that Triton compiles, at the sizes that
users have. The other files vary one thing at a time. Without a GPU the same runs interpreted and on tools/cuda_on_cpu.
"""

import numpy as np
import pytest
import torch
from blended_kl_cases import Case, check, device_of, moved, name, normal, toast_loss
from medoid_cases import METRICS, logits, random_labels, scipy_medoids
from optional import needs_triton
from scipy.special import entr, logsumexp, softmax
from tolerances import assert_as_good_as_naive

from toast_kernels import HardReplay, MedoidBank, class_medoids

GPU = torch.cuda.is_available()
DEVICE = device_of("triton")
LONGEST = 360_001 if GPU else 20_003  # too long for a cluster of CUDA's blocks: worked on in pieces
HALF, SHORT, SINGLE = torch.float16, torch.bfloat16, torch.float32

# From short rows to long: several rows a program, a row held in registers, in blocks; aligned to 16 bytes and odd. A
# long row has no table of soft targets here: it would be as large as the square of its length.
CASES = [
    Case(20, 10, HALF, "dense", "top-k", weighted=True),  # some rows are of the class without soft targets
    Case(9, 100, SHORT, "top-k", "logits", "mixup", label_smoothing=0.1, reduction="none"),
    Case(5, 1000, SHORT, "dense", "dense", reduction="sum"),
    Case(5, 1001, SINGLE, "logits", "bfloat16", "mixup", weighted=True),
    Case(5, 2048, HALF, "bfloat16", None, reduction="none", temperature=2.5),
    Case(3, 4096, SHORT, None, None, "probabilities", weighted=True, label_smoothing=0.2),
    Case(2, 21_841, SINGLE, past="dense", weighted=True, label_smoothing=0.1, reduction="none"),
    Case(2, 21_841, SHORT, past="top-k"),
    Case(2, LONGEST, HALF, past="logits"),
    Case(2, LONGEST, SHORT, past="bfloat16", reduction="sum"),
]
MANY = 5000 if GPU else 1030  # rows whose losses are added up in parts
PLAIN = [(MANY, 10), (5, 1000), (5, 4096), (3, 32_768), (2, LONGEST)]  # rows, classes
POOLS = [(600 if GPU else 140, 40, SHORT), (40, 129, SINGLE)]  # rows (a GPU has tiles of 128), width, dtype
every_gpu_kernel = pytest.mark.parametrize("kernel", ["triton", "cuda"], indirect=True)


def what(case):
    return "-".join(map(name, (case.classes, case.dtype, case.soft, case.past, case.target, case.reduction)))


@every_gpu_kernel
@pytest.mark.parametrize("case", CASES, ids=what)
def test_blended(kernel, case):
    check(case, kernel)


@every_gpu_kernel
@pytest.mark.parametrize(("rows", "classes"), PLAIN)
def test_labels_alone(kernel, rows, classes):
    """As most calls are: no statistics of rows are asked for, which is another kernel."""
    z, target, keywords = Case(rows, classes, SHORT).arguments()
    results = []
    for dtype, backend in ((SHORT, kernel), (SHORT, "reference"), (torch.float64, "reference")):
        leaf = z.detach().to(dtype, copy=True).requires_grad_()
        loss = toast_loss(leaf, target, backend=backend, **keywords)
        loss.backward(torch.tensor(0.5))
        results.append((loss, leaf.grad))
    assert_as_good_as_naive(*(loss for loss, _ in results))
    assert_as_good_as_naive(*(gradient for _, gradient in results), scale=1 / rows)


@needs_triton
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("rows", "width", "dtype"), POOLS)
def test_medoids(metric, rows, width, dtype):
    x, labels = logits(rows, width, dtype=dtype), random_labels(rows, 3)
    found = class_medoids(x.to(DEVICE), labels.to(DEVICE), 4, metric=metric, backend="triton")
    assert found.cpu().equal(scipy_medoids(x, labels, 4, metric))


@needs_triton
@pytest.mark.parametrize("classes", [100, 1001, LONGEST])
@pytest.mark.parametrize("dtype", [HALF, SHORT, SINGLE], ids=name)
def test_statistics_of_rows(dtype, classes):
    z = normal(5, classes, seed=classes).to(dtype)
    found = torch.ops.toast_kernels.softmax_statistics(z.to(DEVICE), 3.0, "triton")
    z = z.double().numpy() / 3
    np.testing.assert_allclose(found[0].cpu(), logsumexp(z, axis=1), rtol=2e-7)
    np.testing.assert_allclose(found[1].cpu(), entr(softmax(z, axis=1)).sum(axis=1), rtol=2e-6)


@needs_triton
@pytest.mark.parametrize("classes", [100, 20_003])
@pytest.mark.parametrize("targets", ["labels", "triple"])
def test_kept_rows(targets, classes):
    """Three steps: the rows of the last one carried, and what they are distilled from; all of them pooled."""
    replay, bank = HardReplay(0.5, max_age=2), MedoidBank(classes, pool_rows=18)
    steps = []
    for step in range(3):
        labels = torch.arange(6) + step
        y = labels if targets == "labels" else (labels, labels.roll(1), 0.75)
        x, y, past = replay.extend(torch.full((6, 2), float(step)).to(DEVICE), moved(y, DEVICE))
        z = normal(9, classes, seed=step).to(SHORT)
        score = torch.tensor([3.0, 1.0, 2.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0])
        bank.update(z[:6].to(DEVICE), labels.to(DEVICE))
        steps.append((x.cpu(), past, z))
        replay.keep(x, y, z.to(DEVICE), score.to(DEVICE))
    assert steps[1][0][6:, 0].tolist() == [0, 0, 0]
    assert steps[2][0][6:, 0].tolist() == [1, 1, 1]
    carried = replay.extend(torch.zeros(6, 2, device=DEVICE), moved(torch.arange(6), DEVICE))[2].targets
    hardest = steps[2][2][3:6]
    assert torch.equal(carried.values.cpu(), hardest)
    expected = entr(softmax(hardest.double().numpy() / 3, axis=1)).sum(axis=1)
    np.testing.assert_allclose(carried.entropy.cpu(), expected, rtol=2e-6)
    assert bank.num_rows == 18
    assert torch.equal(bank.pool.logits.cpu(), torch.cat([z[:6] for _, _, z in steps]).half())
