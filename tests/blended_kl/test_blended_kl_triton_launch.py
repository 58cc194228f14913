"""Launches of the loss's Triton kernels: kept, compiled, captured, on which device; and sums over many programs."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from blended_kl_cases import DTYPES, Case, assert_a_cuda_graph_replays, check, device_of, moved, name, toast_loss

pytest.importorskip("triton")

from toast_kernels import functional
from toast_kernels.blended_kl import triton as backend
from toast_kernels.blended_kl.problem import Problem, Table
from toast_kernels.blended_kl.triton import Tile

FLOATS = DTYPES[1:]
DEVICE = device_of("triton")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_more_rows_than_one_program_or_group_adds_up(reduction, monkeypatch):
    monkeypatch.setattr(backend, "tile_of", lambda *_: Tile("short", logits=2, num_warps=1))  # four rows a program
    monkeypatch.setattr(backend, "NORMALISER_ROWS", 16)
    monkeypatch.setattr(backend, "GROUP", 4)
    monkeypatch.setattr(backend, "MOST_NORMALISER_BLOCKS", 2)
    check(Case(67, 5, torch.float32, "dense", "dense", weighted=True, reduction=reduction), "triton")


@pytest.mark.parametrize(
    ("dtype", "reduction"),
    [
        pytest.param(
            dtype,
            reduction,
            id=f"{name(dtype)}-{reduction}",
            marks=() if (reduction == "none") == (dtype == torch.bfloat16) else pytest.mark.more,
        )
        for dtype in FLOATS
        for reduction in ("mean", "none")
    ],
)
def test_under_torch_compile(dtype, reduction):
    """In one graph: the choice of the backend, the launch, and the scaling of the gradient."""
    logits, target, keywords = Case(6, 33, dtype, "dense", "top-k", reduction=reduction).leaf_on(DEVICE)

    def step(logits):
        loss = functional.toast_loss(logits, target, backend="triton", **keywords)
        return (loss * torch.arange(loss.numel(), device=loss.device).reshape(loss.shape)).sum() + loss.sum()

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf = logits.detach().clone().requires_grad_()
        function(leaf).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_launches_are_on_the_device_of_the_tensors(monkeypatch):
    """Triton takes the current device, which need not be the tensors'. In backward autograd sees to it."""
    entered = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext(entered.append(tensor.shape)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.Tensor, "get_device", lambda tensor: 1)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    functional.toast_loss(*Case(5, 37).leaf_on(DEVICE)[:2], backend="triton")
    assert entered == [(5, 37)]


def test_alpha_and_past_weight_that_lie_on_the_device(monkeypatch):
    on_device = lambda setting: (0.0, None if setting is None else torch.as_tensor(setting))  # noqa: E731
    monkeypatch.setattr(backend, "number", on_device)
    check(Case(5, 37, torch.float32, "dense", "top-k", alpha=0.3, past_weight=0.7), "triton")


def problem_of(case, upstream):
    """What a backend gets for a case."""

    def table(made, temperature):
        if made is None:
            return None
        return Table(made.values, made.indices, made.logsumexp, made.entropy, made.filled, temperature)

    logits, target, keywords = case.arguments()
    target, target_b, lam = target if isinstance(target, tuple) else (target, None, None)
    problem = Problem(
        logits, target, target_b, lam, keywords["weight"],
        table(keywords.get("soft_targets"), 1.5), keywords.get("alpha"),
        table(keywords.get("past"), case.temperature), keywords.get("past_index"), keywords.get("past_weight"),
        case.upstream().float() if upstream else None,
        case.temperature, -100, case.label_smoothing, case.reduction, True, True,
    )  # fmt: skip
    device = device_of("triton")
    return Problem(*(Table(*map(partial(moved, device=device), x)) if isinstance(x, Table) else moved(x, device)
                     for x in problem))  # fmt: skip


