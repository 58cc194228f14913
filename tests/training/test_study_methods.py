"""Each method of the study against its published formula in plain PyTorch, and what it does to a training."""

import pytest
import torch
import torch.nn.functional as F
from programs import squares, study_methods, study_regimes, study_run

CPU = torch.device("cpu")
ROWS, CLASSES, EPOCHS = 24, 7, 4
LABELS = torch.arange(ROWS) % CLASSES


def randn(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(method, predict=None, **settings):
    at = study_methods.Setting(LABELS, CLASSES, EPOCHS, predict, torch.Generator().manual_seed(0))
    loss, past = study_methods.METHODS[method].make(at, **settings)
    loss.set_epoch(0)
    return loss, past


def step(loss, past, logits, rows):
    """One batch of new rows; the loss and its gradient."""
    x, y, from_past = past.extend(rows[:, None].float(), LABELS[rows], rows)
    logits = logits[: len(x)].clone().requires_grad_()
    value, stats = loss(logits, y, from_past, return_stats=True)
    value.backward()
    past.keep(x, y, logits.detach(), stats.cross_entropy, rows)
    return value.detach(), logits.grad, y, x[:, 0].long()


def check(value, gradient, logits, formula):
    logits = logits[: len(gradient)].double().requires_grad_()
    expected = formula(logits)
    expected.backward()
    torch.testing.assert_close(gradient.double(), logits.grad, atol=2e-4, rtol=2e-2)
    return value.double() - expected.detach()


def soft(probabilities, logits):
    """Cross-entropy with soft labels, mean over rows."""
    return -(probabilities.double() * logits.log_softmax(1)).sum(1).mean()


def test_label_smoothing():
    logits, rows = randn(ROWS, CLASSES), torch.arange(ROWS)
    value, gradient, y, _ = step(*make("smoothing", label_smoothing=0.1), logits, rows)
    targets = torch.full((ROWS, CLASSES), 0.1 / CLASSES) + 0.9 * F.one_hot(y, CLASSES)
    assert abs(check(value, gradient, logits, lambda z: soft(targets, z))) < 1e-5


@pytest.mark.parametrize("temperature", [20, 0.5])  # at 20 the teacher is nearly uniform whatever it is
def test_tf_kd_has_the_virtual_teacher(temperature):
    logits, rows = randn(ROWS, CLASSES), torch.arange(ROWS)
    value, gradient, y, _ = step(*make("tf-kd", alpha=0.1, temperature=temperature), logits, rows)
    teacher = torch.where(F.one_hot(y, CLASSES) > 0, 0.99, 0.01 / (CLASSES - 1))
    targets = 0.9 * F.one_hot(y, CLASSES) + 0.1 * (teacher / temperature).softmax(1)
    assert abs(check(value, gradient, logits, lambda z: soft(targets, z))) < 1e-5


def test_ols_takes_the_mean_of_the_rows_that_were_right():
    loss, past = make("ols", alpha=0.5)
    first, rows = randn(ROWS, CLASSES), torch.arange(ROWS)
    first[LABELS == 3, 3] = -50.0  # class 3 is never right
    value, gradient, *_ = step(loss, past, first, rows)
    assert abs(check(value, gradient, first, lambda z: F.cross_entropy(z, LABELS))) < 1e-5
    loss.set_epoch(1)
    table = F.one_hot(torch.arange(CLASSES)).float()
    right = first.argmax(1) == LABELS
    assert right.any()
    for label in range(CLASSES):
        if (of_class := right & (label == LABELS)).any():
            table[label] = first[of_class].softmax(1).mean(0)
    assert torch.equal(table[3], F.one_hot(torch.tensor(3), CLASSES).float())
    logits = randn(ROWS, CLASSES, seed=1)
    value, gradient, *_ = step(loss, past, logits, rows)
    targets = 0.5 * F.one_hot(LABELS, CLASSES) + 0.5 * table[LABELS]
    assert abs(check(value, gradient, logits, lambda z: soft(targets, z))) < 1e-5


def test_ps_kd_blends_each_rows_own_last_prediction():
    loss, past = make("ps-kd", alpha=0.8)
    predictions = F.one_hot(LABELS, CLASSES).float()
    for epoch in range(EPOCHS):
        loss.set_epoch(epoch)
        logits = randn(ROWS, CLASSES, seed=epoch)
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch))
        share = 0.8 * (epoch + 1) / EPOCHS
        targets = (1 - share) * F.one_hot(LABELS[order], CLASSES) + share * predictions[order]
        value, gradient, *_ = step(loss, past, logits, order)
        check(value, gradient, logits, lambda z, targets=targets: soft(targets, z))
        predictions[order] = logits.softmax(1)


