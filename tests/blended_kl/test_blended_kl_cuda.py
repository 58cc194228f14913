"""The CUDA kernel against the float64 truth: every encoding, and rows held by one block, held by clusters and read.

On a GPU if there is one, else on tools/cuda_on_cpu, where blocks have few registers and short rows are long.
What it shares with the other kernels stands in the other test_blended_kl files.
"""

import blended_kl_cases
import cuda_kernels
import pytest
import torch
from blended_kl_cases import (
    DTYPES,
    ENCODINGS,
    Case,
    assert_a_cuda_graph_replays,
    assert_runs_as_good,
    check,
    in_truth,
    name,
    normal,
    run,
)

from toast_kernels import SoftTargets, backends, toast_loss
from toast_kernels.arguments import Arguments, to_problem
from toast_kernels.blended_kl.cuda import Launch, held

GPU = torch.cuda.is_available()
FLOATS = DTYPES[1:]
# In one block; over few blocks, over many; of some kinds too long to be held.
LONG = (8003, 33_003, 128_256, 360_001, 1_000_003) if GPU else (801, 3003, 5008, 20_001)

pytestmark = pytest.mark.parametrize("kernel", ["cuda"])
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")


@pytest.mark.parametrize("past", ENCODINGS, ids=lambda e: f"past-{e}")
@pytest.mark.parametrize("soft", ENCODINGS, ids=lambda e: f"soft-{e}")
@pytest.mark.parametrize("dtype", FLOATS if GPU else FLOATS[1:2], ids=name)
def test_every_pair_of_encodings(kernel, dtype, soft, past):
    check(Case(6, 131, dtype, soft, past, weighted=True, label_smoothing=0.1, reduction="none"), kernel)


@pytest.mark.parametrize("temperature", [1.0, 2.5, 3.0])
@pytest.mark.parametrize("target", ["labels", "mixup", "probabilities"])
def test_targets(kernel, target, temperature):
    soft = None if target == "probabilities" else "dense"
    check(Case(6, 301, torch.float32, soft, "top-k", target, weighted=True, temperature=temperature), kernel)


@pytest.mark.parametrize("past", [None, "dense", "top-k", "logits"])
@pytest.mark.parametrize("classes", LONG)
@pytest.mark.parametrize("dtype", FLOATS if GPU else (torch.float32, torch.bfloat16), ids=name)
def test_long_rows(kernel, dtype, classes, past):
    check(Case(3, classes, dtype, past=past, reduction="none"), kernel)


@pytest.mark.parametrize("past", [None, "logits"])
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 9, 1003, 21_841, 65_537])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_odd_rows(kernel, dtype, classes, past):
    """Whose logits begin at no multiple of 16 bytes, but for the first's."""
    check(Case(9 if classes < 2000 else 2, classes, dtype, past=past, label_smoothing=0.1), kernel)


@pytest.fixture
def all_registers():
    """As many as a GPU has."""
    if not GPU:
        backends._cuda.set_registers(65536)
    yield
    if not GPU:
        backends._cuda.set_registers(cuda_kernels.REGISTERS_ON_CPU)


@pytest.mark.parametrize("past", [None, "logits"])
@pytest.mark.parametrize("classes", [65_536, 360_000])
def test_long_rows_as_on_a_gpu(kernel, all_registers, classes, past):
    check(Case(2, classes, torch.bfloat16, past=past), kernel)


@pytest.mark.more
def test_more_rows_than_a_grid_is_high(kernel):
    check(Case(65_537, 3, torch.float32), kernel)


def test_no_rows_and_ignored_rows(kernel):
    empty = blended_kl_cases.toast_loss(
        torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), reduction="none", backend=kernel
    )
    assert empty.shape == (0,)
    logits = torch.full((4, 1003), torch.nan).requires_grad_()
    loss = blended_kl_cases.toast_loss(logits, torch.full((4,), -100), reduction="sum", backend=kernel)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("at", [0, 7, 500, 1002])
def test_a_nan_anywhere_spoils_its_row_alone(kernel, at):
    logits = normal(3, 1003, seed=0).float()
    logits[1, at] = torch.nan
    logits.requires_grad_()
    past = SoftTargets.view_logits(normal(1, 1003, seed=1).float(), 3.0)
    loss = blended_kl_cases.toast_loss(
        logits, torch.tensor([3, 4, 5]), past=past, past_index=torch.tensor([0, 0, -1]), reduction="none",
        temperature=3.0, backend=kernel,
    )  # fmt: skip
    loss.sum().backward()
    assert loss.isnan().tolist() == [False, True, False]
    assert logits.grad.isnan().all(dim=1).tolist() == [False, True, False]
    assert logits.grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("masked", [slice(0, 2000), slice(100, 101), slice(2002, 2003)], ids=str)
@pytest.mark.parametrize("past", [None, "dense", "top-k", "logits"])
def test_minus_infinity(kernel, past, masked):
    """Under no mass it does not count, a whole block of it neither; under mass the loss is infinite."""
    case = Case(4, 2003, torch.float32, past=past, reduction="none")
    logits, target, keywords = case.arguments()
    logits[:, masked] = -torch.inf
    target[:] = 2001
    if past == "top-k":  # its tail has mass on every class
        keywords["past_weight"] = 0.0
    elif past:
        values = normal(4, 2003, seed=9).float()
        values[:, masked] = -torch.inf
        made = {"dense": SoftTargets.from_logits, "logits": SoftTargets.view_logits}[past]
        keywords["past"] = made(values, case.temperature)
    upstream = case.upstream()
    actual, naive = (run(logits, target, upstream, keywords, backend) for backend in (kernel, "reference"))
    assert actual[0].isfinite().all()
    assert_runs_as_good(actual, naive, in_truth(logits, target, upstream, keywords), case)
    under_mass = blended_kl_cases.toast_loss(logits, target, backend=kernel, **{**keywords, "label_smoothing": 0.1})
    assert (under_mass == torch.inf).all()


