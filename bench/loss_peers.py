"""What else a user could call for toast_loss: the same loss by other means, each checked before it is timed.

"eager" and "torch.compile" are written as users write them. "tuned torch.compile" is the strongest that we could make
of torch: loss and gradient by hand in one compiled function, with nothing computed twice, and no autograd. In all of
them the rows with a past are the last ones, as HardReplay puts them, so that a slice takes them.
"""

import torch
import torch.nn.functional as F
from harness import nothing
from peers import compiled, left_out, normal, random_labels
from results import DEVICE, OURS

from toast_kernels import SoftTargets, toast_loss
from toast_kernels.arguments import Arguments
from toast_kernels.backends import missing
from toast_kernels.blended_kl.cuda import held

TEMPERATURE, ALPHA = 3.0, 0.4
TUNED, PLAIN = "tuned torch.compile", "F.cross_entropy alone"
# How far a peer may be from ours, as in `disagreement`. A few times what eager's float32 sums over 100,000 classes were
# found to be off (1.3e-5, 6e-5, 9e-5, 1e-6); of bfloat16 gradients a last bit may differ here and there.
BOUNDS = {
    torch.float32: {"norm": 1e-4, "row": 3e-4, "element": 1e-3, "loss": 1e-5},
    torch.bfloat16: {"norm": 1e-3, "row": 5e-3, "element": 1e-3, "loss": 1e-5},
}
# These round more than the gradient to bfloat16: log-probabilities and loss, and the rows' losses.
LOW_PRECISION = {
    "F.cross_entropy": {"norm": 1e-2, "row": 2e-2, "element": 3e-2, "loss": 2e-2},
    "Liger": {"norm": 1e-3, "row": 5e-3, "element": 1e-3, "loss": 1e-2},
}


def disagreement(loss, gradient, expected_loss, expected):
    """How far loss and gradient are from what is expected: of the gradient's norm, of the norm of the worst row, of
    an element (the mean, so that small elements count as large ones do), and of the loss."""
    difference, expected = gradient.float() - expected.float(), expected.float()
    return {
        "norm": (difference.norm() / expected.norm()).item(),
        "row": (difference.norm(dim=1) / expected.norm(dim=1)).max().item(),
        "element": (difference.abs() / expected.abs().clamp(min=1e-30)).clamp(max=1).mean().item(),
        "loss": abs(loss.item() / expected_loss.item() - 1),
    }


