"""Bad input: each message names the argument, what was expected and what came."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from optional import needs_triton

from toast_kernels import HardReplay, PredictionMemory, SoftTargets, ToastLoss, backends, toast_loss
from toast_kernels.blended_kl import plan

N, C = 4, 5
LOGITS = torch.zeros(N, C)
TARGET = torch.zeros(N, dtype=torch.int64)
PROBABILITIES = torch.full((N, C), 0.2)
SOFT = SoftTargets.from_probs(torch.full((C, C), 0.2))
PAST = SoftTargets.from_logits(torch.zeros(3, C), 3.0)
INDEX = torch.zeros(N, dtype=torch.int64)
META = torch.device("meta")
NAN = math.nan

# id: (arguments that differ from toast_loss(LOGITS, TARGET), exception, message)
WRONG = {
    "logits of integers": (
        {"logits": LOGITS.long()},
        TypeError,
        r"logits must be a float64, .* got a torch.int64 tensor",
    ),
    "logits not a tensor": ({"logits": [[0.0]]}, TypeError, r"logits must be .* tensor, got list"),
    "logits 0-d": ({"logits": torch.tensor(1.0)}, ValueError, r"logits must have shape \[C\], \[N, C\] .*, got \[\]"),
    "no classes": ({"logits": torch.zeros(N, 0)}, ValueError, r"with C >= 1, got \[4, 0\]"),
    "no classes, 1-d": ({"logits": torch.zeros(0)}, ValueError, r"with C >= 1, got \[0\]"),
    "target of the wrong length": ({"target": TARGET[1:]}, ValueError, r"target must have shape \[4\] .* got \[3\]"),
    "target with a dimension too many": ({"target": TARGET[:, None]}, ValueError, r"shape \[4\] .* got \[4, 1\]"),
    "labels without spatial dimensions": (
        {"logits": torch.zeros(N, C, 2)},
        ValueError,
        r"target must have shape \[4, 2\]",
    ),
    "target of 1-d logits": ({"logits": torch.zeros(C)}, ValueError, r"target must have shape \[\] .* got \[4\]"),
    "int16 labels": (
        {"target": TARGET.short()},
        TypeError,
        r"target must hold int64, int32 or uint8 labels, got a torch.int16",
    ),
    "bool labels": (
        {"target": TARGET.bool()},
        TypeError,
        r"target must hold int64, int32 or uint8 labels, .* torch.bool",
    ),
    "complex target": (
        {"target": TARGET.cfloat()},
        TypeError,
        r"target must hold int64.* torch.complex64",
    ),
    "target a list": ({"target": [0, 1]}, ValueError, r"target as a tuple must be \(y_a, y_b, lam\), got 2 items"),
    "target None": ({"target": None}, TypeError, r"target must be a tensor or a triple .* got NoneType"),
    "target elsewhere": (
        {"target": TARGET.to(META)},
        ValueError,
        r"target must be on the device of logits, cpu, got meta",
    ),
    "probabilities elsewhere": (
        {"target": PROBABILITIES.to(META)},
        ValueError,
        r"target must be on the device .* got meta",
    ),
    "probabilities misshapen": (
        {"target": PROBABILITIES[:, 1:]},
        ValueError,
        r"shaped like logits \[4, 5\], got \[4, 4\]",
    ),
    "probabilities and ignore_index": (
        {"target": PROBABILITIES, "ignore_index": 2},
        ValueError,
        r"ignore_index must be negative .* got 2",
    ),
    "pair": ({"target": (TARGET, TARGET)}, ValueError, r"target as a tuple must be \(y_a, y_b, lam\), got 2 items"),
    "triple of the wrong length": (
        {"target": (TARGET, TARGET[1:], 0.5)},
        ValueError,
        r"target\[1\] must have shape \[4\]",
    ),
    "triple with float labels": (
        {"target": (LOGITS, TARGET, 0.5)},
        TypeError,
        r"target\[0\] must hold int64",
    ),
    "triple elsewhere": ({"target": (TARGET, TARGET.to(META), 0.5)}, ValueError, r"target\[1\] must be on the device"),
    "lam above 1": (
        {"target": (TARGET, TARGET, 1.5)},
        ValueError,
        r"target\[2\] \(lam\) must be a number in \[0, 1\], got 1.5",
    ),
    "lam negative": (
        {"target": (TARGET, TARGET, -0.1)},
        ValueError,
        r"target\[2\] \(lam\) must be a number in \[0, 1\], got -0.1",
    ),
    "lam NaN": (
        {"target": (TARGET, TARGET, NAN)},
        ValueError,
        r"target\[2\] \(lam\) must be a number in \[0, 1\], got nan",
    ),
    "lam a tensor above 1": (
        {"target": (TARGET, TARGET, torch.tensor([0.5, 2.0, -1.0, 0.5]))},
        ValueError,
        r"target\[2\] \(lam\) must be in \[0, 1\], got values from -1.0 to 2.0",
    ),
    "lam a tensor with NaN": (
        {"target": (TARGET, TARGET, torch.tensor([0.5, NAN, 0.5, 0.5]))},
        ValueError,
        r"target\[2\] \(lam\) must be in \[0, 1\], got values from nan",
    ),
    "lam misshapen": (
        {"target": (TARGET, TARGET, torch.ones(3))},
        ValueError,
        r"target\[2\] \(lam\) .* shape \[4\], got \[3\]",
    ),
    "weight of the wrong length": (
        {"weight": torch.ones(3)},
        ValueError,
        r"weight must have shape \[C\] with C = 5 .* \[3\]",
    ),
    "weight 2-d": (
        {"weight": torch.ones(1, C)},
        ValueError,
        r"weight must have shape \[C\] with C = 5 .* got \[1, 5\]",
    ),
    "weight of integers": (
        {"weight": torch.ones(C).long()},
        TypeError,
        r"weight must be a floating-point tensor, got a torch.i",
    ),
    "weight a list": ({"weight": [1.0] * C}, TypeError, r"weight must be a floating-point tensor, got list"),
    "weight elsewhere": (
        {"weight": torch.ones(C, device=META)},
        ValueError,
        r"weight must be on the device of logits, cpu",
    ),
    "ignore_index a float": ({"ignore_index": 1.5}, TypeError, r"ignore_index must be an int, got 1.5"),
    "ignore_index None": ({"ignore_index": None}, TypeError, r"ignore_index must be an int, got None"),
    "ignore_index None with probabilities": (
        {"target": PROBABILITIES, "ignore_index": None},
        TypeError,
        r"ignore_index must be an int, got None",
    ),
    "label_smoothing above 1": (
        {"label_smoothing": 1.1},
        ValueError,
        r"label_smoothing must be a number in \[0, 1\], got 1.1",
    ),
    "label_smoothing to be learned": (
        {"label_smoothing": torch.tensor(0.1, requires_grad=True)},
        ValueError,
        "label_smoothing must not require grad: nothing gives it a gradient",
    ),
    "temperature to be learned": (
        {"temperature": torch.tensor(3.0, requires_grad=True)},
        ValueError,
        "temperature must not require grad: nothing gives it a gradient",
    ),
    "label_smoothing negative": (
        {"label_smoothing": -0.1},
        ValueError,
        r"label_smoothing must be a number in \[0, 1\], got -0.1",
    ),
    "label_smoothing NaN": (
        {"label_smoothing": NAN},
        ValueError,
        r"label_smoothing must be a number in \[0, 1\], got nan",
    ),
    "reduction": (
        {"reduction": "batchmean"},
        ValueError,
        r"reduction must be \"none\", \"mean\" or \"sum\", got 'batchmean'",
    ),
    "reduction None": ({"reduction": None}, ValueError, r"reduction must be .*, got None"),
    "label_smoothing None": (
        {"label_smoothing": None},
        TypeError,
        r"label_smoothing must be a number in \[0, 1\], got None",
    ),
    "temperature None": ({"temperature": None}, TypeError, r"temperature must be a number in \(0, inf\), got None"),
    "temperature 1-d": (
        {"temperature": torch.tensor([0.1, 0.2])},
        ValueError,
        r"temperature must be a number or a real 0-d tensor, got a torch.float32 tensor of shape \[2\]",
    ),
    "temperature a tensor of 0": (
        {"temperature": torch.tensor(0.0)},
        ValueError,
        r"temperature must be a number in \(0, inf\), got 0.0",
    ),
    "temperature 0": ({"temperature": 0.0}, ValueError, r"temperature must be a number in \(0, inf\), got 0.0"),
    "temperature negative": ({"temperature": -1}, ValueError, r"temperature must be a number in \(0, inf\), got -1"),
    "temperature NaN": ({"temperature": NAN}, ValueError, r"temperature must be a number in \(0, inf\), got nan"),
    "temperature infinite": (
        {"temperature": math.inf},
        ValueError,
        r"temperature must be a number in \(0, inf\), got inf",
    ),
    "lam a fraction": (
        {"target": (TARGET, TARGET, Fraction(1, 2))},
        TypeError,
        r"target\[2\] \(lam\) must be a number in \[0, 1\], got Fraction",
    ),
    "lam None": (
        {"target": (TARGET, TARGET, None)},
        TypeError,
        r"target\[2\] \(lam\) must be a number in \[0, 1\], got None",
    ),
    "alpha text": (
        {"alpha": "a", "soft_targets": SOFT},
        TypeError,
        r"alpha must be a number in \[0, 1\], got 'a'",
    ),
    "alpha complex": (
        {"alpha": torch.tensor(1j), "soft_targets": SOFT},
        ValueError,
        r"alpha must be a number or a real 0-d tensor, got a torch.complex64 tensor of shape \[\]",
    ),
    "alpha above 1": ({"alpha": 1.5, "soft_targets": SOFT}, ValueError, r"alpha must be a number in \[0, 1\], got 1.5"),
    "alpha negative": (
        {"alpha": -0.5, "soft_targets": SOFT},
        ValueError,
        r"alpha must be a number in \[0, 1\], got -0.5",
    ),
    "alpha NaN": ({"alpha": NAN, "soft_targets": SOFT}, ValueError, r"alpha must be a number in \[0, 1\], got nan"),
    "alpha a tensor above 1": (
        {"alpha": torch.tensor(2.0), "soft_targets": SOFT},
        ValueError,
        r"alpha must be a number in \[0, 1\], got 2.0",
    ),
    "alpha 1-d": (
        {"alpha": torch.ones(1), "soft_targets": SOFT},
        ValueError,
        r"alpha must be a number or a real 0-d tensor, got .* \[1\]",
    ),
    "soft_targets without alpha": (
        {"soft_targets": SOFT},
        ValueError,
        r"alpha must be given with soft_targets: their share, in \[0, 1\], got None",
    ),
    "alpha without soft_targets": ({"alpha": 0.5}, ValueError, r"alpha = 0.5 needs soft_targets, got None"),
    "past_weight negative": (
        {"past_weight": -1.0, "past": PAST, "past_index": INDEX},
        ValueError,
        r"past_weight must be a number in \[0, inf\), got -1.0",
    ),
    "past_weight NaN": (
        {"past_weight": NAN, "past": PAST, "past_index": INDEX},
        ValueError,
        r"past_weight must be a number in \[0, inf\), got nan",
    ),
    "past_weight infinite": (
        {"past_weight": math.inf, "past": PAST, "past_index": INDEX},
        ValueError,
        r"past_weight must be a number in \[0, inf\), got inf",
    ),
    "past_weight a list": (
        {"past_weight": [1]},
        TypeError,
        r"past_weight must be a number in \[0, inf\), got \[1\]",
    ),
    "past_weight 1-d": (
        {"past_weight": torch.ones(2)},
        ValueError,
        r"past_weight must be a number or a real 0-d tensor, .* \[2\]",
    ),
    "soft_targets a tensor": (
        {"soft_targets": SOFT.values},
        TypeError,
        r"soft_targets must be SoftTargets, got a torch.float32",
    ),
    "soft_targets of other rows": (
        {"soft_targets": SOFT[torch.arange(3)]},
        ValueError,
        r"one row of C probabilities per class with C = 5 .* got 3 rows of 5",
    ),
    "soft_targets of other classes": (
        {"soft_targets": SoftTargets.empty(C, 7)},
        ValueError,
        r"soft_targets must have one row .* got 5 rows of 7",
    ),
    "soft_targets elsewhere": (
        {"soft_targets": SOFT.to(META)},
        ValueError,
        r"soft_targets must be on the device of logits, cpu, got meta",
    ),
    "soft_targets with probabilities": (
        {"soft_targets": SOFT, "alpha": 0.5, "target": PROBABILITIES},
        ValueError,
        r"looked up by label, but target holds class prob",
    ),
    "past of another temperature": (
        {"past": PAST, "past_index": INDEX, "temperature": 2.0},
        ValueError,
        r"softened at temperature 3.0, but temperature is 2.0",
    ),
    "past of other classes": (
        {"past": torch.zeros(N, 6)},
        ValueError,
        r"past must have C = 5 classes \(from logits\), got 6",
    ),
    "past a list": ({"past": [0.0]}, TypeError, r"past must be SoftTargets or a tensor of logits, got list"),
    "past of integers": (
        {"past": torch.zeros(N, C).long()},
        TypeError,
        r"past must be SoftTargets or a tensor of logits, got a",
    ),
    "past 0-d": ({"past": torch.tensor(0.0)}, TypeError, r"past must be SoftTargets or a tensor of logits"),
    "past elsewhere": (
        {"past": torch.zeros(N, C, device=META)},
        ValueError,
        r"past must be on the device of logits, cpu, got meta",
    ),
    "past of other rows": (
        {"past": PAST},
        ValueError,
        r"past_index may be left out only if past has a row for each of the 4 rows .* 3",
    ),
    "past_index without past": ({"past_index": INDEX}, ValueError, r"past_index needs past, got None"),
    "past_index of floats": (
        {"past": PAST, "past_index": INDEX.float()},
        TypeError,
        r"past_index must be an int64 or int32 tensor, got a",
    ),
    "past_index a list": (
        {"past": PAST, "past_index": [0] * N},
        TypeError,
        r"past_index must be an int64 or int32 tensor, got list",
    ),
    "past_index misshapen": (
        {"past": PAST, "past_index": INDEX[1:]},
        ValueError,
        r"past_index must have the labels' shape \[4\], got \[3\]",
    ),
    "past_index elsewhere": (
        {"past": PAST, "past_index": INDEX.to(META)},
        ValueError,
        r"past_index must be on the device of logits, cpu, got meta",
    ),
    "past_index out of range": (
        {"past": PAST, "past_index": INDEX + 3},
        IndexError,
        r"past_index\[0\] = 3 is out of range \[0, 3\) and not -1",
    ),
    "label out of range": (
        {"target": TARGET + 5},
        IndexError,
        r"target\[0\] = 5 is out of range \[0, 5\) and not -100",
    ),
    "unknown backend": (
        {"backend": "gpu"},
        ValueError,
        r"backend must be one of 'auto', 'reference', 'cpu', 'triton', 'cuda', got 'gpu'",
    ),
    "triton backend on a device that is no GPU": (
        {"logits": LOGITS.to(META), "target": TARGET.to(META), "backend": "triton"},
        ValueError,
        r"backend \"triton\" needs tensors on a GPU, got tensors on meta",
    ),
    "cpu backend elsewhere": (
        {"logits": LOGITS.to(META), "target": TARGET.to(META), "backend": "cpu"},
        ValueError,
        r"backend \"cpu\" needs tensors on the CPU, got tensors on meta",
    ),
}


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        pytest.param(*wrong, id=what, marks=[needs_triton] * (wrong[0].get("backend") == "triton"))
        for what, wrong in WRONG.items()
    ],
)
def test_wrong_arguments(arguments, exception, message):
    with pytest.raises(exception, match=message):
        toast_loss(**{"logits": LOGITS, "target": TARGET, **arguments})


def test_the_arguments_that_the_wrong_ones_differ_from_are_right():
    for backend in ("cpu", "reference"):
        assert toast_loss(LOGITS, TARGET, backend=backend).isfinite()
        everything = {"soft_targets": SOFT, "alpha": 0.5, "past": PAST, "past_index": INDEX}
        assert toast_loss(LOGITS, TARGET, torch.ones(C), backend=backend, **everything).isfinite()
        assert toast_loss(LOGITS, PROBABILITIES, ignore_index=-1, backend=backend).isfinite()
        assert toast_loss(LOGITS, (TARGET, TARGET, 1), backend=backend).isfinite()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_numpys_numbers_are_numbers(backend):
    """And are kept as Python's: what reads a setting later meets no surprise."""
    target = torch.tensor([0, 1, 2, 3])
    given = {"ignore_index": np.int64(2), "temperature": np.float32(2), "past_weight": np.float64(0.5), "past": LOGITS}
    plain = {name: value if name == "past" else value.item() for name, value in given.items()}
    logits = torch.arange(N * C).reshape(N, C).sin()
    assert toast_loss(logits, target, backend=backend, **given) == toast_loss(logits, target, backend=backend, **plain)
    assert type(HardReplay(ignore_index=np.int64(-1)).ignore_index) is int
    criterion = ToastLoss(np.int64(C), ignore_index=np.int64(-1), num_epochs=np.int64(3))
    assert type(criterion.bank.num_classes) is type(criterion.bank.ignore_index) is int
    assert type(PredictionMemory(np.int64(2), np.int64(3)).targets.num_classes) is int


def test_a_missing_backend_is_asked_for_by_name_or_replaced(monkeypatch):
    """backend="cpu" says why it is not there and what mends it; "auto" takes the next one."""
    plan._plans.clear()  # those of the kernels that are there
    monkeypatch.setattr(backends, "_C", None)
    monkeypatch.setattr(backends, "_WHY_NO_CPU_KERNELS", "no compiler was found", raising=False)
    with pytest.raises(RuntimeError, match=r'backend "cpu" is not available: .*no compiler was found.*reinstall'):
        toast_loss(LOGITS, TARGET, backend="cpu")
    torch.testing.assert_close(toast_loss(LOGITS, TARGET), torch.tensor(math.log(C)))
    plan._plans.clear()


def test_the_reference_needs_no_kernel_and_takes_other_devices():
    loss = toast_loss(LOGITS.to(META), TARGET.to(META))
    assert loss.device == META
    assert loss.shape == ()
