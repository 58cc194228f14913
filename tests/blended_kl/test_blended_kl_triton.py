"""The Triton kernels against the float64 truth, in every configuration; on a GPU if there is one, else interpreted.

What they share with the C++ kernels (autograd, layouts, rows, extreme values) stands in the other test_blended_kl
files; how they are launched, in test_blended_kl_triton_launch.py.
"""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from any_case import any_case
from blended_kl_cases import (
    DTYPES,
    ENCODINGS,
    Case,
    assert_runs_as_good,
    check,
    device_of,
    in_truth,
    name,
    normal,
    run,
    toast_loss,
)
from optional import HealthCheck, assume, given, settings
from optional import strategies as st

pytest.importorskip("triton")

from toast_kernels import SoftTargets
from toast_kernels.blended_kl import triton as backend
from toast_kernels.blended_kl.triton import Tile

FLOATS = DTYPES[1:]
INF = math.inf

# Several rows a program, one row in one tile, a row in several blocks: small enough that small data spans several.
CONFIGURATIONS = {
    "rows": Tile("short", logits=16, num_warps=2),
    "row": Tile("held", logits=8, num_warps=1),
    "blocks": Tile("long", logits=2, num_warps=1),
}


TOP_K_CONFIGURATIONS = ("row", "blocks")  # top-k rows are not worked on several a program


@pytest.fixture(params=CONFIGURATIONS)
def configuration(request, monkeypatch):
    def tile_of(problem, _):
        lists = any(table is not None and table.indices is not None for table in (problem.soft, problem.past))
        return CONFIGURATIONS["row" if lists and request.param == "rows" else request.param]

    monkeypatch.setattr(backend, "tile_of", tile_of)
    return CONFIGURATIONS[request.param]


of_top_k = pytest.mark.parametrize("configuration", TOP_K_CONFIGURATIONS, indirect=True)


@pytest.mark.parametrize(
    ("configuration", "dtype", "soft", "past"),
    [
        pytest.param(configuration, dtype, soft, past, id=f"{configuration}-{name(dtype)}-soft-{soft}-past-{past}")
        for configuration, dtype, soft, past in product(CONFIGURATIONS, FLOATS, ENCODINGS, ENCODINGS)
        if dtype == torch.float32 or soft == past
        if configuration in TOP_K_CONFIGURATIONS or "top-k" not in (soft, past)
    ],
    indirect=["configuration"],
)
def test_every_pair_of_encodings(configuration, dtype, soft, past):
    check(Case(6, 131, dtype, soft, past, weighted=True, reduction="none"), "triton")
    check(Case(6, 131, dtype, soft, past, target="mixup", label_smoothing=0.1), "triton")


@pytest.mark.parametrize(
    ("dtype", "classes"),
    [
        pytest.param(
            dtype, classes, id=f"{name(dtype)}-{classes}", marks=[pytest.mark.more] * (classes in (2, 31, 127))
        )
        for dtype in FLOATS
        for classes in ([1, 2, 3, 31, 63, 64, 65, 127, 128, 129, 192, 255, 256] if dtype == torch.float32 else [5, 136])
    ],
)
def test_widths_around_tiles(configuration, dtype, classes):
    check(Case(5, classes, dtype, reduction="none"), "triton")
    check(Case(5, classes, dtype, "bfloat16", "dense", temperature=2.0), "triton")
    check(Case(3, classes, dtype, past="top-k", label_smoothing=0.1, weighted=True), "triton")
    check(Case(3, classes, dtype, target="probabilities", weighted=True, label_smoothing=0.2), "triton")


@pytest.mark.parametrize(
    "classes",
    [128, 129, 256, 257, 512, 513, 1000, 1024, 1025, 2048, 2049, 4097, 8192, 8193, 16384, 16385, 33_003, 65_537],
)
def test_the_configurations_that_users_get(classes):
    """At the widths where one ends and the next begins."""
    check(Case(3, classes, torch.bfloat16, past="bfloat16", label_smoothing=0.1), "triton")
    check(Case(2, classes, past="top-k", reduction="none"), "triton")