class Loss:
    """A loss of a batch of logits by us and by peers, and the bytes and flops it needs.

    peers: {name: function of the logits}. with_gradient_by_hand: {name: function of the logits that gives loss and
    gradient}, of peers that need no autograd.
    """

    others = ()  # peers that compute another loss
    alpha = 0.0
    soft = past = None
    # For each logit: maximum, difference, exponential, sum; and p, less the target.
    flops = {"forward": 4, "forward + backward": 6}  # noqa: RUF012

    def __init__(self, rows, classes, dtype):
        self.size, self.classes = f"{rows} x {classes}", classes
        self.logits = normal(rows, classes, dtype=dtype).requires_grad_()
        self.target = random_labels(rows, classes)
        self.columns = torch.arange(classes, device=DEVICE)
        self.first_past = rows  # rows from this one on have a past
        self.peers = {}
        self.with_gradient_by_hand = {TUNED: compiled(self.tuned)}
        self.before = {}  # {peer: what is to be done before each call, untimed}

    @property
    def held(self):
        """Whether the CUDA kernel would hold the rows in registers."""
        given = dict.fromkeys(Arguments._fields) | {"logits": self.logits, "target": self.target}
        return held(Arguments(**given | {"soft_targets": self.soft, "past": self.past}))

    def torch_peers(self, name):
        """`self.eager` under this name, and compiled. On a GPU, where compilers take seconds for each, tuned only."""
        plain = {"torch.compile": compiled(lambda logits: self.eager(logits.float()))} if DEVICE.type == "cpu" else {}
        return {name: self.eager, **plain, TUNED: compiled(self.tuned_forward)}

    def forward_bytes(self):
        return self.logits.numel() * self.logits.element_size()

    def bytes(self, work):
        """Everything read once, and the gradient written once."""
        gradient = self.logits.numel() * self.logits.element_size() if "backward" in work else 0
        return self.forward_bytes() + gradient

    def cases(self, work):
        case = self.gradient_case if "backward" in work else self.forward_case
        return {name: case(name) for name in self.peers}

    def forward_case(self, name):
        def run():
            with torch.no_grad():
                return self.peers[name](self.logits)

        return run

    def gradient_case(self, name):
        return lambda: self.loss_and_gradient(name)[1]

    def loss_and_gradient(self, name):
        if name in self.with_gradient_by_hand:
            return self.with_gradient_by_hand[name](self.logits.detach())
        loss = self.peers[name](self.logits)
        return loss, torch.autograd.grad(loss, self.logits)[0]

    def tuned(self, logits):
        """Loss and gradient, by hand."""
        rows, loss, gradients = len(logits), 0.0, []
        for start, end in ((0, self.first_past), (self.first_past, rows)):
            if start == end:
                continue
            z, target = logits[start:end].float(), self.target[start:end]
            lse = z.logsumexp(1, keepdim=True)
            hard = torch.where(self.columns == target[:, None], 1 - self.alpha, 0.0)
            soft, soft_slope, soft_sum = self.soft_term(z, target)
            total = 1 - self.alpha + soft_sum
            loss = loss + ((total * lse).sum() - (1 - self.alpha) * z.gather(1, target[:, None]).sum() - soft) / rows
            gradient = (total * (z - lse).exp() - hard - soft_slope) / rows
            if start > 0:
                past, past_slope = self.past_term(z)
                loss, gradient = loss + past / (rows - start), gradient + past_slope / (rows - start)
            gradients.append(gradient.to(logits.dtype))
        return loss, torch.cat(gradients) if len(gradients) > 1 else gradients[0]

    def tuned_forward(self, logits):
        return self.tuned(logits)[0]  # the compiler drops the gradient

    def soft_term(self, z, target):
        """alpha <S, z>, summed over the rows, its gradient, and a row's alpha sum(S)."""
        return 0.0, 0.0, 0.0

    def check(self, works=("forward", "forward + backward")):
        """Every peer has our loss and our gradient; and, where that is to be timed too, our loss without a gradient."""
        expected = self.loss_and_gradient(OURS)
        for name in self.peers.keys() - set(self.others):
            self.before.get(name, nothing)()
            loss, gradient = self.loss_and_gradient(name)
            losses, gradient = {"loss or gradient": loss}, gradient.clone()  # which `before` may write over
            if "forward" in works:
                self.before.get(name, nothing)()
                losses["loss without a gradient"] = self.forward_case(name)()
            bounds = BOUNDS[gradient.dtype]
            if gradient.dtype == torch.bfloat16:
                bounds = LOW_PRECISION.get(name, bounds)
            for what, its_loss in losses.items():
                for measure, error in disagreement(its_loss, gradient, *expected).items():
                    assert error <= bounds[measure], f"{name} has another {what}: {measure} off by {error:.1e}"


class CrossEntropy(Loss):
    """Nothing added."""

    def __init__(self, rows, classes, dtype):
        super().__init__(rows, classes, dtype)
        self.peers = {
            OURS: lambda logits: toast_loss(logits, self.target),
            **self.torch_peers("F.cross_entropy"),
        }
        if not left_out("liger_kernel"):
            self.add_liger()

    def eager(self, logits):
        return F.cross_entropy(logits, self.target)

    def add_liger(self):
        """It writes the gradient over the logits: it gets a copy of them, which is not timed."""
        from liger_kernel.transformers.functional import liger_cross_entropy

        scratch = self.logits.detach().clone().requires_grad_()

        def with_gradient(_):
            loss = liger_cross_entropy(scratch, self.target)
            return loss, torch.autograd.grad(loss, scratch)[0]

        self.peers["Liger"] = lambda _: liger_cross_entropy(scratch.detach(), self.target)
        self.with_gradient_by_hand["Liger"] = with_gradient
        self.before["Liger"] = lambda: scratch.detach().copy_(self.logits.detach())


