"""HardReplay: which rows come back, when, and with which past prediction."""

import io

import pytest
import torch
import torch.nn.functional as F

from toast_kernels import HardReplay, SoftTargets, backends

CLASSES = 4


@pytest.fixture(
    autouse=True,
    params=["reference", *(["cpu"] if backends._C else []), *(["triton"] if backends.interpreted() else [])],
)
def backend(request, monkeypatch):
    """What "auto" takes."""
    monkeypatch.setattr("toast_kernels.kept_rows.op.choose", lambda *_: request.param)
    return request.param


def make_batch(step, rows=8, **dtype):
    """Inputs that say where they came from: step and row."""
    generator = torch.Generator().manual_seed(step)
    x = torch.stack([torch.full((rows,), float(step)), torch.arange(rows).float()], dim=1)
    return x, torch.randint(CLASSES, (rows,), generator=generator)


def make_logits(rows, seed, dtype=torch.float32):
    return (2 * torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(seed))).to(dtype)


def row_names(x):
    return [tuple(map(int, row)) for row in x]


def carried_rows(x, past):
    """The names of the rows that were carried. Empty slots come last and repeat new rows."""
    filled, new, slots = past.targets.filled, x[: past.num_new], x[past.num_new :]
    count = int(filled.sum())
    assert filled[:count].all()
    assert torch.equal(slots[count:], new[torch.arange(count, len(slots)) % len(new)])
    assert past.index[: past.num_new].tolist() == [-1] * past.num_new
    assert past.index[past.num_new + count :].tolist() == [-1] * (len(slots) - count)
    return row_names(slots[filled])


def hardest(logits, y, count):
    """Of the first 8 rows, which are the new ones in a first step."""
    logits, y = logits[:8], y[:8]
    loss = F.cross_entropy(logits.double(), y, reduction="none").tolist()
    return sorted(range(len(y)), key=lambda i: (-loss[i], i))[:count]


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


def test_equal_scores_go_to_the_first_rows(backend):
    rows = 1200 if backend == "triton" else 5000
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


def test_structured_inputs():
    def batch(step):
        x, y = make_batch(step)
        return {"image": x, "extra": (x[:, 0] + 0.5, [x.int()])}, y

    replay = HardReplay(0.25)
    x, y, _ = replay.extend(*batch(0))
    logits = make_logits(10, seed=7)
    replay.keep(x, y, logits)
    chosen = hardest(logits, y, 2)
    x2, _, _ = replay.extend(*batch(1))
    assert list(x2) == ["image", "extra"]
    assert torch.equal(x2["image"], torch.cat([make_batch(1)[0], make_batch(0)[0][chosen]]))
    assert x2["extra"][0].tolist() == [1.5] * 8 + [0.5] * 2
    assert x2["extra"][1][0].dtype == torch.int32


def test_inputs_in_a_dict_are_told_apart_by_their_keys():
    replay = HardReplay(1.0)
    y = torch.arange(4) % CLASSES
    for step, names in enumerate([("a", "b"), ("b", "a"), ("a", "b")]):
        x = {name: torch.full((4, 1), 10.0 * step + (name == "b")) for name in names}
        x, target, _ = replay.extend(x, y)
        if step:
            assert x["a"][4:].tolist() == [[10.0 * (step - 1)]] * 4
            assert x["b"][4:].tolist() == [[10.0 * (step - 1) + 1]] * 4
        replay.keep(x, target, make_logits(8, step))


@pytest.mark.parametrize("lam", [0.3, torch.linspace(0, 1, 8)], ids=["number", "rows"])
def test_mixup_triples(lam):
    replay = HardReplay(0.5)
    x, y_a = make_batch(0)
    y_b = y_a.roll(1)
    x, y, _ = replay.extend(x, (y_a, y_b, lam))
    assert y[0][8:].tolist() == y[1][8:].tolist() == [-100] * 4
    logits = make_logits(12, seed=2)
    replay.keep(x, y, logits)

    rows = torch.as_tensor(lam, dtype=torch.float32).expand(8)
    loss = [F.cross_entropy(logits[:8], labels, reduction="none") for labels in (y_a, y_b)]
    chosen = (rows * loss[0] + (1 - rows) * loss[1]).argsort(descending=True)[:4]
    new_x, new_a = make_batch(1)
    x2, (got_a, got_b, got_lam), past = replay.extend(new_x, (new_a, new_a.flip(0), 0.75))
    assert torch.equal(x2[8:], x[chosen])
    assert torch.equal(got_a, torch.cat([new_a, y_a[chosen]]))
    assert torch.equal(got_b, torch.cat([new_a.flip(0), y_b[chosen]]))
    assert torch.equal(got_lam, torch.cat([torch.full((8,), 0.75), rows[chosen]]))
    assert past.num_new == 8