@pytest.mark.parametrize(
    ("dtype", "classes"),
    [
        pytest.param(dtype, classes, id=f"{name(dtype)}-{classes}", marks=() if place % 4 == 0 else pytest.mark.more)
        for place, (dtype, classes) in enumerate(product(FLOATS, (521, 1003, 2051)))  # each of both in every run
    ],
)
def test_rows_that_begin_anywhere(dtype, classes):
    """Odd rows end to end begin at every offset from a multiple of 16 bytes; and so do those that begin misaligned."""
    case = Case(9, classes, dtype, label_smoothing=0.1, reduction="none")
    expected = check(case, "triton")
    logits, target, keywords = case.arguments()
    for offset in (1, 8 // dtype.itemsize, 16 // dtype.itemsize - 1):
        memory = torch.full((offset + logits.numel() + 16,), math.nan, dtype=dtype)
        view = memory[offset : offset + logits.numel()].view(logits.shape)
        view.copy_(logits)
        leaf = view.requires_grad_()
        loss = toast_loss(leaf, target, backend="triton", **keywords)
        loss.backward(case.upstream().float())
        torch.testing.assert_close(loss.detach(), expected[0])
        torch.testing.assert_close(leaf.grad, expected[1])
        view.detach()[:] = math.nan


@pytest.mark.parametrize(
    ("soft", "past", "target"),
    [("same", "logits", "labels"), (None, "same", "labels"), ("same", "same", "mixup"), (None, None, "probabilities")],
)
@pytest.mark.parametrize(
    ("dtype", "classes"),
    [
        pytest.param(
            dtype,
            classes,
            id=f"{name(dtype)}-{classes}",
            marks=() if (dtype, classes) in {(torch.bfloat16, 2051), (torch.float32, 2060)} else pytest.mark.more,
        )
        for dtype in FLOATS
        for classes in (2051, 2060)
    ],
)
def test_tables_whose_rows_begin_anywhere(dtype, classes, soft, past, target):
    """Elsewhere in their vectors than the logits' rows, which begin anywhere too; what lies between rows is NaN."""
    same = "dense" if dtype == torch.float32 else "bfloat16"
    soft, past = (same if encoding == "same" else encoding for encoding in (soft, past))
    case = Case(1 + 16 // dtype.itemsize, classes, dtype, soft, past, target, reduction="none")
    expected = check(case, "triton")
    logits, target, keywords = case.arguments()
    for table, gap in (("soft_targets", 6), ("past", 1)):
        if rows := keywords.get(table):
            apart = torch.full((len(rows), classes + gap), math.nan, dtype=rows.values.dtype)[:, :classes]
            keywords[table] = replace(rows, values=apart.copy_(rows.values))
    got = run(logits, target, case.upstream(), keywords, "triton")
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_logits_far_from_0(configuration):
    """The loss does not change: what is rounded at their size is made up for."""
    logits = (normal(5, 140, seed=8) * 8).round().float() / 8  # so that adding is exact
    keywords = {"reduction": "none", "label_smoothing": 0.1}
    near, far = (run(z, torch.arange(5), torch.ones(5), keywords, "triton") for z in (logits, logits + 5000))
    torch.testing.assert_close(far[0], near[0], rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(far[1], near[1], rtol=1e-5, atol=1e-7)


def test_a_row_without_doubt_has_no_loss(configuration):
    """Exactly 0, and not what the maximum was rounded by, which could be less."""
    logits = torch.full((40, 50), -1000.0)
    logits[:, 7] = torch.arange(40) * 3.3 + 0.1
    loss = toast_loss(logits, torch.full((40,), 7), reduction="none", backend="triton")
    assert not loss.any()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_logits_very_far_from_0(configuration, temperature):
    """Where float32 has no two numbers less than 2048 apart: what is next to the maximum has a probability of 0."""
    largest = torch.tensor([3e10, -3e10, 1e13, -2e30, 3e38])
    logits = torch.nextafter(largest, torch.tensor(-INF))[:, None].repeat(1, 40)
    logits[:, 7], logits[:, 9] = largest, -INF
    target = torch.tensor([7, 7, 7, 7, 7])
    past = SoftTargets.from_probs(torch.zeros(5, 40).index_fill_(1, torch.tensor([7]), 1.0))
    for keywords in ({}, {"past": past, "temperature": temperature}):
        loss, gradient, _ = run(logits, target, torch.ones(5), {"reduction": "none", **keywords}, "triton")
        assert not loss.any()
        assert not gradient.any()


@pytest.mark.parametrize("classes", [100, 600, 3003])
def test_the_argmax_of_a_row_with_a_nan(classes):
    logits = normal(4, classes, seed=1).float()
    logits[1, 70] = logits[1, 90] = logits[2, 5] = math.nan
    logits[3] = -INF
    target = torch.tensor([1, 2, -100, 3])
    _, stats = toast_loss(logits, target, return_stats=True, reduction="none", backend="triton")
    assert stats.argmax.tolist() == [int(logits[0].argmax()), 70, 5, 0]


@pytest.mark.parametrize("classes", [100, 600, 3003])
def test_the_first_of_equal_logits_is_the_argmax(classes):
    logits = torch.zeros(2, classes)
    logits[0, [3, 50, classes - 1]] = 2.0
    _, stats = toast_loss(logits, torch.tensor([0, 1]), return_stats=True, backend="triton")
    assert stats.argmax.tolist() == [3, 0]


@pytest.mark.parametrize("classes", [1, 7, 8, 9, 600, 21_841, 65_537])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_all_rows_ignored(classes, reduction):
    logits = torch.full((2, classes), math.nan).requires_grad_()
    loss = toast_loss(logits, torch.tensor([-100, -100]), reduction=reduction, backend="triton")
    assert loss.isnan() if reduction == "mean" else not loss.any()
    loss.sum().backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 2.5, 3.0, 4.0, 7.0])
@pytest.mark.parametrize("past", ENCODINGS[1:])
def test_temperatures(configuration, past, temperature):
    check(Case(6, 133, torch.float32, "dense", past, temperature=temperature, reduction="none"), "triton")


@pytest.mark.parametrize("k", [1, 63, 64, 65, 150, 256])
@of_top_k
def test_lists_longer_than_a_block(configuration, k):
    """Two tables' lists, with classes in both and the labels in neither, one or both."""
    case = Case(4, 256, seed=k)
    logits, target, keywords = case.arguments()
    soft = SoftTargets.from_logits(normal(256, 256, seed=k), top_k=k, dtype=torch.float32)
    past = SoftTargets.from_logits(normal(4, 256, seed=k + 1), 3.0, top_k=k, dtype=torch.float32)
    keywords |= {"soft_targets": soft, "alpha": 0.4, "past": past, "past_index": torch.arange(4).flip(0)}
    for labels in (target, (target, target.roll(3), torch.rand(4))):
        actual, naive = (run(logits, labels, torch.tensor(1.0), keywords, kind) for kind in ("triton", "reference"))
        assert_runs_as_good(actual, naive, in_truth(logits, labels, torch.tensor(1.0), keywords), case)


@pytest.mark.parametrize("masked", ["listed without mass", "listed", "not listed", "not listed, no tail", "both"])
@pytest.mark.parametrize("table", ["soft_targets", "past"])
@of_top_k
def test_top_k_mass_on_masked_classes(configuration, table, masked):
    """inf where listed mass meets a logit of -inf, and only there; 0 * -inf is 0."""
    classes = 140
    rows = torch.zeros(classes, classes)
    rows[:, 5], rows[:, 9] = 0.25, 0.5
    rows[:, 11] = 0.25 if "no tail" in masked else 0.125
    made = SoftTargets.from_probs(rows + (1 - rows.sum(1, keepdim=True)) / classes, top_k=4)
    made.values.copy_(torch.tensor([0.25, 0.5, 0.25 if "no tail" in masked else 0.125, 0.0]))
    made.indices.copy_(torch.tensor([5, 9, 11, 77]))
    made.entropy.copy_(torch.special.entr(made.dense()).sum(1))
    logits = normal(3, classes, seed=1).float()
    off = {"listed without mass": [77], "listed": [9], "both": [9, 100]}.get(masked, [100])
    logits[1, off] = -INF
    target = torch.tensor([1, 2, 5])
    keywords = {"reduction": "none", table: made, **({"alpha": 0.5} if table == "soft_targets" else {})}
    if table == "past":
        keywords["past_index"] = torch.tensor([3, 2, -1])
    actual, naive = (run(logits, target, torch.ones(3), keywords, kind) for kind in ("triton", "reference"))
    assert (actual[0] == INF).tolist() == [False, masked in ("listed", "both"), False]
    assert_runs_as_good(actual, naive, in_truth(logits, target, torch.ones(3), keywords), Case(3, classes, past=table))


def test_dense_rows_without_mass_on_masked_classes(configuration):
    """0 * -inf is 0, in the loss too."""
    rows = torch.zeros(140, 140)
    rows[:, :4] = 0.25
    table = SoftTargets.from_probs(rows)
    logits = normal(3, 140, seed=1).float()
    logits[1, 9:] = -INF
    target = torch.tensor([1, 2, 3])
    keywords = {"reduction": "none", "soft_targets": table, "alpha": 0.5, "past": table[:3]}
    actual, naive = (run(logits, target, torch.ones(3), keywords, kind) for kind in ("triton", "reference"))
    assert actual[0].isfinite().all()
    assert_runs_as_good(
        actual, naive, in_truth(logits, target, torch.ones(3), keywords), Case(3, 140, past="dense", reduction="none")
    )


def test_smoothing_mass_on_a_masked_class(configuration):
    logits = normal(3, 140, seed=1).float()
    logits[1, 100] = -INF
    loss = toast_loss(logits, torch.tensor([1, 2, 3]), label_smoothing=0.1, reduction="none", backend="triton")
    assert (loss == INF).tolist() == [False, True, False]


@pytest.mark.parametrize("rows", [1, 3, 5])
@pytest.mark.parametrize("bad", [math.nan, INF])
def test_nothing_is_written_behind_the_last_row(configuration, bad, rows, monkeypatch):
    """A class weight that is not finite makes a divisor NaN, which must not bring rows to life that do not exist."""
    stores = []
    plain = torch.Tensor.new_empty

    def with_room_behind(like, size, **keywords):
        if "device" in keywords:  # the interpreter's own
            return plain(like, size, **keywords)
        count = math.prod(size) if isinstance(size, tuple) else size
        store = plain(like, (count + 5000,), **keywords).fill_(7)
        stores.append((store, count))
        return store[:count].view(size)

    table = "dense" if configuration == CONFIGURATIONS["rows"] else "top-k"
    case = Case(rows, 8, soft=table, past=table, target="mixup", weighted=True, label_smoothing=0.1)
    logits, (y_a, y_b, lam), keywords = case.arguments()
    keywords["weight"][:] = bad
    logits = logits.to(device_of("triton"))
    monkeypatch.setattr(torch.Tensor, "new_empty", with_room_behind)
    run(logits, (y_a, y_b, torch.zeros_like(lam)), torch.tensor(1.0), keywords, "triton")
    assert len(stores) >= 5  # loss, gradient, statistics, argmax, workspace
    assert all((store[size:] == 7).all() for store, size in stores)


@pytest.mark.parametrize("encoding", ENCODINGS[1:])
def test_a_past_without_rows(configuration, encoding):
    logits, target, keywords = Case(5, 40, past=encoding).arguments()
    none = keywords["past"][torch.zeros(0, dtype=torch.int64)]
    nobody = {"past": none, "past_index": torch.full((5,), -1)}
    torch.testing.assert_close(
        toast_loss(logits, target, backend="triton", **nobody), toast_loss(logits, target, backend="reference")
    )


@pytest.mark.parametrize("encoding", ENCODINGS[1:])
def test_rows_that_are_not_filled_may_hold_anything(configuration, encoding):
    case = Case(6, 70, soft=encoding, past=encoding)
    results = []
    for garbage in (0.0, math.nan):
        logits, target, keywords = case.arguments()
        for table in (keywords["soft_targets"], keywords["past"]):
            table.filled[::2] = False
            for field in (table.values, table.entropy, table.logsumexp):
                if field is not None:
                    field[::2] = garbage
        results.append(run(logits, target, case.upstream(), keywords, "triton")[:2])
    assert all(torch.equal(*pair) and pair[0].isfinite().all() for pair in zip(*results, strict=True))


def test_no_mass_on_a_row_that_is_masked_whole(configuration):
    logits = torch.full((2, 40), -INF)
    logits[1] = 0
    weight = torch.ones(40)
    weight[3] = 0
    loss = toast_loss(logits, torch.tensor([3, 5]), weight, reduction="sum", backend="triton")
    torch.testing.assert_close(loss, torch.tensor(40.0).log())


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    any_case(
        rows=st.integers(0, 9),
        classes=st.integers(1, 256),
        dtype=st.sampled_from(FLOATS),
        target=st.sampled_from(["labels", "mixup", "probabilities"]),
    )
)
def test_any_combination(configuration, case):
    assume(case.target != "probabilities" or case.soft is None)
    check(case, "triton")
