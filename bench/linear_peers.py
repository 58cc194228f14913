"""What else a user could call for linear_toast_loss: the same loss of a linear layer's output by other means, each
checked before it is timed.

On a GPU Liger's fused loss and Cut Cross-Entropy, which have labels alone. F.linear_cross_entropy (torch 2.13) gets
chunks of 64 rows: at C = 50,000 it would itself take two, and ten times as long as without chunks (on a CPU).
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from peers import compiled, left_out, normal, random_labels
from results import DEVICE, OURS

from toast_kernels import SoftTargets, linear_toast_loss, toast_loss

TEMPERATURE, ALPHA, TOP_K = 3.0, 0.4, 64
WHOLE, CHUNKED, WIDE, PLAIN = "F.linear, toast_loss", "in chunks of 64 rows", "float32 sums", "without blending"
# How far a peer's loss and its gradients, of the norm of ours, may be from ours. In bfloat16 each has its own roundings
# of logits and sums.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


class Linear:
    """N x D features, a head of C classes, labels; for `blended` top-k soft targets, a top-k past for half of the rows.

    Ours adds the gradient of the weight up in its own dtype, as peers do; in bfloat16 float32 sums are a peer.
    """

    def __init__(self, rows, width, classes, dtype, blended=False):
        self.size, self.classes = f"{rows} x {width} x {classes}", classes
        self.others = (f"{OURS}, {PLAIN}",) if blended else ()  # another loss
        self.x = normal(rows, width, dtype=dtype).div_(3).requires_grad_()
        self.weight = (normal(classes, width, dtype=dtype, seed=1) / width**0.5).detach().requires_grad_()
        self.target = random_labels(rows, classes)
        self.flops = 3 * 2 * rows * width * classes  # of logits, of the gradients of x and of weight
        self.blended = {}
        if blended:
            self.blend(rows, classes, min(TOP_K, classes))
        self.losses = {
            OURS: lambda: self.ours(acc_dtype=dtype),
            WHOLE: lambda: toast_loss(F.linear(self.x, self.weight), self.target, **self.blended),
            "eager": lambda: self.eager(self.x, self.weight),
        }
        if dtype != torch.float32:
            self.losses[f"{OURS}, {WIDE}"] = self.ours
        if DEVICE.type == "cpu":
            fused = compiled(self.eager)
            self.losses["torch.compile"] = lambda: fused(self.x, self.weight)
        if blended:
            self.losses[f"{OURS}, {PLAIN}"] = lambda: linear_toast_loss(
                self.x, self.weight, self.target, acc_dtype=dtype
            )
        else:
            self.add_fused()

    def blend(self, rows, classes, k):
        """Soft targets only of the classes in use: a table of all would hold C x k random numbers for nothing."""
        soft = replace(SoftTargets.empty(classes, classes, top_k=k, device=DEVICE), temperature=1.0)
        soft.filled.fill_(True)
        soft[self.target] = SoftTargets.from_logits(normal(rows, classes, dtype=torch.float32, seed=2), top_k=k)
        past_logits = normal(rows // 2, classes, dtype=torch.float32, seed=3)
        past = SoftTargets.from_logits(past_logits, TEMPERATURE, top_k=k)
        index = torch.arange(rows, device=DEVICE).sub_(rows - rows // 2).clamp_(min=-1)
        self.blended = {"soft_targets": soft, "alpha": ALPHA, "past": past, "past_index": index}

    def ours(self, **options):
        return linear_toast_loss(self.x, self.weight, self.target, **self.blended, **options)

    def eager(self, x, weight):
        logits = F.linear(x, weight)
        if not self.blended:
            return F.cross_entropy(logits.float(), self.target)
        log_p = F.log_softmax(logits.float(), 1)
        values, listed, rest = self.lists(self.blended["soft_targets"], self.target)
        soft = ((values - rest) * log_p.gather(1, listed)).sum(1) + rest[:, 0] * log_p.sum(1)
        past, first = self.blended["past"], len(x) - len(self.blended["past"])
        log_p_at_t = F.log_softmax(logits[first:].float() / TEMPERATURE, 1)
        values, listed, rest = self.lists(past, slice(None))
        cross = ((values - rest) * log_p_at_t.gather(1, listed)).sum(1) + rest[:, 0] * log_p_at_t.sum(1)
        kl = -(past.entropy + cross).mean()
        return (1 - ALPHA) * F.nll_loss(log_p, self.target) - ALPHA * soft.mean() + TEMPERATURE**2 * kl

    def lists(self, targets, rows):
        """The listed probabilities and classes of each row, and what is left for each of the other classes."""
        values, listed = targets.values[rows], targets.indices[rows].long()
        return values, listed, (1 - values.sum(1, keepdim=True)).clamp(min=0) / max(1, self.classes - values.shape[1])

    def add_fused(self):
        given = self.x, self.weight, self.target
        if hasattr(F, "linear_cross_entropy"):
            rows = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=64)
            self.losses["F.linear_cross_entropy"] = lambda: F.linear_cross_entropy(*given)
            self.losses[f"F.linear_cross_entropy, {CHUNKED}"] = lambda: F.linear_cross_entropy(*given, options=rows)
        if not left_out("liger_kernel"):
            from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

            self.losses["Liger, fused"] = lambda: liger_fused_linear_cross_entropy(*given)
        if not left_out("cut_cross_entropy"):
            from cut_cross_entropy import linear_cross_entropy

            self.losses["Cut Cross-Entropy"] = lambda: linear_cross_entropy(*given)

    def cases(self):
        """{peer: forward and backward pass}"""
        return {
            name: lambda loss=loss: torch.autograd.grad(loss(), (self.x, self.weight))
            for name, loss in self.losses.items()
        }

    def products(self):
        """(the largest of the three products, its flops)"""
        x, weight = self.x.detach(), self.weight.detach()
        logits = x.new_empty(len(x), self.classes)
        return lambda: torch.mm(x, weight.t(), out=logits), self.flops // 3

    def check(self):
        """Every peer has our loss and our gradients."""
        cases, bound = self.cases(), BOUNDS[self.x.dtype]
        expected = [self.losses[OURS]().detach(), *cases[OURS]()]
        for name in cases.keys() - set(self.others):
            found = [self.losses[name]().detach(), *cases[name]()]
            for what, actual, wanted in zip(
                ("loss", "gradient of x", "gradient of weight"), found, expected, strict=True
            ):
                error = float((actual.float() - wanted.float()).norm() / wanted.float().norm())
                assert error <= bound, f"{name} has another {what}: off by {error:.1e}"
