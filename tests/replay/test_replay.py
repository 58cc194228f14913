"""HardReplay: which rows come back, when, and with which past prediction."""

import pytest
import torch
import torch.nn.functional as F
from replay_cases import CLASSES, carried_rows, hardest, make_batch, make_logits, row_names

from toast_kernels import HardReplay, SoftTargets

pytestmark = pytest.mark.usefixtures("kept_rows_backend")


@pytest.mark.parametrize("given_score", [False, True])
@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
def test_the_hardest_rows_come_back_with_the_predictions_they_got(fraction, given_score):
    replay = HardReplay(fraction, temperature=2.0)
    x, y, past = replay.extend(*make_batch(0))
    count = round(8 * fraction)
    assert past.targets is None  # the first step has only empty slots
    assert past.index.tolist() == [-1] * (8 + count)
    assert torch.equal(x, torch.cat([make_batch(0)[0], make_batch(0)[0][:count]]))
    assert torch.equal(y, torch.cat([make_batch(0)[1], torch.full((count,), -100)]))

    logits = make_logits(8 + count, seed=10).requires_grad_()
    score = F.cross_entropy(logits, y, reduction="none") if given_score else None
    replay.keep(x, y, logits, score)
    chosen = hardest(logits.detach(), y, count)

    new_x, new_y = make_batch(1)
    x2, y2, past = replay.extend(new_x, new_y)
    assert torch.equal(x2, torch.cat([new_x, x[chosen]]))
    assert torch.equal(y2, torch.cat([new_y, y[chosen]]))
    assert past.num_new == 8
    assert past.index.dtype == torch.int64
    assert past.index.tolist() == [-1] * 8 + list(range(len(chosen)))
    assert past.targets.encoding == "logits"
    assert past.targets.temperature == 2.0
    assert not past.targets.values.requires_grad
    torch.testing.assert_close(past.targets.dense(), (logits.detach()[chosen] / 2).softmax(1))


def test_carried_rows_are_copies():
    replay = HardReplay(1.0)
    x, y, _ = replay.extend(*make_batch(0))
    logits = make_logits(16, seed=1)
    replay.keep(x, y, logits)
    before = [t.clone() for t in (x, y, logits)]
    chosen = hardest(logits, y, 8)
    for tensor in (x, y, logits):
        tensor.zero_()
    x2, y2, past = replay.extend(*make_batch(1))
    for found, original in ((x2[8:], before[0]), (y2[8:], before[1]), (past.targets.values, before[2])):
        assert torch.equal(found, original[chosen])


@pytest.mark.parametrize("max_age", [1, 2, 3])
def test_a_row_is_carried_at_most_max_age_times_in_a_row(max_age):
    replay = HardReplay(0.5, max_age)
    seen = {}
    for step in range(8):
        x, y, _ = replay.extend(*make_batch(step))
        assert len(x) == 12  # fraction of the new rows, whatever max_age is
        names = row_names(x)
        if step == 0:
            assert y[8:].tolist() == [-100] * 4
        else:
            assert len(set(names)) == len(names)
            for name in names[8:]:
                seen[name] = seen.get(name, 0) + 1
        # rows 2 to 5 of each step are the hardest for ever, older ones harder still
        score = torch.tensor([100 - step_of + (10 * (2 <= row <= 5)) for step_of, row in names]).float()
        replay.keep(x, y, make_logits(len(x), step), score)
    assert max(seen.values()) == max_age
    if max_age == 1:
        assert set(seen) == {(step, row) for step in range(7) for row in range(2, 6)}


