"""Seeded inputs for the tests of blended_kl, and one way to run them: kernel, naive code and float64 truth."""

from dataclasses import dataclass, replace

import torch
from tolerances import assert_as_good_as_naive

from toast_kernels import SoftTargets, functional

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
KERNELS = ("cpu", "triton", "cuda")
BACKENDS = ("reference", *KERNELS)
kernels_under_test = "auto"
ENCODINGS = (None, "dense", "bfloat16", "top-k", "logits")


def name(value):
    """A short id of a parameter."""
    return str(value).removeprefix("torch.")


def normal(*shape, seed, scale=3.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table(encoding, rows, classes, temperature, seed, dtype=torch.float32, filled=None):
    """SoftTargets of random logits in one of ENCODINGS."""
    if encoding is None:
        return None
    logits = normal(min(rows, 61), classes, seed=seed).to(dtype)[torch.arange(rows) % 61]
    if encoding == "logits":
        made = SoftTargets.view_logits(logits, temperature)
        return made if filled is None else replace(made, filled=filled)
    half = torch.bfloat16 if encoding == "bfloat16" else None
    top_k = min(classes, 5) if encoding == "top-k" else None
    return SoftTargets.from_logits(logits, temperature, top_k=top_k, dtype=half, filled=filled)


def device_of(backend):
    """GPU kernels run on the GPU there is, else on the CPU: interpreter.py, cuda_kernels.py."""
    return "cuda" if backend in ("triton", "cuda") and torch.cuda.is_available() else "cpu"


def moved(value, device):
    if isinstance(value, torch.Tensor | SoftTargets):
        return value.to(device)
    return tuple(moved(x, device) for x in value) if isinstance(value, tuple) else value


def toast_loss(*arguments, backend=None, **keywords):
    """functional.toast_loss, on tensors on the CPU, on the backend's device; result and gradients on the CPU again. By
    default on the kernels under test (the fixture of conftest.py)."""
    backend = backend or kernels_under_test
    device = device_of(backend)
    arguments = moved(arguments, device)
    keywords = {key: moved(value, device) for key, value in keywords.items()}
    result = functional.toast_loss(*arguments, backend=backend, **keywords)
    if isinstance(result, tuple):
        return result[0].cpu(), functional.ToastStats(*(x.cpu() for x in result[1]))
    return result.cpu()


def in_float64(rows):
    """The same SoftTargets with everything that the reference derives from their values worked out in float64."""
    if rows.encoding == "logits":
        return replace(SoftTargets.view_logits(rows.values.double(), rows.temperature), filled=rows.filled)
    return rows if rows.encoding == "dense" else replace(rows, values=rows.values.double())


@dataclass(frozen=True)
class Case:
    """What a test varies. Row 1 is ignored, row 2 has no past, class 0 has no soft target; where there are as many."""

    rows: int
    classes: int
    dtype: torch.dtype = torch.float32
    soft: str | None = None
    past: str | None = None
    target: str = "labels"  # "mixup", "probabilities"
    weighted: bool = False
    alpha: float = 0.3
    past_weight: float = 1.0
    temperature: float = 3.0
    label_smoothing: float = 0.0
    reduction: str = "mean"
    seed: int = 0

    def arguments(self):
        """logits, target and the keyword arguments of toast_loss."""
        n, c = self.rows, self.classes
        generator = torch.Generator().manual_seed(self.seed)
        logits = normal(n, c, seed=self.seed + 1).to(self.dtype)
        y_a, y_b = torch.randint(0, c, (2, n), generator=generator)
        if n > 1:
            y_a[1] = y_b[1] = -100
        if n > 3:
            y_b[3] = -100
        target = y_a
        if self.target == "mixup":
            target = (y_a, y_b, torch.rand(n, generator=generator))
        elif self.target == "probabilities":
            target = normal(n, c, seed=self.seed + 2).softmax(1).to(self.dtype)
        keywords = {
            "weight": torch.rand(c, generator=generator) + 0.1 if self.weighted else None,
            "temperature": self.temperature,
            "label_smoothing": self.label_smoothing,
            "reduction": self.reduction,
        }
        if self.soft:
            filled = torch.ones(c, dtype=torch.bool)
            filled[0] = c == 1
            wide = torch.promote_types(self.dtype, torch.float32)
            keywords["soft_targets"] = table(self.soft, c, c, 1.5, self.seed + 3, wide, filled)
            keywords["alpha"] = self.alpha
        if self.past:
            dtype = self.dtype if self.past == "logits" else torch.promote_types(self.dtype, torch.float32)
            keywords["past"] = past = table(self.past, 4, c, self.temperature, self.seed + 4, dtype)
            if self.dtype == torch.float64:  # bfloat16 rows keep a float32 entropy
                keywords["past"] = replace(past, entropy=torch.special.entr(past.dense().double()).sum(1))
            index = torch.randint(0, 4, (n,), generator=generator)
            index[2 : 2 + n // 4] = -1
            keywords["past_index"] = index
            keywords["past_weight"] = self.past_weight
        return logits, target, keywords

    def leaf_on(self, device):
        """`arguments` on a device, the logits a leaf that wants a gradient."""
        logits, target, keywords = self.arguments()
        keywords = {key: moved(value, device) for key, value in keywords.items()}
        return logits.to(device).requires_grad_(), moved(target, device), keywords

    def upstream(self):
        shape = (self.rows,) if self.reduction == "none" else ()
        return torch.rand(shape, generator=torch.Generator().manual_seed(self.seed + 5), dtype=torch.float64) * 2 - 0.5


def run(logits, target, upstream, keywords, backend):
    """Loss, gradient for this upstream, and stats."""
    logits = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    loss, stats = toast_loss(logits, target, return_stats=True, backend=backend, **keywords)
    loss.backward(upstream.to(loss.dtype))
    return loss.detach(), logits.grad, stats


def in_truth(logits, target, upstream, keywords):
    """run in float64 through the reference."""
    keywords = {k: in_float64(v) if isinstance(v, SoftTargets) else v for k, v in keywords.items()}
    if isinstance(target, torch.Tensor) and target.is_floating_point():
        target = target.double()
    return run(logits.double(), target, upstream, keywords, "reference")


def check(case, kernel="cpu"):
    """The kernel's loss, gradient and stats, which are as good as naive PyTorch's."""
    logits, target, keywords = case.arguments()
    upstream = case.upstream()
    actual, naive = (run(logits, target, upstream, keywords, backend) for backend in (kernel, "reference"))
    truth = in_truth(logits, target, upstream, keywords)
    assert_runs_as_good(actual, naive, truth, case)
    return actual


def assert_runs_as_good(actual, naive, truth, case):
    # The past term is T^2 times a difference of entropies, which are at most log C.
    large = torch.tensor(case.classes + 1.0).log() * (case.past_weight * case.temperature**2 if case.past else 1)
    many = case.rows if case.reduction == "sum" else 1
    assert_as_good_as_naive(
        actual[0], naive[0], truth[0], scale=many * (large + truth[0].nan_to_num(0, 0, 0).abs()), what=f"loss of {case}"
    )
    # An element of the gradient is a difference of probabilities, times lambda T in the past term.
    mass = 1 + (case.past_weight * case.temperature if case.past else 0)
    mass = mass / max(case.rows, 1) if case.reduction == "mean" else mass
    assert_as_good_as_naive(actual[1], naive[1], truth[1], scale=mass, what=f"gradient of {case}")
    for field in ("cross_entropy", "logsumexp"):
        a, b, c = (getattr(x[2], field) for x in (actual, naive, truth))
        assert_as_good_as_naive(a, b, c, what=f"{field} of {case}")
    assert torch.equal(actual[2].argmax, truth[2].argmax), f"argmax of {case}"


def assert_a_cuda_graph_replays(case, backend):
    """The loss and its gradient, for logits that come after the capture."""
    logits, target, keywords = case.leaf_on("cuda")

    def step():
        logits.grad = None
        loss = functional.toast_loss(logits, target, backend=backend, **keywords)
        (loss * 0.5).backward()
        return loss

    with torch.cuda.stream(torch.cuda.Stream()):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    gradient = logits.grad
    with torch.no_grad():
        logits.copy_(logits.flip(0))
    graph.replay()
    replayed = captured.clone(), gradient.clone()
    expected = step().detach(), logits.grad
    assert all(torch.equal(one, other) for one, other in zip(replayed, expected, strict=True))