class Blended(Loss):
    """As in training: dense soft targets for all classes, a past for half of the rows, T = 3."""

    others = (PLAIN,)
    alpha = ALPHA
    # And 2, then 2, for S. For half of the rows 6, then 4: z / T, difference, exponential, sum, <Q, z>; and p, less Q,
    # scaled, added.
    flops = {"forward": 9, "forward + backward": 15}  # noqa: RUF012

    def __init__(self, rows, classes, dtype):
        super().__init__(rows, classes, dtype)
        self.first_past = rows // 2
        self.soft = SoftTargets.from_logits(normal(classes, classes, dtype=dtype, seed=2))
        self.past = SoftTargets.from_logits(normal(rows - self.first_past, classes, dtype=dtype, seed=3), TEMPERATURE)
        self.past_index = torch.arange(rows, device=DEVICE).sub_(self.first_past).clamp_(min=-1)
        probabilities = self.past.values.float()
        # Constants, found once, as ours finds the entropy. In bfloat16 a row need not add up to 1.
        self.past_entropy = -torch.xlogy(probabilities, probabilities).sum()
        self.past_sum = probabilities.sum(1, keepdim=True)
        self.soft_sum = ALPHA * self.soft.values.sum(1, keepdim=True, dtype=torch.float32)
        self.peers = {
            OURS: self.ours,
            **self.torch_peers("eager"),
            PLAIN: lambda logits: F.cross_entropy(logits, self.target),
        }

    def forward_bytes(self):
        """The logits, a past for half of the rows, and each soft target that is used, once."""
        rows_read = len(self.target.unique()) + len(self.past)
        return super().forward_bytes() + rows_read * self.classes * self.soft.values.element_size()

    def ours(self, logits):
        return toast_loss(
            logits, self.target, soft_targets=self.soft, alpha=ALPHA, past=self.past, past_index=self.past_index
        )

    def eager(self, logits):
        logits = logits.float()
        log_p = F.log_softmax(logits, 1)
        hard = F.nll_loss(log_p, self.target)
        soft = -(self.soft.values[self.target] * log_p).sum(1).mean()
        past = F.kl_div(
            F.log_softmax(logits[self.first_past :] / TEMPERATURE, 1), self.past.values.float(), reduction="batchmean"
        )
        return (1 - ALPHA) * hard + ALPHA * soft + TEMPERATURE**2 * past

    def soft_term(self, z, target):
        soft = ALPHA * self.soft.values[target].float()
        return (soft * z).sum(), soft, self.soft_sum[target]

    def past_term(self, z):
        """T^2 KL(Q || softmax(z / T)), summed over the rows, and its gradient."""
        z, past = z / TEMPERATURE, self.past.values.float()
        lse = z.logsumexp(1, keepdim=True)
        loss = TEMPERATURE**2 * ((self.past_sum * lse).sum() - (past * z).sum() - self.past_entropy)
        return loss, TEMPERATURE * (self.past_sum * (z - lse).exp() - past)