def test_equal_scores_go_to_the_first_rows(kept_rows_backend):
    rows = 300 if kept_rows_backend == "triton" else 5000
    replay = HardReplay(0.5)
    x, y, _ = replay.extend(*make_batch(0, rows=9))
    replay.keep(x, y, torch.zeros(13, CLASSES))
    x2, _, _ = replay.extend(*make_batch(1))
    assert row_names(x2[8:]) == [(0, row) for row in range(4)]  # round(4.5) is 4

    replay.reset()
    x, y, _ = replay.extend(*make_batch(0, rows=rows))
    replay.keep(x, y, torch.zeros(len(x), CLASSES), torch.arange(len(x)) % 3 / 2)
    x2, _, _ = replay.extend(*make_batch(1))
    third = rows // 3
    assert [row for _, row in row_names(x2[8:])] == [*range(2, rows, 3), *range(1, 3 * (rows // 2 - third) + 1, 3)]


def test_ignored_and_diverged_rows_are_never_carried():
    replay = HardReplay(1.0)
    x, y, _ = replay.extend(*make_batch(0))
    logits = make_logits(16, seed=3)
    y[1] = -100
    logits[2, 0] = torch.nan
    logits[3, 1] = torch.inf
    logits[4] = -torch.inf
    masked = (int(y[5]) + 1) % CLASSES
    logits[5, masked] = -torch.inf  # a masked class is legal
    replay.keep(x, y, logits)
    x2, y2, past = replay.extend(*make_batch(1))
    assert sorted(carried_rows(x2, past)) == [(0, 0), (0, 5), (0, 6), (0, 7)]
    assert y2[12:].tolist() == [-100] * 4
    assert torch.isfinite(past.targets.entropy).all()


def test_scores_of_ignored_rows_do_not_matter():
    """toast_loss gives them 0, and the caller's own score may give anything."""
    replay = HardReplay(0.25)
    x, y, _ = replay.extend(*make_batch(0))
    y[6] = -100
    replay.keep(x, y, make_logits(10, 0), torch.arange(10.0))
    x2, _, _ = replay.extend(*make_batch(1))
    assert row_names(x2[8:]) == [(0, 7), (0, 5)]


@pytest.mark.parametrize("case", ["all ignored", "no rows"])
def test_nothing_to_carry(case):
    replay = HardReplay(0.5)
    x, y, _ = replay.extend(*make_batch(0, rows=0 if case == "no rows" else 8))
    assert len(x) == (0 if case == "no rows" else 12)
    y.fill_(-100)
    replay.keep(x, y, make_logits(len(x), 0))
    x, y, past = replay.extend(*make_batch(1))
    assert torch.equal(x, torch.cat([make_batch(1)[0], make_batch(1)[0][:4]]))
    assert y[8:].tolist() == [-100] * 4
    assert past.index.tolist() == [-1] * 12
    assert past.num_new == 8


def test_without_a_fraction_batches_stay_as_they_are():
    replay = HardReplay(0.0)
    for number in range(3):
        new_x, new_y = make_batch(number)
        x, y, past = replay.extend(new_x, new_y)
        assert x is new_x
        assert y is new_y
        assert past is None
        replay.keep(x, y, make_logits(8, 0))


def test_a_batch_of_another_size_gets_the_slots_of_the_last_one():
    replay = HardReplay(0.75)
    sizes = []
    for number, rows in enumerate([8, 8, 2, 0, 8, 4, 4]):
        new_x, new_y = make_batch(number, rows)
        x, y, past = replay.extend(new_x, new_y)
        sizes.append(len(x))
        names = []
        if rows and past.targets is not None:
            names = carried_rows(x, past)
            assert y[rows + len(names) :].tolist() == [-100] * (len(x) - rows - len(names))
        assert all(step == number - 1 for step, _ in names)
        assert torch.equal(x[:rows], new_x)
        assert torch.equal(y[:rows], new_y)
        y[:5] = -100  # so that some slots stay empty
        replay.keep(x, y, make_logits(len(x), number))
    # after a batch of no rows there is nothing to carry: as in a first step
    assert sizes == [8 + 6, 8 + 6, 2 + 6, 0 + 2, 8 + 6, 4 + 6, 4 + 3]


def test_fixed_half_overlap_sees_every_row_twice_in_a_row():
    replay = HardReplay(1.0)
    for step in range(4):
        x, y, past = replay.extend(*make_batch(step))
        if step:
            assert sorted(row_names(x[8:])) == [(step - 1, row) for row in range(8)]
            assert past.index[8:].tolist() == list(range(8))
        replay.keep(x, y, make_logits(len(x), step))


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("labelled", [8, 7, 5, 1, 0])
def test_distil_fraction_distils_the_hardest_of_the_carried_rows(labelled, fraction):
    replay = HardReplay(1.0, distil_fraction=fraction)
    x, y, _ = replay.extend(*make_batch(0))
    y[labelled:] = -100
    logits = make_logits(16, seed=5)
    replay.keep(x, y, logits)
    x2, _, past = replay.extend(*make_batch(1))
    assert len(x2) == 16
    distilled = [name for name, row in zip(row_names(x2), past.index, strict=True) if row >= 0]
    assert distilled == [(0, row) for row in hardest(logits[:labelled], y[:labelled], round(fraction * labelled))]


def test_top_k_past():
    replay = HardReplay(0.5, top_k=2, temperature=3.0)
    x, y, _ = replay.extend(*make_batch(0))
    logits = make_logits(12, seed=5)
    replay.keep(x, y, logits)
    _, _, past = replay.extend(*make_batch(1))
    assert past.targets.encoding == "top-k"
    assert past.targets.temperature == 3.0
    exact = (logits[hardest(logits, y, 4)] / 3).softmax(1)
    torch.testing.assert_close(past.targets.dense().amax(1), exact.amax(1))
    checked = SoftTargets.from_logits(logits[hardest(logits, y, 4)], 3.0, top_k=2)
    for name in ("values", "indices", "entropy", "filled"):
        assert torch.equal(getattr(past.targets, name), getattr(checked, name))