def test_labels_and_triples_mix():
    replay = HardReplay(0.5)
    x, y = make_batch(0)
    logits = make_logits(12, seed=2)
    chosen = hardest(logits, y, 4)
    for first, second in ((y, (y, y.roll(1), 0.75)), ((y, y, 1.0), y)):
        replay.reset()
        replay.keep(*replay.extend(x, first)[:2], logits)
        _, (y_a, y_b, lam), _ = replay.extend(x, second)
        assert torch.equal(y_a, torch.cat([y, y[chosen]]))
        assert torch.equal(y_b[8:], y[chosen])
        assert lam.tolist() == [0.75 if isinstance(second, tuple) else 1.0] * 8 + [1.0] * 4


def test_an_ignored_pair_is_not_carried_and_class_probabilities_are():
    replay = HardReplay(1.0)
    x, y = make_batch(0)
    y[3] = -100
    x, triple, _ = replay.extend(x, (y, torch.where(torch.arange(8) == 5, -100, y), 0.5))
    replay.keep(x, triple, make_logits(16, 0), torch.ones(16))
    x2, _, past = replay.extend(*make_batch(1))
    assert carried_rows(x2, past) == [(0, row) for row in (0, 1, 2, 4, 5, 6, 7)]  # row 5 has one label

    replay = HardReplay(0.5)
    x, _ = make_batch(0)
    probs = make_logits(8, 1).softmax(1)
    logits = make_logits(8, 2)
    replay.keep(*replay.extend(x, probs)[:2], logits)
    chosen = F.cross_entropy(logits, probs, reduction="none").argsort(descending=True)[:4]
    assert torch.equal(replay.extend(x, probs)[1], torch.cat([probs, probs[chosen]]))


def test_int32_labels():
    x, y = make_batch(0)
    logits = make_logits(12, 0)
    replays = HardReplay(), HardReplay()
    for replay, labels in zip(replays, (y, y.int()), strict=True):
        replay.keep(*replay.extend(x, labels)[:2], logits)
    one, two = (replay.extend(x, y) for replay in replays)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_half_precision_logits_stay_as_they_are():
    replay = HardReplay()
    x, y, _ = replay.extend(*make_batch(0))
    replay.keep(x, y, make_logits(12, 0, torch.bfloat16))
    past = replay.extend(*make_batch(1))[2]
    assert past.targets.values.dtype == torch.bfloat16
    assert past.targets.logsumexp.dtype == torch.float64


def step(replay, number):
    x, y, past = replay.extend(*make_batch(number))
    replay.keep(x, y, make_logits(len(x), number))
    return x, y, past


def test_logits_of_another_dtype_or_width_get_memory_of_their_own():
    replay = HardReplay()
    for number, (classes, dtype) in enumerate([(4, torch.float32), (4, torch.bfloat16), (6, torch.bfloat16)]):
        x, y, _ = replay.extend(*make_batch(number))
        logits = torch.randn(12, classes, generator=torch.Generator().manual_seed(number)).to(dtype)
        replay.keep(x, y, logits, torch.arange(12.0, 0, -1))
        past = replay.extend(*make_batch(number + 1))[2]
        assert torch.equal(past.targets.values, logits[:4])
        assert past.targets.num_classes == classes


def test_inputs_in_channels_last_stay_so():
    """As torch.cat leaves them: what follows is not slowed down by a copy."""
    replay, y = HardReplay(), make_batch(0)[1]
    for number in range(3):
        x = torch.randn(8, 3, 5, 4, generator=torch.Generator().manual_seed(number))
        x, y_all, _ = replay.extend(x.to(memory_format=torch.channels_last), y)
        assert x.is_contiguous(memory_format=torch.channels_last)
        replay.keep(x, y_all, make_logits(12, number))


def flat(batch):
    """All tensors that extend returned."""
    x, y, past = batch
    targets = {} if past.targets is None else past.targets.state_dict()
    return [x, y, past.index, *(value for value in targets.values() if isinstance(value, torch.Tensor))]


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("top_k", [None, 2])
def test_state_survives_a_file_and_goes_on_to_the_bit(top_k, steps):
    replay = HardReplay(0.5, 2, top_k=top_k)
    for number in range(steps):
        step(replay, number)
    file = io.BytesIO()
    torch.save(replay.state_dict(), file)
    file.seek(0)
    resumed = HardReplay(0.5, 2, top_k=top_k)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for number in range(steps, steps + 3):
        one, two = (part.extend(*make_batch(number)) for part in (replay, resumed))
        assert all(torch.equal(a, b) for a, b in zip(flat(one), flat(two), strict=True))
        for part, (x, y, _) in ((replay, one), (resumed, two)):
            part.keep(x, y, make_logits(len(x), number))

    resumed.load_state_dict(HardReplay().state_dict())
    assert resumed.extend(*make_batch(0))[2].targets is None
    replay.reset()
    assert replay.extend(*make_batch(0))[2].targets is None


