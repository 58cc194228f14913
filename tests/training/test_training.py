"""A training in this process, on tiny made data: stopped after any step it goes on bit for bit."""

import pytest
import torch
from programs import options, squares, training

CPU = torch.device("cpu")
SETTINGS = ["--epochs", "3", "--batch-size", "16", "--lr", "0.01", "--alpha", "0.8", "--past-weight", "1"]


@pytest.fixture(scope="module")
def data():
    return squares(150, 30, 60)


def make(data, method, *arguments):
    chosen = options.parser().parse_args([*SETTINGS, *arguments])
    return training.Training(data, method, seed=1, options=chosen, device=CPU)


def run(trained, path, stop_after=None):
    """To the end, or until `stop_after` steps are done."""

    def should_stop():
        return trained.steps_done == stop_after

    trained.run(path, on_step=lambda _: None, on_epoch=lambda _: None, should_stop=should_stop)
    return trained


def assert_same(left, right):
    """Equal in every bit, times and memory aside."""
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left.keys() - {"part_seconds", "wall_seconds", "peak_bytes"}:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for pair in zip(left, right, strict=True):
            assert_same(*pair)
    else:
        assert left == right


@pytest.mark.parametrize("stop_after", [1, 10, 17], ids=lambda steps: f"after-{steps}")
@pytest.mark.parametrize("augment", ["none", "mixup", "cutmix"])
@pytest.mark.parametrize("method", options.METHODS)
def test_a_stopped_training_goes_on_bit_for_bit(data, tmp_path, method, augment, stop_after):
    whole = run(make(data, method, "--augment", augment), tmp_path / "whole.pt")
    assert whole.steps_per_epoch == 10

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(training.Interrupted):
        run(make(data, method, "--augment", augment), path, stop_after)
    torch.rand(7)  # another program state in between
    resumed = make(data, method, "--augment", augment)
    resumed.load(path)
    assert resumed.steps_done == stop_after
    run(resumed, path)
    assert_same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize(("amp", "stop_after"), [("off", 4), ("off", 6), ("bf16", 6)])
def test_the_linear_form_goes_on_bit_for_bit(tmp_path, amp, stop_after):
    """On fewer images, as bfloat16 is slow on a CPU."""
    data, arguments = squares(60, 12, 12), ("toast", "--top-k", "4", "--augment", "mixup", "--amp", amp)
    whole = run(make(data, *arguments), tmp_path / "whole.pt")
    assert whole.steps_per_epoch == 4
    with pytest.raises(training.Interrupted):
        run(make(data, *arguments), tmp_path / "checkpoint.pt", stop_after)
    resumed = make(data, *arguments)
    resumed.load(tmp_path / "checkpoint.pt")
    run(resumed, tmp_path / "checkpoint.pt")
    assert_same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("method", ["ce", "stage2"])
def test_the_linear_form_of_all_classes_is_the_dense_one(data, tmp_path, method):
    """Where no medoids of features take part, to rounding."""
    found = [run(make(data, method, *more), tmp_path / "at.pt").record for more in ([], ["--top-k", "6"])]
    for dense, linear in zip(*(record.history for record in found), strict=True):
        assert linear["train_ce"] == pytest.approx(dense["train_ce"], rel=1e-3)
        assert linear["nll"] == pytest.approx(dense["nll"], rel=1e-2)


def test_dropout_goes_on_with_the_same_units(data, tmp_path):
    def with_dropout():
        trained = make(data, "ce")
        trained.model.insert(len(trained.model) - 1, torch.nn.Dropout(0.3))
        return trained

    whole = run(with_dropout(), tmp_path / "whole.pt")
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(training.Interrupted):
        run(with_dropout(), path, stop_after=14)
    resumed = with_dropout()
    resumed.load(path)
    assert_same(run(resumed, path).state_dict(), whole.state_dict())


def test_another_seed_has_another_order(data):
    other = make(data, "toast")
    other.record.seed = 2
    assert not torch.equal(other.epoch_order(), make(data, "toast").epoch_order())


def test_an_epoch_gives_every_training_image_once(data):
    trained = make(data, "ce")
    batches = trained.epoch_batches()
    assert torch.cat(batches).sort().values.equal(torch.arange(150))
    assert {len(batch) for batch in batches} == {15}


@pytest.mark.parametrize("method", options.METHODS)
def test_the_rows_each_method_sees(data, tmp_path, method):
    record = run(make(data, method), tmp_path / "checkpoint.pt").record
    assert (record.steps, record.fresh_rows) == (30, 450)
    replayed = 29 * round(0.5 * 15) if options.METHODS[method][1] else 0
    assert record.replayed_rows == replayed
    assert (record.medoids is not None) == options.METHODS[method][0]
    alphas = [epoch["alpha"] for epoch in record.history]
    expected = [0.8 / 3, 1.6 / 3, 0.8] if options.METHODS[method][0] else [0, 0, 0]
    assert alphas == pytest.approx(expected)


def test_without_anything_added_it_is_plain_cross_entropy(data, tmp_path):
    """The same loop with F.cross_entropy in place of the library's loss: the curves agree."""
    ours = run(make(data, "ce"), tmp_path / "ours.pt")
    theirs = make(data, "ce")

    class Plain(torch.nn.Module):
        alpha = torch.tensor(0.0)

        def set_epoch(self, *_):
            pass

        def forward(self, logits, y, past, return_stats):
            rows = torch.nn.functional.cross_entropy(logits, y, reduction="none")
            stats = type("Stats", (), {"cross_entropy": rows.detach(), "argmax": logits.argmax(dim=1)})
            return rows.mean(), stats

    theirs.criterion = Plain()
    run(theirs, tmp_path / "theirs.pt")
    for a, b in zip(ours.record.history, theirs.record.history, strict=True):
        assert a["train_ce"] == pytest.approx(b["train_ce"], rel=1e-3)


def test_medoids_are_training_images_of_their_class(data, tmp_path):
    medoids = run(make(data, "toast"), tmp_path / "checkpoint.pt").record.medoids
    assert data.train.labels[medoids.image].tolist() == list(range(6))
    assert (medoids.leaning != torch.arange(6)[:, None]).all()
    torch.testing.assert_close(medoids.own + medoids.share.sum(dim=1), torch.ones(6))


def test_it_learns(data, tmp_path):
    for method in ("ce", "toast"):
        record = run(make(data, method, "--epochs", "8"), tmp_path / f"{method}.pt").record
        assert record.test["top1"] > 0.8
