"""ToastLoss.linear: the dense form's numbers where both apply, medoids of features, top-k soft targets and replay."""

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from toast_kernels import (
    HardReplay,
    MedoidBank,
    PredictionMemory,
    SoftTargets,
    ToastLoss,
    TopPredictions,
    linear_toast_loss,
    toast_loss,
)

EXACT = {"dtype": torch.float64, "pool_dtype": torch.float64}


def rows_of(classes, width, rows=24, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(classes, (rows,), generator=generator)


def head_of(classes, width, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(classes, width, generator=generator, dtype=torch.float64).to(dtype)


def targets_of(kind, labels, classes):
    if kind == "triples":
        return labels, labels.roll(1), torch.linspace(0, 1, len(labels))
    if kind == "probabilities":
        return 0.95 * F.one_hot(labels, classes).double() + 0.05 * F.one_hot(labels.roll(1), classes).double()
    if kind == "ignored":
        return labels.masked_fill(torch.arange(len(labels)) % 5 == 2, -100)
    return labels


@pytest.mark.parametrize("kind", ["labels", "triples", "probabilities", "ignored"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight": torch.linspace(0.5, 2, 7, dtype=torch.float64), "reduction": "none"},
        {"correct_only": True, "reduction": "sum"},
        {"pool_rows": 61, "metric": "cosine"},
        {"max_rows_per_class": 3, "soft_temperature": 2.5},
    ],
    ids=["plain", "weights", "correct only", "too small a pool", "a reservoir"],
)
@pytest.mark.filterwarnings("ignore:pool_rows = 61 rows fit")
def test_with_the_identity_for_a_head_it_is_the_dense_form(settings, kind):
    """Classes without a row, rows that find no room, and a reservoir included: rows go to the same places."""
    classes = 7
    identity = torch.eye(classes, dtype=torch.float64)
    dense, linear = (ToastLoss(classes, num_epochs=3, top_k=classes, **EXACT, **settings) for _ in range(2))
    for epoch in range(3):
        dense.set_epoch(epoch)
        linear.set_epoch(epoch)
        for step in range(3):
            x, labels = rows_of(classes - (epoch == 0), classes, seed=3 * epoch + step)
            target, upstream = targets_of(kind, labels, classes), torch.linspace(1, 2, len(x), dtype=torch.float64)
            results = []
            for loss_of in (dense, lambda x, y, **more: linear.linear(x, identity, y, **more)):
                leaf = x.clone().requires_grad_()
                loss, stats = loss_of(leaf, target, return_stats=True)
                loss.backward(upstream if loss.dim() else None)
                results.append((loss.detach(), leaf.grad, *stats))
            for one, other in zip(*results, strict=True):
                torch.testing.assert_close(one, other)
        assert linear.bank.num_rows == dense.bank.num_rows == 72
    for criterion in (dense, linear):
        criterion.set_epoch(3)
    assert torch.equal(linear.bank.medoids, dense.bank.medoids)
    assert (linear.bank.medoids >= 0).any()
    for name in ("values", "indices", "entropy", "filled"):
        torch.testing.assert_close(getattr(linear, name), getattr(dense, name))


@pytest.mark.parametrize(("classes", "width"), [(40, 5), (3, 17)])
@pytest.mark.parametrize("bias", [False, True])
def test_soft_targets_are_the_medoids_predictions_and_medoids_those_of_the_features(bias, classes, width):
    top_k, alpha, temperature = 3, 0.6, 1.5
    weight, bias = head_of(classes, width), torch.linspace(-1, 1, classes, dtype=torch.float64) if bias else None
    criterion = ToastLoss(classes, num_epochs=2, alpha=alpha, top_k=top_k, soft_temperature=temperature, **EXACT)
    criterion.set_epoch(0)
    batches = [rows_of(classes, width, rows=50, seed=seed) for seed in range(2)]
    for x, y in batches:
        found = criterion.linear(x, weight, y, None, bias)
        torch.testing.assert_close(found, F.cross_entropy(F.linear(x, weight, bias), y))
    criterion.set_epoch(1)

    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    logits, table = F.linear(x, weight, bias), torch.zeros(classes, classes, dtype=torch.float64)
    for c in range(classes):
        rows = np.flatnonzero(y.numpy() == c)
        if not len(rows):
            assert criterion.bank.medoids[c] == -1
            continue
        distances = cdist(x[rows].numpy(), x[rows].numpy()).sum(1)
        assert criterion.bank.medoids[c] in rows[distances <= distances.min() * (1 + 1e-9)]  # of two rows either may be
        probs = (logits[criterion.bank.medoids[c]] / temperature).softmax(0)
        listed = probs.topk(top_k)
        table[c] = (1 - listed.values.sum()) / max(1, classes - top_k)
        table[c, listed.indices] = listed.values
    torch.testing.assert_close(criterion.soft_targets.dense(), table)
    entropy = torch.special.entr(criterion.soft_targets.dense()).sum(1)
    torch.testing.assert_close(criterion.entropy[criterion.filled], entropy[criterion.filled])

    leaf, head = x.clone().requires_grad_(), weight.clone().requires_grad_()
    soft = SoftTargets.from_probs(table, filled=criterion.filled)
    expected = toast_loss(F.linear(leaf, head, bias), y, soft_targets=soft, alpha=alpha, backend="reference")
    truth = torch.autograd.grad(expected, [leaf, head])
    found = criterion.linear(leaf, head, y, linear_bias=bias)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)  # alpha is float32
    for one, other in zip(torch.autograd.grad(found, [leaf, head]), truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("target", ["labels", "triples"])
def test_replay_of_predictions_is_that_of_logits(target):
    """The rows carried, their past predictions and the losses; new rows alone are pooled."""
    classes, width, top_k = 30, 6, 4
    weight = head_of(classes, width)
    replays = HardReplay(top_k=top_k), HardReplay(top_k=top_k)
    dense, linear = (ToastLoss(classes, num_epochs=2, top_k=top_k + 2, **EXACT) for _ in range(2))
    for epoch in range(2):
        dense.set_epoch(epoch)
        linear.set_epoch(epoch)
        if epoch:  # the same soft targets: those of the linear form come from other medoids
            dense.soft_targets = linear.soft_targets
        for step in range(3):
            x, y = rows_of(classes, width, seed=3 * epoch + step)
            y = targets_of(target, y, classes)
            (x_dense, y_dense, past_dense), (x_linear, y_linear, past) = (replay.extend(x, y) for replay in replays)
            assert torch.equal(x_dense, x_linear)
            logits = F.linear(x_dense, weight)
            expected, stats = dense(logits, y_dense, past_dense, return_stats=True)
            found, linear_stats, predictions = linear.linear(
                x_linear, weight, y_linear, past, return_stats=True, return_top_k=True
            )
            torch.testing.assert_close(found, expected)
            assert predictions.logits.shape == (36, top_k + 2)
            replays[0].keep(x_dense, y_dense, logits, stats.cross_entropy)
            replays[1].keep(x_linear, y_linear, predictions, linear_stats.cross_entropy)
    assert linear.bank.num_rows == 72
    one, other = (replay.extend(*rows_of(classes, width))[2] for replay in replays)
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.targets.indices, other.targets.indices)
    torch.testing.assert_close(one.targets.dense(), other.targets.dense())
    torch.testing.assert_close(one.targets.entropy, other.targets.entropy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_memory_of_predictions_is_that_of_logits(dtype):
    classes, width = 30, 6
    x, y = rows_of(classes, width, dtype=dtype)
    weight = head_of(classes, width, dtype=dtype)
    logits = F.linear(x, weight)
    _, predictions = linear_toast_loss(x, weight, y, return_top_k=5, temperature=2.0)
    memories = [PredictionMemory(24, classes, top_k=3, temperature=2.0) for _ in range(2)]
    sample = torch.randperm(24)
    memories[0].keep(sample, logits)
    memories[1].keep(sample, predictions)
    one, other = (memory.past(torch.arange(24)).targets for memory in memories)
    torch.testing.assert_close(one.values, other.values, rtol=1e-5, atol=1e-6)
    assert (one.indices == other.indices).float().mean() > 0.9  # of equal logits any may be listed
    diverged = predictions.first(2)._replace(logits=torch.zeros(2, 5), logsumexp=torch.tensor([torch.nan, torch.inf]))
    memories[1].keep(sample[:2], diverged)
    assert torch.equal(other.values, memories[1].past(torch.arange(24)).targets.values)


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_an_evaluation_pools_nothing_and_is_plain_cross_entropy(how):
    weights = torch.rand(30, dtype=torch.float64)
    criterion = ToastLoss(30, num_epochs=2, top_k=3, weight=weights, label_smoothing=0.1, **EXACT)
    x, y = rows_of(30, 6)
    weight = head_of(30, 6)
    criterion.set_epoch(0)
    criterion.linear(x, weight, y)
    criterion.set_epoch(1)
    logits = F.linear(x, weight)
    expected = F.cross_entropy(logits, y, weights, label_smoothing=0.1)
    criterion.train(how != "eval")
    with torch.set_grad_enabled(how == "eval"):
        torch.testing.assert_close(criterion.linear(x, weight, y), expected)
        torch.testing.assert_close(criterion(logits, y), expected)
        loss, predictions = criterion.linear(x, weight, y, return_top_k=True)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(predictions.indices, logits.topk(3).indices)
    assert criterion.bank.num_rows == 0
    trained, stats = criterion.train().linear(x, weight, y, return_stats=True)
    assert (trained - expected).abs() > 0.1
    torch.testing.assert_close(stats.logsumexp, logits.logsumexp(1))


@pytest.mark.filterwarnings("ignore:the soft targets are nearly one-hot")
def test_rows_without_a_finite_prediction_are_not_pooled():
    criterion = ToastLoss(30, num_epochs=2, top_k=3, **EXACT)
    criterion.set_epoch(0)
    weight = 1e200 * head_of(30, 6)
    x, _ = rows_of(30, 6, rows=4)
    x[:2] *= 1e200  # finite, and their logits are not
    criterion.linear(x, weight, torch.arange(4))
    criterion.set_epoch(1)
    assert criterion.bank.medoids[:5].tolist() == [-1, -1, 2, 3, -1]
    assert criterion.filled.nonzero()[:, 0].tolist() == [2, 3]


def test_autocast_features_of_another_dtype():
    criterion = ToastLoss(30, num_epochs=2, top_k=3)
    x, y = rows_of(30, 6, dtype=torch.float32)
    weight = head_of(30, 6, dtype=torch.float32).requires_grad_()
    for epoch in range(2):
        criterion.set_epoch(epoch)
        with torch.autocast("cpu", torch.bfloat16):
            loss = criterion.linear(x, weight, y)
        loss.backward()
    assert weight.grad.dtype == torch.float32
    assert criterion.filled.any()


class Model(nn.Module):
    """Features, a head and the loss; replays in every step."""

    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 30)
        self.criterion = ToastLoss(30, top_k=4, num_epochs=4, **settings)
        self.replay = HardReplay(top_k=4)

    def run(self, first, last):
        """Steps, three an epoch; their losses."""
        losses = []
        for step in range(first, last):
            self.criterion.set_epoch(step // 3)
            x, y, past = self.replay.extend(*rows_of(30, 6, seed=step, dtype=torch.float32))
            loss, stats, predictions = self.criterion.linear(
                self.body(x), self.head.weight, y, past, self.head.bias, return_stats=True, return_top_k=True
            )
            self.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter -= 0.1 * parameter.grad
            self.replay.keep(x, y, predictions, stats.cross_entropy)
            losses.append(loss.item())
        return losses


@pytest.mark.parametrize("stop", [2, 3, 8], ids=lambda step: f"after step {step}")
def test_training_resumes_to_the_bit(stop):
    settings = {"num_features": 6, "pool_rows": 80, "save_pool": True}
    model = Model(**settings)
    expected = model.run(0, 11)
    model = Model(**settings)
    model.run(0, stop)
    file = io.BytesIO()
    torch.save([model.state_dict(), model.replay.state_dict()], file)
    file.seek(0)
    fresh = Model(**settings)
    state, replay_state = torch.load(file, weights_only=True)
    fresh.load_state_dict(state)
    fresh.replay.load_state_dict(replay_state)
    assert fresh.run(stop, 11) == expected[stop:]
    again = copy.deepcopy(fresh)
    assert again.run(11, 12) == fresh.run(11, 12)


def test_without_the_pool_the_state_is_that_of_the_dense_form():
    model = Model()
    model.run(0, 4)
    state = model.criterion.state_dict()
    assert state.keys() == ToastLoss(30, top_k=4).state_dict().keys()
    resumed = Model()
    resumed.criterion.load_state_dict(state)
    assert torch.equal(resumed.criterion.soft_targets.dense(), model.criterion.soft_targets.dense())


def test_compiled_it_pools_and_gives_the_same_loss():
    torch._dynamo.reset()
    eager, compiled = (ToastLoss(30, num_epochs=2, top_k=3) for _ in range(2))
    x, y = rows_of(30, 6, dtype=torch.float32)
    weight = head_of(30, 6, dtype=torch.float32)
    step = torch.compile(lambda x: compiled.linear(x, weight, y), backend="eager")
    for epoch in range(2):
        for criterion, loss_of in ((eager, lambda x: eager.linear(x, weight, y)), (compiled, step)):
            criterion.set_epoch(epoch)
            leaf = x.clone().requires_grad_()
            loss_of(leaf).backward()
            criterion.found = leaf.grad
        torch.testing.assert_close(compiled.found, eager.found)
    assert compiled.bank.num_rows == 24


def test_a_dry_run_leaves_no_trace():
    criterion = after(nothing)
    with FakeTensorMode(allow_non_fake_inputs=True):
        logsumexp = torch.zeros(3, dtype=torch.float64)
        indices = torch.zeros(3, 3, dtype=torch.int64)
        fake = TopPredictions(torch.zeros(3, 3), indices, logsumexp, logsumexp, logsumexp, 30)
        criterion.bank.update(torch.zeros(3, 6), indices[:, 0], fake)
        assert criterion.linear(*(torch.zeros_like(x) for x in (X, WEIGHT, Y))).shape == ()
    assert criterion.linear(X.to("meta"), WEIGHT.to("meta"), Y.to("meta")).is_meta
    assert criterion.bank.num_features is None
    assert not criterion.alpha.is_meta
    criterion.linear(X, WEIGHT, Y)
    assert criterion.bank.num_rows == 24
    criterion.set_epoch(1)
    assert criterion.linear(X, WEIGHT, Y).isfinite()


@pytest.mark.parametrize("settings", [{}, {"pool_rows": 50}, {"max_rows_per_class": 2}], ids=str)
def test_a_rejected_update_leaves_the_bank_as_it_was(settings):
    rejected = {
        "predictions of too few classes": (X, Y, predictions(2)),
        "other rows": (X[1:], Y[1:], predictions()),
        "a target of other rows": (X, Y[1:], predictions()),
        "a label out of range": (X, Y + 9, predictions()),
    }
    for arguments in rejected.values():
        bank = MedoidBank(30, top_k=3, **settings)
        with pytest.raises((ValueError, IndexError)):
            bank.update(*arguments)
        assert bank.num_features is None
        bank.update(X @ WEIGHT.T, Y)
        assert bank.num_rows == 24
    bank = MedoidBank(30, top_k=3, **settings)
    with pytest.raises(IndexError):
        bank.update(X @ WEIGHT.T, Y + 9)
    bank.update(X, Y, predictions())
    assert (bank.num_features, bank.num_rows) == (6, 24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_features": 4}, r"pool_of_rank_0.logits must have shape \[10, 3\] \(from num_features\), got \[10, 4\]"),
        ({"top_k": 5}, r"pool_of_rank_0.predictions must have shape \[10, 6\] \(from 2 \* top_k\), got \[10, 10\]"),
        ({"pool_rows": 9}, r"pool_of_rank_0.labels must have shape \[10\] \(from pool_rows\), got \[9\]"),
    ],
    ids=["num_features", "top_k", "pool_rows"],
)
def test_a_pool_of_another_size_names_the_setting(settings, message):
    own = {"num_features": 3, "top_k": 3, "pool_rows": 10, "save_pool": True}
    state = MedoidBank(30, **{**own, **settings}).state_dict()
    with pytest.raises(RuntimeError, match=message):
        MedoidBank(30, **own).load_state_dict(state)


@pytest.mark.parametrize("settings", [{}, {"pool_rows": 50}], ids=str)
def test_reset_parameters_makes_it_as_new(settings):
    criterion = after(lambda c: c.linear(X, WEIGHT, Y), **settings)
    criterion.set_epoch(1)
    criterion.linear(X, WEIGHT, Y)
    criterion.reset_parameters()
    assert criterion.bank.num_rows == 0
    assert criterion.bank.num_features is None
    assert criterion.bank.medoids.tolist() == [-1] * 30
    criterion.set_epoch(0)
    criterion(X @ WEIGHT.T, Y)
    criterion.reset_parameters()
    criterion.linear(X[:, 1:], WEIGHT[:, 1:], Y)
    assert (criterion.bank.num_features, criterion.bank.num_rows) == (5, 24)

    told = after(lambda c: c.linear(X, WEIGHT, Y), num_features=6, **settings)
    told.reset_parameters()
    assert (told.bank.num_features, told.bank.num_rows) == (6, 0)


def bytes_of(criterion):
    """What a loss and its bank hold between two epochs, the pool apart."""
    return sum(x.nbytes for x in criterion.buffers()) + criterion.bank.medoids.nbytes


def expected_bytes(classes, top_k, value):
    scalars = 4 + 8 + 4  # alpha, epoch, soft_temperature
    return classes * (top_k * (value + 4) + 4 + 1 + 8) + scalars  # entropy, filled and the medoids' positions


@pytest.mark.parametrize(("dtype", "value", "limit"), [(torch.bfloat16, 2, 143e6), (torch.float32, 4, 190e6)])
def test_the_bytes_of_a_bank(dtype, value, limit):
    small = Model(dtype=dtype)
    small.run(0, 4)
    small.criterion.bank.medoids = small.criterion.bank.medoids.clone()
    assert bytes_of(small.criterion) == expected_bytes(30, 4, value)
    with torch.device("meta"):
        large = ToastLoss(360_000, top_k=64, dtype=dtype)
    assert bytes_of(large) == expected_bytes(360_000, 64, value) <= limit


def test_the_bytes_of_a_pool():
    """2 D + 8 k of a row, and its label and position."""
    bank = MedoidBank(30, top_k=4, num_features=6, pool_rows=100)
    x, y = rows_of(30, 6, dtype=torch.float32)
    bank.update(x, y, linear_toast_loss(x, head_of(30, 6, dtype=torch.float32), y, return_top_k=4)[1])
    assert sum(part.nbytes for part in bank.pool.state().values()) == 100 * (2 * 6 + 8 * 4 + 16) + 24


X, Y = rows_of(30, 6, dtype=torch.float32)
WEIGHT = head_of(30, 6, dtype=torch.float32)


def after(call, **settings):
    """A training loss that was called once."""
    criterion = ToastLoss(30, num_epochs=2, **{"top_k": 3, **settings})
    criterion.set_epoch(0)
    call(criterion)
    return criterion


def predictions(top_k=3):
    return linear_toast_loss(X, WEIGHT, Y, return_top_k=top_k)[1]


def kept(top_k, **arguments):
    replay = HardReplay(top_k=top_k)
    x, y, _ = replay.extend(X[:16], Y[:16])
    replay.keep(x, y, predictions(), **arguments)


def nothing(_):
    pass


WRONG = {
    "no top_k": (lambda: ToastLoss(30).linear(X, WEIGHT, Y), ValueError, "top_k must be given .*, got None"),
    "top_k above C": (lambda: ToastLoss(30, top_k=31), ValueError, r"top_k must be an int in \[1, 30\].*got 31"),
    "input None": (
        lambda: after(nothing).linear(None, WEIGHT, Y),
        TypeError,
        "input must be a tensor, got NoneType",
    ),
    "weight None": (
        lambda: after(nothing).linear(X, None, Y),
        TypeError,
        "linear_weight must be a tensor, got NoneType",
    ),
    "logits of the loss None": (lambda: after(nothing)(None, Y), TypeError, "logits must be a tensor, got NoneType"),
    "input 3-d": (
        lambda: after(nothing).linear(X[None], WEIGHT, Y),
        ValueError,
        r"input must have shape \[N, D\], got \[1, 24, 6\]",
    ),
    "weight of other classes": (
        lambda: after(nothing).linear(X, WEIGHT[1:], Y),
        ValueError,
        r"linear_weight must have shape \[C, D\] with C = 30 \(num_classes\), got \[29, 6\]",
    ),
    "weight of another width": (
        lambda: after(nothing).linear(X, WEIGHT[:, 1:], Y),
        ValueError,
        r"linear_weight must have shape .* D = 6 \(from input\), got \[30, 5\]",
    ),
    "bias for past": (
        lambda: after(nothing).linear(X, WEIGHT, Y, WEIGHT[:, 0]),
        TypeError,
        "past must be what HardReplay.extend gave, got a torch.float32 tensor: linear_bias comes after it",
    ),
    "bias for past in evaluation": (
        lambda: after(lambda c: c.eval()).linear(X, WEIGHT, Y, WEIGHT[:, 0]),
        TypeError,
        "linear_bias comes after it",
    ),
    "features of another width": (
        lambda: after(lambda c: c.linear(X, WEIGHT, Y)).linear(X[:, 1:], WEIGHT[:, 1:], Y),
        ValueError,
        r"features must have shape \[N, D\] with D = 6, got \[24, 5\]",
    ),
    "logits after features": (
        lambda: after(lambda c: c.linear(X, WEIGHT, Y))(X @ WEIGHT.T, Y),
        ValueError,
        r"a ToastLoss that pools features \(num_features was given, or linear called\) is trained by linear",
    ),
    "features after logits": (
        lambda: after(lambda c: c(X @ WEIGHT.T, Y)).linear(X, WEIGHT, Y),
        ValueError,
        "a bank or loss that was given logits takes no features",
    ),
    "save_pool without num_features": (
        lambda: after(lambda c: c.linear(X, WEIGHT, Y), pool_rows=9, save_pool=True),
        ValueError,
        "num_features must be given where save_pool is",
    ),
    "num_features without top_k": (
        lambda: MedoidBank(30, num_features=6),
        ValueError,
        "top_k must be given where features are pooled",
    ),
    "num_features 0": (
        lambda: MedoidBank(30, top_k=3, num_features=0),
        ValueError,
        "num_features must be None or .* 0",
    ),
    "a label out of range": (
        lambda: MedoidBank(30, top_k=3).update(X, Y + 9, predictions()),
        IndexError,
        r"target must be in \[0, 30\) or ignore_index = -100, got 3",
    ),
    "predictions of too few classes": (
        lambda: MedoidBank(30, top_k=3).update(X, Y, predictions(2)),
        ValueError,
        "top_k must be at most the 2 classes of predictions, got 3",
    ),
    "predictions a tensor": (
        lambda: MedoidBank(30, top_k=3).update(X, Y, torch.zeros(3)),
        TypeError,
        "predictions must be TopPredictions or None, got a torch.float32 tensor",
    ),
    "logits None": (
        lambda: MedoidBank(30).update(None, Y),
        TypeError,
        "logits must be a floating-point tensor, got NoneType",
    ),
    "predictions of other classes": (
        lambda: MedoidBank(31, top_k=3).update(X, Y, predictions()),
        ValueError,
        r"predictions must be of 24 rows \(from features\) and 31 classes, got \[24\] and 30",
    ),
    "predictions of other rows": (
        lambda: MedoidBank(30, top_k=3).update(X[1:], Y[1:], predictions()),
        ValueError,
        r"predictions must be of 23 rows \(from features\) and 30 classes, got \[24\] and 30",
    ),
    "too many classes": (
        lambda: predictions()._replace(num_classes=2**24 + 1).packed(3, 1.0, X[:, 0]),
        ValueError,
        "predictions may be of 16777216 classes at most, got 16777217",
    ),
    "replay without cross-entropy": (lambda: kept(3), ValueError, "cross_entropy must be given with TopPredictions"),
    "replay without top_k": (
        lambda: kept(None, cross_entropy=X[:, 0]),
        ValueError,
        "top_k must be at most the 3 classes of predictions, got None",
    ),
    "replay of other rows": (
        lambda: kept(3, cross_entropy=X[:23, 0]),
        ValueError,
        r"cross_entropy must have shape \[24\]",
    ),
    "memory of other rows": (
        lambda: PredictionMemory(9, 30, top_k=3).keep(torch.arange(9), predictions()),
        ValueError,
        r"logits must have shape \[9, 30\] \(from sample and num_classes\), got \[24, 30\]",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_predictions_are_public():
    assert isinstance(predictions(), TopPredictions)
