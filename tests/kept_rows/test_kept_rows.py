"""carry_rows of every backend, against plain loops over rows and SciPy."""

import math

import numpy as np
import pytest
import torch
from kept_rows_cases import DTYPES, IGNORE, every_backend, moved, needs_interpreter, rows_of
from memory_bounds import only_within
from scipy.special import entr, logsumexp, softmax

from toast_kernels import backends
from toast_kernels.kept_rows.op import Slots, carry_rows


class Batch:
    """A random step: many equal scores, and rows that may not be carried for every reason there is."""

    def __init__(
        self, seed, rows, num_new, slots, classes, *, dtype=torch.float32, layout="contiguous", targets="labels",
        score_dtype=torch.float32, max_age=2,
    ):  # fmt: skip
        random = np.random.default_rng(seed)
        self.logits = rows_of(layout, rows, classes, dtype, seed)
        score = np.round(random.normal(size=rows), 1)
        score[random.random(rows) < 0.2] = random.choice([np.nan, np.inf, -np.inf])
        self.score = torch.tensor(score).to(score_dtype)
        self.labels, self.labels_b = (torch.tensor(random.integers(classes, size=rows)) for _ in range(2))
        self.labels[torch.tensor(random.random(rows) < 0.3)] = IGNORE
        self.labels_b[torch.tensor(random.random(rows) < 0.5)] = IGNORE
        self.lam = torch.tensor(random.random(rows), dtype=torch.float32)
        if targets != "triple":
            self.labels_b = self.lam = None
        if targets == "probabilities":
            self.labels = None
        self.ages = torch.tensor(random.integers(1, 4, size=rows - num_new))
        self.num_new, self.max_age, self.temperature = num_new, max_age, random.choice([0.7, 3.0])
        self.classes, self.dtype = classes, dtype
        self.distilled = [round(0.5 * count) for count in range(slots + 1)]

    def slots(self, statistics=True):
        """Full of what nothing should be, but for logits and statistics, which stay where a slot is empty."""
        slots, wide = len(self.distilled) - 1, torch.promote_types(self.dtype, torch.float32)

        def full(dtype, *shape):
            return torch.full((slots, *shape), 55, dtype=dtype)

        return Slots(
            torch.tensor(self.distilled), None if self.labels is None else full(torch.int64),
            None if self.labels_b is None else full(torch.int64), None if self.lam is None else full(torch.float32),
            full(self.dtype, self.classes), *((full(torch.float64), full(wide)) if statistics else (None, None)),
            full(torch.bool), full(torch.int64), full(torch.int64), full(torch.int64),
        )  # fmt: skip

    def carry(self, slots, backend, ages):
        batch = (moved(part, backend) for part in (self.logits, self.labels, self.labels_b, self.lam, self.score))
        on_device = Slots(*(moved(part, backend) for part in slots))
        ages = on_device.age if ages is slots.age else moved(ages, backend)
        carry_rows(*batch, self.num_new, ages, on_device, self.max_age, IGNORE, self.temperature, backend)
        for part, found in zip(slots, on_device, strict=True):
            if part is not None:
                part.copy_(found)

    def chosen(self):
        """[(row, age)] in order of their slots, by sorting a list."""
        ages = [0] * self.num_new + self.ages.tolist()
        score = self.score.double().tolist()
        labelled = [
            self.labels is None
            or self.labels[i] != IGNORE
            or (self.labels_b is not None and bool(self.labels_b[i] != IGNORE))
            for i in range(len(score))
        ]
        may = [i for i in range(len(score)) if labelled[i] and math.isfinite(score[i]) and ages[i] < self.max_age]
        return [(i, ages[i]) for i in sorted(may, key=lambda i: (-score[i], i))[: len(self.distilled) - 1]]

    def check(self, slots):
        chosen = self.chosen()
        rows, count, empty = [row for row, _ in chosen], len(chosen), len(slots.filled) - len(chosen)
        assert slots.filled.tolist() == [True] * count + [False] * empty
        assert slots.row.tolist() == rows + [0] * empty
        assert slots.age.tolist() == [age + 1 for _, age in chosen] + [0] * empty
        distilled = self.distilled[count]
        assert slots.index.tolist() == list(range(distilled)) + [-1] * (len(slots.filled) - distilled)
        for found, given, default in (
            (slots.labels, self.labels, IGNORE), (slots.labels_b, self.labels_b, IGNORE), (slots.lam, self.lam, 1.0)
        ):  # fmt: skip
            assert (found is None) == (given is None)
            assert given is None or found.tolist() == given[rows].tolist() + [default] * empty
        assert torch.equal(slots.logits[:count], self.logits[rows])
        assert (slots.logits[count:] == 55).all()
        if slots.logsumexp is not None:
            z = self.logits[rows].double().numpy() / self.temperature
            rtol = (1e-14, 1e-13) if self.dtype == torch.float64 else (2e-7, 2e-6)
            np.testing.assert_allclose(slots.logsumexp[:count], logsumexp(z, axis=1), rtol=rtol[0], atol=1e-7)
            np.testing.assert_allclose(slots.entropy[:count], entr(softmax(z, axis=1)).sum(1), rtol=rtol[1], atol=1e-6)
            assert (slots.logsumexp[count:] == 55).all()
            assert (slots.entropy[count:] == 55).all()