class TopK(Loss):
    """Soft targets of k listed classes, for as many classes that a dense table would not fit."""

    others = ("toast_kernels without soft targets",)
    alpha = ALPHA
    flops = {"forward": 5, "forward + backward": 8}  # noqa: RUF012  (1 each for the classes that are not listed)

    def __init__(self, rows, classes, dtype, k=64):
        super().__init__(rows, classes, dtype)
        self.size += f", k = {k}"
        generator = torch.Generator(DEVICE).manual_seed(4)
        self.soft = SoftTargets.empty(classes, classes, top_k=k, device=DEVICE)
        self.soft.filled.fill_(True)
        self.soft.values[self.target] = torch.rand(rows, k, generator=generator, device=DEVICE) / k
        picks = torch.rand(rows, classes, generator=generator, device=DEVICE).topk(k, dim=1).indices
        self.soft.indices[self.target] = picks.sort(dim=1).values.int()
        self.peers = {
            OURS: lambda logits: toast_loss(logits, self.target, soft_targets=self.soft, alpha=ALPHA),
            **self.torch_peers("eager"),
            "toast_kernels without soft targets": lambda logits: toast_loss(logits, self.target),
        }

    def eager(self, logits):
        log_p = F.log_softmax(logits.float(), 1)
        values, indices, rest = self.listed(self.target)
        soft = -((values - rest) * log_p.gather(1, indices)).sum(1) - rest[:, 0] * log_p.sum(1)
        return (1 - ALPHA) * F.nll_loss(log_p, self.target) + ALPHA * soft.mean()

    def listed(self, target):
        """The listed classes of each row's soft target, and what is left for each of the others."""
        values, indices = self.soft.values[target], self.soft.indices[target].long()
        return values, indices, (1 - values.sum(1, keepdim=True)) / (self.classes - values.shape[1])

    def soft_term(self, z, target):
        values, indices, rest = self.listed(target)
        loss = ((values - rest) * z.gather(1, indices)).sum() + (rest * z.sum(1, keepdim=True)).sum()
        slope = (ALPHA * rest).expand_as(z).scatter(1, indices, ALPHA * values)
        return ALPHA * loss, slope, ALPHA


class LongRows(TopK):
    """As TopK, and the last step's logits as the past of half of the rows: what training with very many classes does.

    On a GPU each backend that has kernels for it is a peer of its own beside the one that "auto" takes.
    """

    others = (PLAIN,)
    flops = {"forward": 11, "forward + backward": 16}  # noqa: RUF012  (the past as in Blended, and 6 for its own softmax)

    def __init__(self, rows, classes, dtype):
        super().__init__(rows, classes, dtype)
        self.first_past = rows // 2
        self.past = normal(rows - self.first_past, classes, dtype=dtype, seed=3)
        self.past_index = torch.arange(rows, device=DEVICE).sub_(self.first_past).clamp_(min=-1)
        kernels = [name for name in ("triton", "cuda") if DEVICE.type == "cuda" and not missing(name, DEVICE)]
        self.peers = {
            OURS: self.ours("auto"),
            **{f"backend {name}": self.ours(name) for name in kernels},
            **self.torch_peers("eager"),
            PLAIN: lambda logits: F.cross_entropy(logits, self.target),
        }

    def forward_bytes(self):
        return super().forward_bytes() + self.past.numel() * self.past.element_size()

    def ours(self, backend):
        return lambda logits: toast_loss(
            logits, self.target, soft_targets=self.soft, alpha=ALPHA, past=self.past, past_index=self.past_index,
            backend=backend,
        )  # fmt: skip

    def eager(self, logits):
        logits = logits.float()
        past = F.kl_div(
            F.log_softmax(logits[self.first_past :] / TEMPERATURE, 1),
            F.log_softmax(self.past.float() / TEMPERATURE, 1),
            reduction="batchmean", log_target=True,
        )  # fmt: skip
        return super().eager(logits) + TEMPERATURE**2 * past

    def past_term(self, z):
        z, past = z / TEMPERATURE, self.past.float() / TEMPERATURE
        lse, past_lse = z.logsumexp(1, keepdim=True), past.logsumexp(1, keepdim=True)
        probabilities = (past - past_lse).exp()
        loss = TEMPERATURE**2 * ((probabilities * (past - z)).sum() - past_lse.sum() + lse.sum())
        return loss, TEMPERATURE * ((z - lse).exp() - probabilities)
