"""Plans: a call that finds one gives the bits, and the errors, of a call that is looked at anew."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from blended_kl_cases import BACKENDS, Case, device_of, moved, normal, table
from optional import HealthCheck, given, settings
from optional import strategies as st

from toast_kernels import SoftTargets, functional
from toast_kernels.blended_kl import plan as plans

# What a call is made of, and the values each part of it takes; any two calls differ in a few of them.
PARTS = {
    "rows": [1, 5, 6],
    "classes": [7, 33],
    "gap": [0, 1, 3],  # elements between the rows of logits
    "offset": [0, 1],
    "transposed": [False, True],
    "dtype": [torch.float32, torch.bfloat16, torch.float16, torch.float64],
    "target": ["labels", "int32", "mixup", "mixup by number", "probabilities", "strided probabilities"],
    "weight": [None, torch.float32, torch.float64],
    "soft": [None, "dense", "bfloat16", "top-k"],
    "soft temperature": [1.0, 2.0],
    "past": [None, "dense", "top-k", "logits", "tensor"],
    "alpha": [0.0, 0.3, 1.0, 0],
    "past_weight": [1.0, 0.5],
    "scalars": [float, torch.tensor],
    "temperature": [3.0, 2.5, 3],
    "reduction": ["mean", "sum", "none"],
    "label_smoothing": [0.0, 0.1],
    "ignore_index": [-100, 2],
    "return_stats": [False, True],
    "differentiated": [True, False],
    "no_grad": [False, True],
    "autocast": [False, True],
    "threads": [1, 2],
    "filled": [True, False],
}
FIRST = {name: values[0] for name, values in PARTS.items()}


def arguments_of(parts, seed):
    """logits, target and keywords of toast_loss, with data of their own for each seed."""
    n, c, dtype = parts["rows"], parts["classes"], parts["dtype"]
    generator = torch.Generator().manual_seed(seed)
    store = normal(n * (c + 3) + 2, 1, seed=seed).flatten().to(dtype)
    width = c + parts["gap"]
    logits = store.as_strided((n, c), (width, 1), parts["offset"])
    if parts["transposed"]:
        logits = logits.t().contiguous().t()
    y_a, y_b = torch.randint(0, c, (2, n), generator=generator)
    probabilities = normal(n, c, seed=seed + 1).softmax(1).to(dtype)
    target = {
        "labels": y_a,
        "int32": y_a.int(),
        "mixup": (y_a, y_b, torch.rand(n, generator=generator)),
        "mixup by number": (y_a, y_b, 0.25),
        "probabilities": probabilities,
        "strided probabilities": torch.cat([probabilities] * 2, 1)[:, :c],
    }[parts["target"]]
    keywords = {name: parts[name] for name in ("reduction", "label_smoothing", "temperature", "return_stats")}
    by_label = "probabilities" not in parts["target"]
    keywords["ignore_index"] = parts["ignore_index"] if by_label else -100
    if parts["weight"]:
        keywords["weight"] = torch.rand(c, generator=generator).to(parts["weight"])
    wide = torch.promote_types(dtype, torch.float32)
    if parts["soft"] and by_label:
        keywords["soft_targets"] = table(parts["soft"], c, c, parts["soft temperature"], seed + 2, wide)
        keywords["alpha"] = parts["scalars"](parts["alpha"])
    if parts["past"]:
        encoding = "logits" if parts["past"] == "tensor" else parts["past"]
        past = table(encoding, 4, c, float(parts["temperature"]), seed + 3, wide)
        keywords["past"] = past.values if parts["past"] == "tensor" else past
        keywords["past_index"] = torch.randint(-1, 4, (n,), generator=generator)
        keywords["past_weight"] = parts["scalars"](parts["past_weight"])
    if not parts["filled"]:  # written in place: the same table to a plan
        for x in (keywords.get("soft_targets"), keywords.get("past")):
            if isinstance(x, SoftTargets):
                x.filled[::2] = False
    return logits, target, keywords


def outcome(parts, seed, backend):
    """Every tensor that a call gives, its gradient too."""
    logits, target, keywords = moved_all(arguments_of(parts, seed), device_of(backend))
    leaf = logits.detach().requires_grad_(parts["differentiated"])
    threads = torch.get_num_threads()
    torch.set_num_threads(parts["threads"])
    try:
        with torch.set_grad_enabled(not parts["no_grad"]), torch.autocast("cpu", torch.bfloat16, parts["autocast"]):
            result = functional.toast_loss(leaf, target, backend=backend, **keywords)
    finally:
        torch.set_num_threads(threads)
    loss, stats = result if parts["return_stats"] else (result, ())
    assert loss.requires_grad == (parts["differentiated"] and not parts["no_grad"])
    gradient = ()
    if loss.requires_grad:
        upstream = torch.linspace(-1, 2, max(loss.numel(), 1)).reshape(loss.shape).to(loss)
        gradient = torch.autograd.grad(loss, leaf, upstream)
    return [x.detach() for x in (loss, *stats, *gradient)]


def moved_all(arguments, device):
    logits, target, keywords = arguments
    return moved(logits, device), moved(target, device), {name: moved(x, device) for name, x in keywords.items()}


START = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in PARTS.items()})
CHANGES = st.lists(
    st.sampled_from([(name, value) for name, values in PARTS.items() for value in values]), min_size=4, max_size=12
)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(start=START, changes=CHANGES)
def test_any_sequence_of_calls_gives_the_bits_of_calls_looked_at_anew(start, changes, monkeypatch):
    parts = dict(start)
    for seed, (name, value) in enumerate([("threads", 1), *changes]):
        parts[name] = value
        planned = outcome(parts, seed, "cpu")
        with monkeypatch.context() as patch:
            patch.setattr(plans, "kind_of_call", lambda given: None)
            anew = outcome(parts, seed, "cpu")
        for one, other in zip(planned, anew, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("parts", [{}, {"soft": "dense", "past": "logits"}, {"dtype": torch.float16}], ids=str)
def test_other_kernels_find_their_plans_too(kernel, parts):
    parts = FIRST | {"rows": 5} | parts
    first = [outcome(parts, seed, kernel) for seed in range(3)]
    plans._plans.clear()
    for seed, expected in reversed(list(enumerate(first))):
        plans._plans.clear()
        for one, other in zip(outcome(parts, seed, kernel), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_second_call_makes_no_plan(monkeypatch):
    logits, target, keywords = arguments_of(FIRST | {"rows": 5, "soft": "dense", "past": "logits"}, 0)
    functional.toast_loss(logits, target, **keywords)
    monkeypatch.setattr(plans, "check", lambda given: pytest.fail("was looked at anew"))
    keywords["alpha"], keywords["past_weight"] = torch.tensor(0.7), 0.1  # values are no part of a kind
    functional.toast_loss(logits, target, **keywords)
    soft = keywords["soft_targets"]
    keywords["soft_targets"] = replace(soft, values=soft.values.clone())
    functional.toast_loss(logits.clone(), target.clone(), **keywords)


N, C = 4, 5
LOGITS, TARGET, SOFT = (
    torch.zeros(N, C),
    torch.zeros(N, dtype=torch.int64),
    SoftTargets.from_probs(torch.full((C, C), 0.2)),
)
PAST = {"past": LOGITS, "past_index": TARGET}
ON_A_HIT = {
    "alpha": ({"soft_targets": SOFT, "alpha": 0.5}, {"alpha": 1.5}, r"alpha must be a number in \[0, 1\], got 1.5"),
    "alpha as a tensor": (
        {"soft_targets": SOFT, "alpha": torch.tensor(0.5)},
        {"alpha": torch.tensor(-1.0)},
        r"alpha must be a number in \[0, 1\], got -1.0",
    ),
    "alpha alone": ({"alpha": 0.0}, {"alpha": 0.5}, "alpha = 0.5 needs soft_targets, got None"),
    "past_weight": (PAST, {"past_weight": -2.0}, r"past_weight must be a number in \[0, inf\), got -2.0"),
    "past_weight infinite": (
        PAST,
        {"past_weight": torch.tensor(torch.inf)},
        r"past_weight must be a number in \[0, inf\), got inf",
    ),
    "lam": (
        {"target": (TARGET, TARGET, 0.5)},
        {"target": (TARGET, TARGET, 1.5)},
        r"lam\) must be a number in \[0, 1\], got 1.5",
    ),
    "lam as a tensor": (
        {"target": (TARGET, TARGET, torch.ones(N))},
        {"target": (TARGET, TARGET, 2 * torch.ones(N))},
        r"lam\) must be in \[0, 1\], got values from 2.0",
    ),
    "label": ({}, {"target": TARGET + C}, r"target\[0\] = 5 is out of range \[0, 5\)"),
    "past_index": (PAST, {"past_index": TARGET + N}, r"past_index\[0\] = 4 is out of range \[0, 4\)"),
    "ignore_index": ({"ignore_index": 1}, {"ignore_index": 1.0}, "ignore_index must be an int, got 1.0"),
    "temperature": ({"temperature": 1}, {"temperature": float("nan")}, r"temperature must be a number in \(0, inf\)"),
    "target": ({}, {"target": None}, "target must be a tensor or a triple"),
    "weight": ({"weight": torch.ones(C)}, {"weight": torch.ones(C).long()}, "weight must be a floating-point tensor"),
}


@pytest.mark.parametrize(("good", "bad", "message"), ON_A_HIT.values(), ids=ON_A_HIT)
def test_a_call_that_finds_a_plan_raises_what_a_first_call_does(good, bad, message):
    call = {"logits": LOGITS, "target": TARGET, **good}
    functional.toast_loss(**call)
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        functional.toast_loss(**(call | bad))
    functional.toast_loss(**call)


def test_a_plan_of_plain_logits_is_not_that_of_negated_ones():
    logits = normal(6, 9, seed=1).float()
    expected = functional.toast_loss(logits, torch.arange(6))
    assert torch.equal(functional.toast_loss((-logits)._neg_view(), torch.arange(6)), expected)


@pytest.mark.parametrize("temperature", [torch.tensor(2.0), np.array(2.0), [2.0]], ids=type)
def test_settings_that_are_no_plain_numbers_are_looked_at_anew(temperature):
    logits, target = normal(6, 9, seed=1).float(), torch.arange(6)
    for value in (2.0, 3.0):
        if isinstance(temperature, torch.Tensor):
            temperature.fill_(value)
            expected = functional.toast_loss(logits, target, past=-logits, temperature=value)
            assert torch.equal(functional.toast_loss(logits, target, past=-logits, temperature=temperature), expected)
        else:
            with pytest.raises(TypeError):
                functional.toast_loss(logits, target, temperature=temperature)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_hooks_may_give_back_what_lies_otherwise_in_memory(reduction):
    wide = normal(6, 45, seed=0).to(torch.float16)
    target, gradients = torch.arange(6), []
    for hook in (lambda x: x, lambda x: x.clone(memory_format=torch.contiguous_format)):
        leaf = wide.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(hook, lambda x: x):
            loss = functional.toast_loss(leaf[:, :9], target, past=leaf.detach()[:, 20:29], reduction=reduction)
        loss.sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_hooks_may_unpack_what_does_not_lie_together(reduction, backend):
    def apart(x):
        wide = torch.zeros(*x.shape, 2, dtype=x.dtype, device=x.device)
        wide[..., 0] = x
        return wide[..., 0]

    logits, target, keywords = Case(6, 9, torch.float32, "dense", "dense", weighted=True, reduction=reduction).leaf_on(
        device_of(backend)
    )
    gradients = []
    for unpack in (lambda x: x, apart):
        leaf = logits.detach().clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpack):
            loss = functional.toast_loss(leaf, target, backend=backend, **keywords)
        (3 * loss).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_plans_keep_no_memory_of_the_size_of_a_batch():
    leaf, target = torch.zeros(300, 2, requires_grad=True), torch.zeros(300).long()
    plans._plans.clear()
    for reduction, stats in (("none", True), ("mean", False), ("mean", True)):
        result = functional.toast_loss(leaf, target, reduction=reduction, return_stats=stats)
        (result[0] if stats else result).sum().backward()
    assert len(plans._plans) == 3
    for plan in plans._plans.values():
        for launch in (plan.launch, *plan.backward_launches.values()):
            assert all(x.numel() <= 1 for x in vars(launch.allocate).values() if isinstance(x, torch.Tensor))


def test_settings_of_numpy_and_a_traced_call():
    logits, target = normal(6, 9, seed=1).float().requires_grad_(), torch.arange(6)
    expected = functional.toast_loss(logits, target, past=logits, temperature=2.0, label_smoothing=0.1)
    found = functional.toast_loss(
        logits,
        target,
        past=logits,
        temperature=np.float64(2),
        label_smoothing=np.float64(0.1),
        past_weight=np.float64(1),
    )  # fmt: skip
    assert torch.equal(found, expected)
    traced = torch.jit.trace(lambda z: functional.toast_loss(z, target), logits.detach(), check_trace=False)
    other = normal(6, 9, seed=2).float()
    assert torch.equal(traced(other), functional.toast_loss(other, target))


def test_there_are_only_so_many_plans_and_threads_may_make_them(monkeypatch):
    monkeypatch.setattr(plans, "MOST_PLANS", 8)
    plans._plans.clear()
    expected = {n: functional.toast_loss(torch.zeros(n, C), TARGET[:1].expand(n)) for n in range(1, 40)}
    wrong = []

    def run(start):
        for i in range(200):
            n = 1 + (start + 7 * i) % 39
            loss = functional.toast_loss(torch.zeros(n, C), TARGET[:1].expand(n))
            if not torch.equal(loss, expected[n]):
                wrong.append(n)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(plans._plans) <= 8
