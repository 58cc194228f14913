"""Memory of a loss and its backward: one gradient beyond the inputs, and none where none is wanted."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from blended_kl_cases import Case
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from toast_kernels import toast_loss

GRADIENT = 1.1  # the most that may be held at once, in units of the gradient's size


def peak_bytes(function):
    """The most that torch's allocator held at once for this call, which must leave nothing behind."""
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize("past", [None, "dense", "bfloat16", "top-k", "logits"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_forward_and_backward_hold_one_gradient(dtype, reduction, past):
    logits, target, keywords = Case(512, 4001, dtype, past=past, reduction=reduction).arguments()
    logits.requires_grad_()
    upstream = torch.rand(512) if reduction == "none" else torch.tensor(0.5)

    def step():
        toast_loss(logits, target, **keywords).backward(upstream)
        logits.grad = None

    assert 0.99 <= peak_bytes(step) / (logits.numel() * logits.element_size()) <= GRADIENT


@pytest.mark.parametrize("why", ["frozen head", "no_grad", "inference_mode", "detached"])
def test_no_gradient_is_computed_where_none_is_wanted(why):
    logits, target, keywords = Case(512, 4001, past="dense").arguments()
    if why == "frozen head":
        head = torch.nn.Linear(16, 4001).requires_grad_(False)
        logits = head(torch.zeros(512, 16))
    elif why != "detached":
        logits.requires_grad_()
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(why, torch.enable_grad)

    def step():
        with context():
            assert not toast_loss(logits, target, return_stats=True, **keywords)[0].requires_grad

    assert peak_bytes(step) <= 0.05 * logits.numel() * 4


def test_memory_is_freed_with_the_graph():
    logits, target, keywords = Case(512, 4001).arguments()
    logits.requires_grad_()

    def hold_two():
        for _ in range(4):
            loss = toast_loss(logits, target, **keywords)
        del loss

    assert peak_bytes(hold_two) <= 2 * GRADIENT * logits.numel() * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda d: str(d)[6:])
def test_activation_checkpointing_holds_neither_logits_nor_gradient(dtype):
    head = torch.nn.Linear(16, 4001, dtype=dtype)
    chunks = torch.randn(8, 64, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    target = torch.arange(64)

    def held_and_gradient(loss):
        def forward():
            return sum(checkpoint(lambda x: loss(head(x), target), chunk, use_reentrant=False) for chunk in chunks)

        torch.autograd.grad(forward(), head.weight)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            total = forward()
        events = profiler.profiler.kineto_results.events()
        held = sum(event.nbytes() for event in events if event.name() == "[memory]")
        return held, torch.autograd.grad(total, head.weight)[0]

    ours, gradient = held_and_gradient(toast_loss)
    theirs, expected = held_and_gradient(lambda logits, target: F.cross_entropy(logits.float(), target))
    assert ours <= theirs + 10_000 < 0.1 * 64 * 4001 * dtype.itemsize
    torch.testing.assert_close(gradient, expected, rtol=1e-2 if dtype == torch.float16 else 1e-5, atol=1e-5)


RESIDENT = """
import json
import torch
from toast_kernels import SoftTargets, toast_loss

def kilobytes(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

results = {}
for dtype in (torch.float32, torch.bfloat16):
    for rows in (8, 1024):
        logits = torch.randn(rows, 4001).to(dtype).requires_grad_()
        target = torch.arange(rows)
        past = SoftTargets.from_logits(torch.randn(8, 4001), 3.0)
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        before = kilobytes("VmRSS")
        toast_loss(logits, target, past=past, past_index=target % 8).backward(torch.tensor(0.5))
        results[str(dtype)] = (kilobytes("VmHWM") - before) * 1024 / (logits.numel() * logits.element_size())
print(json.dumps(results))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc/self/clear_refs")
def test_the_process_grows_by_one_gradient():
    """What torch's allocator does not see, the kernel's own buffers, counts here too."""
    # A fixed threshold: large blocks go back to the system when freed, so each is seen.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for dtype, gradients in json.loads(done.stdout).items():
        assert 0.9 <= gradients <= GRADIENT, dtype