HELD = {
    "labels": ({}, True),
    "too long": ({"classes": 1 << 20 | 1}, False),
    "odd": ({"classes": 1001}, False),
    "smoothing": ({"label_smoothing": 0.1}, False),
    "weighted smoothing": ({"label_smoothing": 0.1, "weighted": True}, False),
    "weighted": ({"weighted": True}, True),
    "past logits": ({"past": "logits"}, False),
    "soft top-k": ({"soft": "top-k", "classes": 64}, False),
    "soft top-k, past logits": ({"soft": "top-k", "past": "logits", "classes": 64}, True),
    "soft top-k, past of another dtype": ({"soft": "top-k", "past": "dense", "classes": 64}, False),
    "soft dense": ({"soft": "bfloat16", "classes": 64}, False),
    "probabilities": ({"target": "probabilities"}, False),
}


@pytest.mark.parametrize("what", HELD)
def test_which_rows_auto_takes_for_held(kernel, what):
    settings, expected = HELD[what]
    logits, target, keywords = Case(**{"rows": 2, "classes": 1000, "dtype": torch.bfloat16, **settings}).arguments()
    given = Arguments(*(keywords.get(name) for name in Arguments._fields))._replace(logits=logits, target=target)
    assert held(given) == expected


@pytest.mark.parametrize("reduction", ["mean", pytest.param("sum", marks=pytest.mark.more)])
def test_many_rows(kernel, reduction):
    check(Case(9001, 5, torch.float32, "dense", "top-k", weighted=True, reduction=reduction), kernel)


@pytest.mark.parametrize("of_numbers", [torch.float64, torch.float32, torch.bfloat16], ids=name)
def test_numbers_in_tensors_of_any_dtype(kernel, of_numbers):
    """As they come from ToastLoss, or the user, on a GPU."""
    device = blended_kl_cases.device_of(kernel)
    logits, target, keywords = Case(6, 131, torch.float32, "dense", "dense", reduction="sum").leaf_on(device)
    given = Arguments(*(keywords.get(name) for name in Arguments._fields))
    given = given._replace(logits=logits.detach(), target=target, ignore_index=-100, return_stats=False)
    problem = to_problem(given, 0.5, 0.25, True)
    in_tensors = problem._replace(
        alpha=torch.tensor(0.5, dtype=of_numbers, device=device),
        past_weight=torch.tensor(0.25, dtype=of_numbers, device=device),
    )
    expected, found = (Launch(p)(p) for p in (problem, in_tensors))
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.gradient, expected.gradient)


def test_a_past_of_logits_far_from_0(kernel):
    """What they are less than is kept in two floats: rounded to one it would show."""
    case = Case(16, 5, torch.float32, past="logits", temperature=3.5, reduction="none")
    logits, target, keywords = case.arguments()
    values = keywords["past"].values.mul(8).round() / 8 + 1000
    keywords["past"] = SoftTargets.view_logits(values, 3.5)
    upstream = case.upstream()
    actual, naive = (run(logits, target, upstream, keywords, backend) for backend in (kernel, "reference"))
    assert_runs_as_good(actual, naive, in_truth(logits, target, upstream, keywords), case)


@needs_gpu
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_waits_for_the_gpu(kernel, reduction):
    logits, target, keywords = Case(64, 40_000, torch.bfloat16, past="dense", reduction=reduction).leaf_on("cuda")
    toast_loss(logits, target, backend=kernel, **keywords).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        toast_loss(logits, target, backend=kernel, **keywords).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_a_cuda_graph_replays_the_loss_and_its_gradient(kernel):
    assert_a_cuda_graph_replays(Case(64, 40_000, torch.bfloat16, past="dense"), kernel)


@needs_gpu
def test_forward_and_backward_hold_one_gradient(kernel):
    # 20 pieces of 2 MB, in which torch allocates
    logits, target, keywords = Case(512, 40_960, torch.bfloat16, past="dense").leaf_on("cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    toast_loss(logits, target, backend=kernel, **keywords).backward()
    assert torch.cuda.max_memory_allocated() - before <= 1.01 * logits.numel() * logits.element_size()


@needs_gpu
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_more_than_2_to_the_31_elements(kernel, reduction):
    rows, classes = 8200, 262_144
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GB")
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(rows, classes, dtype=torch.bfloat16, device="cuda", generator=generator).requires_grad_()
    target = torch.randint(0, classes, (rows,), device="cuda", generator=generator)
    loss = toast_loss(logits, target, reduction=reduction, backend=kernel)
    (loss.sum() * 0.5).backward()
    few = slice(rows - 9, rows)  # row 8192 begins at element 2^31
    case = Case(9, classes, torch.bfloat16, reduction="none")
    upstream = torch.full((9,), 0.5, dtype=torch.float64)
    part = logits.detach()[few].cpu(), target[few].cpu(), upstream, {"reduction": "none"}
    naive, truth = run(*part, "reference"), in_truth(*part)
    own = (loss.detach()[few].cpu() if reduction == "none" else naive[0], logits.grad[few].cpu(), naive[2])
    assert_runs_as_good(own, naive, truth, case)