@pytest.mark.parametrize("upstream", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "case",
    [
        Case(5, 37, soft="dense", past="dense", weighted=True),
        Case(5, 37, torch.bfloat16, "logits", "logits", label_smoothing=0.1),
        Case(5, 37, soft="top-k", past="bfloat16", target="mixup", weighted=True),
        Case(5, 37, past="top-k", target="probabilities", weighted=True),
        Case(5, 37),
    ],
    ids=["dense", "logits", "mixup", "probabilities", "plain"],
)
def test_a_launch_is_kept_for_problems_of_its_layout(case, reduction, upstream):
    """From the third call on it hands over addresses and numbers alone."""
    cases = [
        replace(case, reduction=reduction, seed=seed, alpha=0.1 * seed, past_weight=1.0 + seed) for seed in range(1, 4)
    ]
    problems = [problem_of(case, upstream) for case in cases]
    kept = backend.Launch(problems[0])
    for problem in problems:
        actual, expected = kept(problem), backend.Launch(problem)(problem)
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_threads_share_a_launch(monkeypatch):
    """Two more calls, as of another thread, come before each kernel of the first."""
    problem, once = problem_of(Case(5, 37, reduction="mean"), False), backend._once

    def interrupted(*arguments, **keywords):
        monkeypatch.setattr(backend, "_once", once)
        shared.launch = once
        between.extend(shared(problem).loss for _ in range(2))
        return once(*arguments, **keywords)

    expected, between = backend.Launch(problem)(problem).loss, []
    monkeypatch.setattr(backend, "_once", interrupted)
    shared = backend.Launch(problem)
    found = [shared(problem).loss, *between, shared(problem).loss]
    assert len(found) == 6
    assert all(torch.equal(loss, expected) for loss in found)


def test_float64_logits_go_to_the_reference_or_raise(monkeypatch):
    with pytest.raises(ValueError, match='backend "triton" computes in float32, and the logits are float64'):
        toast_loss(torch.zeros(2, 5, dtype=torch.float64), torch.tensor([0, 1]), backend="triton")


@needs_gpu
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_auto_is_triton_and_nothing_waits_for_the_gpu(dtype, reduction):
    logits, target, keywords = Case(64, 1000, dtype, "top-k", "dense", reduction=reduction).leaf_on(DEVICE)
    functional.toast_loss(logits, target, **keywords).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = functional.toast_loss(logits, target, **keywords)
        assert type(loss.grad_fn).__name__ == "BlendedKLBackward"
        loss.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_a_cuda_graph_replays_the_loss_and_its_gradient():
    assert_a_cuda_graph_replays(Case(64, 1000, torch.bfloat16, "dense", "dense"), "triton")


@needs_gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_forward_and_backward_hold_one_gradient(dtype):
    logits, target, keywords = Case(2048, 5120, dtype, past="dense").leaf_on(
        DEVICE
    )  # torch allocates in pieces of 2 MB
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    functional.toast_loss(logits, target, **keywords).backward()
    assert torch.cuda.max_memory_allocated() - before <= 1.01 * logits.numel() * logits.element_size()


@needs_gpu
@pytest.mark.parametrize(("rows", "classes"), [(65_536, 50_257), (8192, 360_000)])
def test_more_than_2_to_the_31_elements(rows, classes):
    logits = torch.randn(rows, classes, device="cuda", dtype=torch.bfloat16).requires_grad_()
    target = torch.randint(classes, (rows,), device="cuda")
    loss = functional.toast_loss(logits, target, past=logits.detach().roll(1, 0), reduction="none")
    loss[-3:].sum().backward()
    tail = logits.detach()[-3:].float().requires_grad_()
    past = logits.detach()[-4:-1].float()
    wanted = functional.toast_loss(tail, target[-3:], past=past, reduction="none", backend="reference")
    wanted.sum().backward()
    torch.testing.assert_close(loss[-3:], wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits.grad[-3:].float(), tail.grad, rtol=2**-7, atol=1e-6)
    assert not logits.grad[:3].any()