def test_the_state_says_how_often_a_row_was_carried():
    replay, resumed = HardReplay(0.5, 2), HardReplay(0.5, 2)
    for number in range(2):
        x, y, _ = replay.extend(*make_batch(number))
        replay.keep(x, y, make_logits(12, number), -x[:, 0])  # the older a row, the harder
    resumed.load_state_dict(replay.state_dict())
    x, y, past = resumed.extend(*make_batch(2))
    assert {step for step, _ in carried_rows(x, past)} == {0}
    resumed.keep(x, y, make_logits(12, 2), -x[:, 0])
    x, _, past = resumed.extend(*make_batch(3))
    assert {step for step, _ in carried_rows(x, past)} == {2}


def test_a_loaded_state_shares_nothing_with_where_it_came_from():
    replay, resumed = HardReplay(0.5), HardReplay(0.5)
    step(replay, 0)
    resumed.load_state_dict(replay.state_dict())
    expected = resumed.extend(*make_batch(1))[0].clone()
    replay.state_dict()["carried"]["x"].zero_()
    assert torch.equal(resumed.extend(*make_batch(1))[0], expected)


X, Y = make_batch(0)


def kept(x=X, y=Y, logits=None, score=None):
    replay = HardReplay(0.0)
    replay.extend(X, Y)
    replay.keep(x, y, torch.zeros(8, CLASSES) if logits is None else logits, score)


def after_a_step():
    replay = HardReplay()
    x, y, _ = replay.extend(X, Y)
    replay.keep(x, y, make_logits(12, 0))
    return replay


BAD_CALLS = {
    "fraction": (lambda: HardReplay(1.5), r"fraction must be in \[0, 1\], got 1.5"),
    "nan": (lambda: HardReplay(float("nan")), r"fraction must be in \[0, 1\], got nan"),
    "distil": (lambda: HardReplay(distil_fraction=-1), r"distil_fraction must be in \[0, 1\], got -1"),
    "max_age": (lambda: HardReplay(max_age=0), "max_age must be an int >= 1, got 0"),
    "temperature": (lambda: HardReplay(temperature=0), "temperature must be a finite number > 0, got 0"),
    "rows": (lambda: HardReplay().extend(X, Y[1:]), "y must have as many rows as x, 8, got 7"),
    "ragged": (lambda: HardReplay().extend((X, X[1:]), Y), r"the tensors in x must have as many rows .* got \[8, 7\]"),
    "no tensor": (lambda: HardReplay().extend({"x": "a"}, Y), "x must be a tensor with a row dimension, or a tuple"),
    "y 2-d": (
        lambda: HardReplay().extend(X, Y[:, None]),
        r"y must be labels \[n\], class probabilities .* got \[8, 1\]",
    ),
    "another width": (lambda: after_a_step().extend(X[:, :1], Y), r"x must have rows of shape \[2\] .* got \[1\]"),
    "probabilities after labels": (
        lambda: after_a_step().extend(X, torch.eye(CLASSES)[Y]),
        "y must hold labels or triples like the carried rows, .* got class probabilities",
    ),
    "no extend": (lambda: HardReplay().keep(X, Y, torch.zeros(8, 4)), r"with N = 0 \(the rows that extend returned\)"),
    "logits": (lambda: kept(logits=torch.zeros(7, 4)), r"logits must have shape \[N, C\] with N = 8 .* got \[7, 4\]"),
    "3-d": (
        lambda: kept(logits=torch.zeros(8, 4, 2)),
        r"logits must have shape \[N, C\] with N = 8 .* got \[8, 4, 2\]",
    ),
    "x": (lambda: kept(x=X[1:]), "x must have the 8 rows that extend returned, got 7"),
    "y": (lambda: kept(y=Y[1:]), "y must have the 8 rows that extend returned, got 7"),
    "pair": (lambda: kept(y=(Y, Y[1:], 0.5)), r"the tensors in y must have as many rows .* got \[8, 7\]"),
    "int": (lambda: kept(logits=torch.zeros(8, 4).int()), "logits must be a floating-point tensor, got torch.int32"),
    "score": (lambda: kept(score=torch.zeros(9)), r"cross_entropy must have shape \[8\] \(from logits\), got \[9\]"),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_arguments_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