def distilled(z, teacher, temperature):
    """T^2 KL(teacher || student), both softened, mean over the rows of teacher."""
    log_p = (z / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(log_p, (teacher.double() / temperature).softmax(1), reduction="batchmean")


def test_dlb_repeats_every_row_and_distils_it_from_its_last_logits():
    loss, past = make("dlb", past_weight=1.0, fraction=1)
    first, second = torch.arange(8), torch.arange(8, 16)
    before = randn(16, CLASSES)
    step(loss, past, before, first)
    logits = randn(16, CLASSES, seed=1)
    value, gradient, y, seen = step(loss, past, logits, second)
    assert seen[:8].equal(second)
    assert seen[8:].sort().values.equal(first)
    teacher = before[seen[8:]]
    formula = lambda z: F.cross_entropy(z, y) + distilled(z[8:], teacher, 3.0)  # noqa: E731
    assert abs(check(value, gradient, logits, formula)) < 1e-4


def test_toast_repeats_the_hardest_half():
    loss, past = make("toast", alpha=0.8, past_weight=1.0)
    first, second = torch.arange(8), torch.arange(8, 16)
    before = randn(16, CLASSES)
    step(loss, past, before, first)
    _, _, y, seen = step(loss, past, randn(16, CLASSES, seed=1), second)
    hardest = F.cross_entropy(before[:8], LABELS[:8], reduction="none").topk(4).indices
    assert set(seen[8:].tolist()) == set(hardest.tolist())
    assert y.equal(LABELS[seen])


def test_cs_kd_distils_from_another_image_of_the_class():
    asked = []

    def predict(rows):
        asked.append(rows)
        return randn(ROWS, CLASSES, seed=9)[rows]

    loss, past = make("cs-kd", predict, past_weight=1.0, temperature=4.0)
    rows = torch.arange(ROWS).flip(0)
    logits = randn(ROWS, CLASSES)
    value, gradient, y, _ = step(loss, past, logits, rows)
    assert LABELS[asked[0]].equal(y)
    assert (asked[0] != rows).all()
    teacher = randn(ROWS, CLASSES, seed=9)[asked[0]]
    formula = lambda z: F.cross_entropy(z, y) + distilled(z, teacher, 4.0)  # noqa: E731
    assert abs(check(value, gradient, logits, formula)) < 1e-4


def test_every_classmate_comes_and_one_that_is_alone_is_its_own():
    labels = torch.tensor([0, 1, 0, 2, 0, 1])
    past = study_methods.Classmates(labels, 4.0, None, torch.Generator().manual_seed(0))
    drawn = torch.stack([past.classmates(torch.arange(6)) for _ in range(40)])
    assert [set(column.tolist()) for column in drawn.T] == [{2, 4}, {5}, {0, 4}, {3}, {0, 2}, {1}]


def test_published_settings_come_first_and_all_have_as_many_trials():
    methods = study_methods.METHODS
    own = {name: method.trials for name, method in methods.items() if method.budget == 1}
    assert {len(trials) for trials in own.values()} == {study_methods.TRIALS}
    assert own["toast"][0] == {"alpha": 0.8, "past_weight": 1}
    assert own["ps-kd"][0] == {"alpha": 0.8}
    assert own["dlb"][0] == {"past_weight": 1, "fraction": 1}
    assert own["cs-kd"][0] == {"past_weight": 1, "temperature": 4}


@pytest.fixture(scope="module")
def data():
    return squares(60, 30, 30)


def spec(method, regime="base", seed=0, **settings):
    method_settings = (study_methods.METHODS[method].trials or ({},))[0]
    settings = {"lr": 0.01, "weight_decay": 0.02, **method_settings, **settings}
    return study_run.Spec("squares", 6, 16, "cnn", 20, 4, regime, method, study_run.write_settings(settings), seed)


@pytest.mark.parametrize("method", study_methods.METHODS)
def test_the_forward_rows_of_each_method(data, method):
    entry = study_methods.METHODS[method]
    result, curve = study_run.Run(spec(method), data, CPU).run()
    assert tuple(result) == study_run.COLUMNS
    assert result["steps"] == 12 * entry.budget
    assert result["new_rows"] == 240 * entry.budget
    assert result["forward_rows"] == result["new_rows"] * entry.rows
    assert [row["epoch"] for row in curve] == list(range(1, result["trained_epochs"] + 1))
    assert tuple(curve[0]) == study_run.CURVE_COLUMNS
    assert 0 <= result["test_top1"] <= 1


def test_the_same_spec_gives_the_same_numbers(data):
    first, again = (study_run.Run(spec("cs-kd", "noise-40"), data, CPU).run()[0] for _ in range(2))
    assert first | {"seconds": 0} == again | {"seconds": 0}


@pytest.mark.parametrize("method", ["ce", "dlb", "toast"])
def test_mixed_images(data, method):
    result, _ = study_run.Run(spec(method, "cutmix"), data, CPU).run()
    assert result["forward_rows"] == result["new_rows"] * study_methods.METHODS[method].rows


def test_a_mixed_image_is_a_hit_by_the_share_of_its_label(data):
    run, seen = study_run.Run(spec("dlb", "mixup"), data, CPU), []
    criterion = run.criterion

    def recording(logits, y, past, **options):
        loss, stats = criterion(logits, y, past, **options)
        seen.append((stats.argmax.tolist(), *(part.tolist() for part in y)))
        return loss, stats

    run.criterion = recording
    for rows in run.epoch_batches():
        run.train_step(rows)
    hits = 0
    for argmax, y_a, y_b, lam in seen:
        for row in range(20):  # the new ones come first
            hits += lam[row] * (argmax[row] == y_a[row]) + (1 - lam[row]) * (argmax[row] == y_b[row])
    assert run.sums[1].item() == pytest.approx(hits)
    assert run.sums[2] == 60


def test_what_mixed_images_have_no_meaning_for_is_refused(data):
    with pytest.raises(ValueError, match=r"ps-kd is not defined for mixed images \(mixup\)"):
        study_run.Run(spec("ps-kd", "mixup"), data, CPU)


def test_long_trainings_have_few_points_on_their_curves(data):
    run = study_run.Run(spec("ce", "epochs-x8"), data, CPU)
    assert run.options.epochs == 32
    _, curve = run.run()
    assert len(curve) == study_run.CURVE_POINTS
    assert curve[-1]["epoch"] == 32


def test_settings_survive_being_written():
    settings = {"weight_decay": 0.02, "alpha": 0.8, "fraction": 1}
    assert study_run.write_settings(settings) == "alpha=0.8 fraction=1 weight_decay=0.02"
    assert study_run.read_settings(study_run.write_settings(settings)) == settings


@pytest.mark.parametrize(("regime", "rows"), [("half", 30), ("quarter", 12), ("base", 60)])
def test_a_share_of_every_class_stays(data, regime, rows):
    under = study_regimes.apply(study_regimes.REGIMES[regime], data, seed=0)
    assert under.train.labels.bincount().tolist() == [rows // 6] * 6
    assert under.test is data.test
    run = study_run.Run(spec("ce", regime), data, CPU)
    assert run.options.epochs * rows == 240  # as many images as under the base


def test_the_share_differs_by_seed_and_not_by_method(data):
    quarter = study_regimes.REGIMES["quarter"]
    first, same, other = (study_regimes.apply(quarter, data, seed).train.images for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_noise_changes_as_many_labels_as_it_says_and_only_training_ones(data):
    under = study_regimes.apply(study_regimes.REGIMES["noise-40"], data, seed=0)
    assert torch.equal(under.train.images, data.train.images)
    assert (under.train.labels != data.train.labels).sum() == 24
    assert under.train.labels.max() < 6
    assert under.val is data.val


def test_imbalance_goes_down_to_a_tenth(data):
    under = study_regimes.apply(study_regimes.REGIMES["imbalance"], data, seed=0)
    counts = under.train.labels.bincount().sort(descending=True).values.tolist()
    assert counts == [round(10 * 0.1 ** (rank / 5)) for rank in range(6)]


def test_no_augmentation_leaves_images_as_they_are(data):
    run = study_run.Run(spec("ce", "no-augmentation"), data, CPU)
    images = data.train.images[:3]
    assert torch.equal(run.inputs(images), images / 255 * 2 - 1)