@every_backend
@pytest.mark.parametrize("targets", ["labels", "triple", "probabilities"])
@pytest.mark.parametrize(
    ("rows", "num_new", "slots", "classes"),
    [(1, 1, 1, 1), (12, 8, 4, 5), (24, 16, 8, 33), (15, 10, 10, 129), (31, 31, 7, 16), (20, 5, 5, 2)],
)
def test_the_rows_carried_are_those_of_a_plain_sort(rows, num_new, slots, classes, targets, backend):
    for seed in range(4):
        batch = Batch(seed, rows, num_new, slots, classes, targets=targets, max_age=1 + seed % 3)
        found = batch.slots(statistics=seed != 3)
        batch.carry(found, backend, batch.ages)
        batch.check(found)


@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "rows apart", "columns apart"])
def test_dtypes_and_layouts(layout, dtype, backend):
    for seed, score_dtype in enumerate(DTYPES):
        batch = Batch(seed, 9, 6, 3, 1000 + seed, dtype=dtype, layout=layout, score_dtype=score_dtype)
        found = batch.slots()
        batch.carry(found, backend, batch.ages)
        batch.check(found)


@every_backend
def test_more_rows_and_classes_than_a_tile(backend, monkeypatch):
    if backend == "triton":
        from toast_kernels.kept_rows import triton

        monkeypatch.setattr(triton, "MOST_ROWS", 8)
        monkeypatch.setattr(triton, "MOST_CLASSES", 64)
    for rows, classes in ((16, 64), (17, 65), (31, 200)):
        batch = Batch(rows, rows, rows - 4, rows // 3, classes, targets="triple")
        found = batch.slots()
        batch.carry(found, backend, batch.ages)
        batch.check(found)


@every_backend
def test_the_ages_may_lie_where_the_new_ones_go(backend):
    for seed in range(6):
        batch = Batch(seed, 24, 8, 16, 3, max_age=3)
        batch.ages.clamp_(max=2)
        found = batch.slots()
        found.age.copy_(batch.ages)
        batch.carry(found, backend, found.age)
        batch.check(found)


@every_backend
def test_the_same_memory_is_filled_again(backend):
    """What the last step left is gone, but for the logits and statistics of slots that are empty now."""
    batch = Batch(0, 12, 8, 8, 5)
    found = batch.slots()
    batch.carry(found, backend, batch.ages)
    second = Batch(1, 12, 8, 8, 5)
    second.score[2:] = torch.nan
    second.labels[:2] = 1
    kept = found.logits[2:].clone()
    second.carry(found, backend, second.ages)
    assert found.filled.tolist() == [True] * 2 + [False] * 6
    assert found.index.tolist() == [0] + [-1] * 7
    assert found.labels.tolist() == [1] * 2 + [IGNORE] * 6
    assert torch.equal(found.logits[2:], kept)


@every_backend
def test_float64_scores_are_told_apart_by_all_of_their_digits(backend):
    batch = Batch(0, 4, 4, 2, 3, score_dtype=torch.float64)
    batch.labels[:] = 0
    batch.score[:] = 1 + torch.tensor([0.0, 2.0, 1.0, 3.0], dtype=torch.float64) * 2.0**-50
    found = batch.slots()
    batch.carry(found, backend, batch.ages)
    assert found.row.tolist() == [3, 1]


@every_backend
@pytest.mark.parametrize("classes", [17, 2053, 9000])
def test_a_peaked_row_has_its_small_entropy(classes, backend):
    """To float32's digits, although its largest class has all but 3e-6 a class of the probability."""
    batch = Batch(0, 3, 3, 3, classes)
    batch.score, batch.temperature = torch.arange(3.0), 3.0
    batch.labels[:] = 0
    batch.logits[:] = -60.0
    batch.logits[0, 0] = batch.logits[1, -1] = batch.logits[2, classes // 2] = -20.0
    batch.logits += 0.1 * torch.randn(3, classes, generator=torch.Generator().manual_seed(1))
    found = batch.slots()
    batch.carry(found, backend, batch.ages)
    exact = entr(softmax(batch.logits.flip(0).double().numpy() / 3.0, axis=1)).sum(axis=1)
    np.testing.assert_allclose(found.entropy, exact, rtol=3e-6 if backend != "reference" else 2e-2)


@every_backend
def test_masked_classes_have_no_share_and_bad_rows_are_marked(backend):
    batch = Batch(0, 6, 6, 6, 40)
    batch.score, batch.temperature = torch.arange(6.0, 0.0, -1), 3.0
    batch.labels[:] = 0
    batch.logits[0, ::2] = -torch.inf
    batch.logits[1, 1:] = -torch.inf
    batch.logits[2, -1] = torch.nan
    batch.logits[3, 7] = torch.inf
    batch.logits[4] = -torch.inf
    found = batch.slots()
    batch.carry(found, backend, batch.ages)
    assert found.entropy.isnan().tolist() == [False, False, True, True, True, False]
    z = batch.logits[:2].double().numpy() / 3.0
    np.testing.assert_allclose(found.entropy[:2], entr(softmax(z, axis=1)).sum(1), rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(found.logsumexp[:2], logsumexp(z, axis=1), rtol=2e-7)
    assert found.logsumexp[4] == -torch.inf


@pytest.mark.skipif(not backends._C, reason="the C++ kernels are not built")
def test_threads_change_nothing():
    batch, threads = Batch(0, 96, 64, 32, 8001, targets="triple"), torch.get_num_threads()
    found = []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            found.append(batch.slots())
            batch.carry(found[-1], "cpu", batch.ages)
    finally:
        torch.set_num_threads(threads)
    batch.check(found[0])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@needs_interpreter
@pytest.mark.parametrize("targets", ["labels", "triple", "probabilities"])
@pytest.mark.parametrize("max_age", [1, 3])
def test_the_triton_kernels_touch_only_what_they_are_given(max_age, targets):
    """Every address that is read or written, checked by the interpreter."""
    for seed, (rows, num_new, slots, classes) in enumerate([(12, 8, 4, 5), (7, 7, 7, 33), (9, 3, 1, 64)]):
        batch = Batch(seed, rows, num_new, slots, classes, layout="rows apart", targets=targets, max_age=max_age)
        found = batch.slots()
        given = (batch.logits, batch.labels, batch.labels_b, batch.lam, batch.score, batch.ages)
        with only_within([*given, *found]):
            batch.carry(found, "triton", batch.ages)
        batch.check(found)


@needs_interpreter
def test_the_check_of_addresses_notices():
    from triton.runtime.errors import InterpreterError

    batch = Batch(0, 12, 8, 4, 5)
    found = batch.slots()
    for missing in (found.logits[:1], found.logits[:, :4]):
        given = (batch.logits, batch.labels, batch.score, batch.ages, *found._replace(logits=missing))
        with pytest.raises(InterpreterError, match=r"below all|beyond"), only_within(given):
            batch.carry(found, "triton", batch.ages)
