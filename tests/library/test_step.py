"""A whole step of HardReplay and ToastLoss: it waits for nothing, does the same every time, and fits a CUDA graph."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from toast_kernels import HardReplay, ToastLoss

CLASSES, WIDTH, BATCH = 7, 5, 8
EXAMPLE = Path(__file__).parents[2] / "examples" / "cuda_graph_step.py"


def batch(seed, device="cpu", triple=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, WIDTH, generator=generator).to(device)
    y, y_b = torch.randint(CLASSES, (2, BATCH), generator=generator).to(device)
    y[seed % BATCH] = -100
    return (x, (y, y_b, torch.rand(BATCH, generator=generator).to(device))) if triple else (x, y)


def one_step(model, criterion, replay, x, y):
    x, y, past = replay.extend(x, y)
    logits = model(x)
    loss, stats = criterion(logits, y, past, return_stats=True)
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    replay.keep(x, y, logits, stats.cross_entropy)
    return loss.detach()


def make(device="cpu", **settings):
    torch.manual_seed(0)
    settings = settings if "max_rows_per_class" in settings else {"pool_rows": 50, **settings}
    return nn.Linear(WIDTH, CLASSES).to(device), ToastLoss(CLASSES, **settings).to(device)


@pytest.mark.parametrize("triple", [False, True], ids=["labels", "triple"])
@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize(
    "settings", [{}, {"correct_only": True}, {"max_rows_per_class": 3}], ids=["plain", "correct only", "reservoir"]
)
@pytest.mark.filterwarnings("ignore:ToastLoss keeps a copy")
def test_nothing_waits(top_k, triple, settings):
    """On the device "meta" there are no values: what would look at one raises."""
    model, criterion = make("meta", top_k=top_k, **settings)
    criterion.bank.pool.allocate("meta")
    replay = HardReplay(max_age=2, distil_fraction=0.5, top_k=top_k)
    for number in range(3):
        one_step(model, criterion, replay, *batch(number, "meta", triple))
    with pytest.raises(RuntimeError):
        int(criterion.bank.num_rows)


def state_of(value):
    """What a later step could depend on: of a tensor where it lies, and not what is in it."""
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.dtype
    if isinstance(value, dict):
        return {name: state_of(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [state_of(part) for part in value]
    return state_of(vars(value)) if hasattr(value, "__dict__") and not isinstance(value, type) else repr(value)


@pytest.mark.parametrize("triple", [False, True], ids=["labels", "triple"])
@pytest.mark.parametrize("settings", [{}, {"max_age": 3}, {"top_k": 2}], ids=["plain", "max_age", "top-k"])
def test_from_step_to_step_only_tensors_change(settings, triple):
    """Which a CUDA graph needs: it repeats what it saw Python do once. In the second step the past is used first."""
    model, criterion = make()
    replay = HardReplay(**settings)
    criterion.set_epoch(0, 2)
    states = []
    for number in range(6):
        one_step(model, criterion, replay, *batch(number, triple=triple))
        states.append((state_of(replay), state_of(criterion.bank)))
    assert all(state == states[1] for state in states[1:])
    assert criterion.bank.num_rows == 6 * BATCH


def test_the_check_of_the_state_notices():
    """Without pool_rows the rows are counted in Python."""
    criterion = ToastLoss(CLASSES)
    criterion.set_epoch(0, 2)
    for number in range(4):
        before = state_of(criterion.bank)
        criterion(torch.randn(2, CLASSES), torch.tensor([1, 2]))
        assert number == 0 or state_of(criterion.bank) != before


@pytest.mark.parametrize(
    ("what", "pool_rows"),
    [
        ("model and loss", None),
        ("whole step", 200),
        pytest.param("model and loss", 200, marks=pytest.mark.more),
        pytest.param("whole step", None, marks=pytest.mark.more),
    ],
)
def test_compiled_once_for_all_steps_of_an_epoch(what, pool_rows, request):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    request.addfinalizer(torch.compiler.reset)  # else another test's compilations count towards the same limit
    torch.manual_seed(0)
    model, criterion, replay = nn.Linear(WIDTH, CLASSES), ToastLoss(CLASSES, pool_rows=pool_rows), HardReplay()
    forward = torch.compile(lambda x, y, past: (model(x), criterion(model(x), y, past)), backend=backend)

    def model_and_loss(x, y):
        x, y, past = replay.extend(x, y)
        logits, loss = forward(x, y, past)
        loss.backward()
        replay.keep(x, y, logits)

    whole = torch.compile(lambda x, y: one_step(model, criterion, replay, x, y), backend=backend)
    torch._dynamo.utils.counters.clear()
    step = model_and_loss if what == "model and loss" else whole
    for epoch in range(4):
        criterion.set_epoch(epoch, 4)
        counts = []
        for number in range(5):
            step(*batch(number))
            counts.append(len(graphs))
        settled = 1 if epoch == 0 else 0  # the first step has no past yet; the second epoch has soft targets
        assert len(set(counts[settled:])) == 1, counts
    if what == "model and loss":
        assert len(torch._dynamo.utils.counters["graph_break"]) == 1  # the pooling, and no other reason
    assert criterion.bank.num_rows == 5 * BATCH


def example():
    spec = importlib.util.spec_from_file_location("cuda_graph_step", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))],
)
def test_the_example_trains_as_an_ordinary_loop_does(device):
    """On a GPU: what a graph of the whole step replays is what the steps do one by one."""

    def parts():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES)).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, capturable=device == "cuda")
        return model, optimizer, ToastLoss(CLASSES, pool_rows=10 * BATCH).to(device), HardReplay(max_age=2)

    trainer = example().Trainer(*parts(), *batch(0, device))
    model, optimizer, criterion, replay = parts()
    for epoch in range(3):
        trainer.criterion.set_epoch(epoch, 3)
        criterion.set_epoch(epoch, 3)
        for number in range(10):
            x, y = batch(10 * epoch + number, device)
            found = trainer.step(x, y).clone()
            x, y, past = replay.extend(x, y)
            logits = model(x)
            loss, stats = criterion(logits, y, past, return_stats=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            replay.keep(x, y, logits, stats.cross_entropy)
            torch.testing.assert_close(found, loss.detach(), rtol=0 if device == "cpu" else 1e-4, atol=0)
        assert (trainer.graph is None) == (device == "cpu")
        assert trainer.criterion.bank.num_rows == criterion.bank.num_rows == 10 * BATCH
    for one, other in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0 if device == "cpu" else 1e-3, atol=0 if device == "cpu" else 1e-5)


def test_the_example_runs(capsys):
    example().main()
    printed = capsys.readouterr().out
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in printed.splitlines() if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < 0.7 * losses[0]
    assert ("no GPU here" in printed) == (not torch.cuda.is_available())
