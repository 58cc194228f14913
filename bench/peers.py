"""What else a user could call: the same results by other means, each checked against ours before it is timed.

A peer that cannot be had here is left out by name: `left_out` says why.
"""

import importlib

import torch
import torch.nn.functional as F
from harness import DEVICE, OURS

from toast_kernels import SoftTargets, class_medoids, toast_loss
from toast_kernels.backends import missing

TEMPERATURE, ALPHA = 3.0, 0.4


def left_out(package):
    """None if `package` can be imported and used on this device; else why not, which is printed."""
    gpu_only = {"liger_kernel": "Liger", "cut_cross_entropy": "Cut Cross-Entropy"}
    if package in gpu_only and DEVICE.type != "cuda":
        why = "needs a GPU"
    else:
        try:
            importlib.import_module(package)
            return None
        except Exception as error:  # whatever a broken installation raises
            why = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    print(f"  {gpu_only.get(package, package)} is left out: {why}")
    return why


def normal(*shape, dtype, seed=0):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=DEVICE).mul_(3).to(dtype)


def random_labels(rows, classes, seed=1):
    return torch.randint(classes, (rows,), generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE)


class Loss:
    """A loss of a batch of logits, by us and by peers: {name: function of the logits}, and the bytes it must move."""

    others = ()  # peers that compute another loss

    def __init__(self, rows, classes, dtype):
        self.size = f"{rows} x {classes}"
        self.logits = normal(rows, classes, dtype=dtype).requires_grad_()
        self.target = random_labels(rows, classes)
        self.peers = {}

    def forward_bytes(self):
        return self.logits.numel() * self.logits.element_size()

    def bytes(self, work):
        """Everything read once, and the gradient written once."""
        gradient = self.logits.numel() * self.logits.element_size() if "backward" in work else 0
        return self.forward_bytes() + gradient

    def cases(self, work):
        if "backward" not in work:
            return {name: self.without_gradient(peer) for name, peer in self.peers.items()}
        return {name: self.with_gradient(peer) for name, peer in self.peers.items()}

    def without_gradient(self, peer):
        def run():
            with torch.no_grad():
                return peer(self.logits)

        return run

    def with_gradient(self, peer):
        return lambda: torch.autograd.grad(peer(self.logits), self.logits)[0]

    def check(self):
        """Every peer has our loss and our gradient, up to the rounding of the logits' precision."""
        tolerance = {torch.float32: 1e-4, torch.bfloat16: 1e-2}[self.logits.dtype]
        ours, loss = self.with_gradient(self.peers[OURS])().float(), self.peers[OURS](self.logits).detach().float()
        for name, peer in self.peers.items():
            if name in self.others:
                continue
            error = ((self.with_gradient(peer)().float() - ours).norm() / ours.norm()).item()
            assert error <= tolerance, f"{name} has another gradient: off by {error:.2e} of its norm"
            torch.testing.assert_close(peer(self.logits).detach().float(), loss, rtol=tolerance, atol=tolerance)


class CrossEntropy(Loss):
    """Nothing added."""

    def __init__(self, rows, classes, dtype):
        super().__init__(rows, classes, dtype)
        self.peers = {
            OURS: lambda logits: toast_loss(logits, self.target),
            "F.cross_entropy": lambda logits: F.cross_entropy(logits, self.target),
            "torch.compile": torch.compile(lambda logits: F.cross_entropy(logits.float(), self.target)),
        }
        if not left_out("liger_kernel"):
            from liger_kernel.transformers.functional import liger_cross_entropy

            # It writes the gradient over the logits: a copy that a model's own logits would not need is not charged.
            self.peers["Liger"] = lambda logits: liger_cross_entropy(logits * 1, self.target)


class Blended(Loss):
    """As in training: dense soft targets for all classes, a past for every other row, T = 3."""

    others = ("F.cross_entropy alone",)

    def __init__(self, rows, classes, dtype):
        super().__init__(rows, classes, dtype)
        self.soft = SoftTargets.from_logits(normal(classes, classes, dtype=dtype, seed=2))
        self.past = SoftTargets.from_logits(normal(rows // 2, classes, dtype=dtype, seed=3), TEMPERATURE)
        self.with_past = torch.arange(0, rows, 2, device=DEVICE)
        self.past_index = torch.full((rows,), -1, device=DEVICE)
        self.past_index[self.with_past] = torch.arange(rows // 2, device=DEVICE)
        self.peers = {
            OURS: self.ours,
            "eager": self.eager,
            "torch.compile": torch.compile(self.eager),
            "F.cross_entropy alone": lambda logits: F.cross_entropy(logits, self.target),
        }

    def forward_bytes(self):
        """The logits, a past for half of the rows, and each soft target that is used, once."""
        rows_read = len(self.target.unique()) + len(self.with_past)
        return super().forward_bytes() + rows_read * self.logits.shape[1] * self.soft.values.element_size()

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
            F.log_softmax(logits[self.with_past] / TEMPERATURE, 1), self.past.values.float(), reduction="batchmean"
        )
        return (1 - ALPHA) * hard + ALPHA * soft + TEMPERATURE**2 * past


class TopK(Loss):
    """Soft targets of k listed classes, for as many classes that a dense table would not fit."""

    others = ("toast_kernels without soft targets",)

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
            "eager": self.eager,
            "torch.compile": torch.compile(self.eager),
            "toast_kernels without soft targets": lambda logits: toast_loss(logits, self.target),
        }

    def eager(self, logits):
        log_p = F.log_softmax(logits.float(), 1)
        values, indices = self.soft.values[self.target], self.soft.indices[self.target].long()
        rest = (1 - values.sum(1)) / (log_p.shape[1] - values.shape[1])
        soft = -((values - rest[:, None]) * log_p.gather(1, indices)).sum(1) - rest * log_p.sum(1)
        return (1 - ALPHA) * F.nll_loss(log_p, self.target) + ALPHA * soft.mean()


class LongRows(TopK):
    """As TopK, and the last step's logits as the past of every other row: what training with very many classes does.

    On a GPU each backend that has kernels for it is a peer of its own beside the one that "auto" takes.
    """

    others = ("F.cross_entropy alone",)

    def __init__(self, rows, classes, dtype):
        super().__init__(rows, classes, dtype)
        self.past = normal(rows // 2, classes, dtype=dtype, seed=3)
        self.past_index = torch.full((rows,), -1, device=DEVICE)
        self.past_index[::2] = torch.arange(rows // 2, device=DEVICE)
        kernels = [name for name in ("triton", "cuda") if DEVICE.type == "cuda" and not missing(name, DEVICE)]
        self.peers = {
            OURS: self.ours("auto"),
            **{f"backend {name}": self.ours(name) for name in kernels},
            "eager": self.eager,
            "torch.compile": torch.compile(self.eager),
            "F.cross_entropy alone": lambda logits: F.cross_entropy(logits, self.target),
        }

    def forward_bytes(self):
        return super().forward_bytes() + self.past.numel() * self.past.element_size()

    def ours(self, backend):
        return lambda logits: toast_loss(
            logits, self.target, soft_targets=self.soft, alpha=ALPHA, past=self.past, past_index=self.past_index,
            backend=backend,
        )  # fmt: skip

    def eager(self, logits):
        past = F.kl_div(
            F.log_softmax(logits[::2].float() / TEMPERATURE, 1),
            F.log_softmax(self.past.float() / TEMPERATURE, 1),
            reduction="batchmean", log_target=True,
        )  # fmt: skip
        return super().eager(logits) + TEMPERATURE**2 * past


class Medoids:
    """Class medoids of a pool, by us and by peers."""

    def __init__(self, rows, width, num_classes, metric, dtype=torch.float32, share=None):
        """share: the part of the rows that is in class 0; by default all classes are alike."""
        self.size = f"{rows} x {width}, {num_classes} classes" + (f", {share:.0%} in one" if share else "")
        self.x = normal(rows, width, dtype=dtype)
        self.labels = random_labels(rows, num_classes)
        if share:
            self.labels = 1 + random_labels(rows, num_classes - 1)
            self.labels[: int(share * rows)] = 0
        self.num_classes, self.metric = num_classes, metric
        self.bytes = self.x.numel() * self.x.element_size()

    def ours(self):
        return class_medoids(self.x, self.labels, self.num_classes, metric=self.metric)

    def cases(self):
        cases = {OURS: self.ours}
        for name, medoid in medoid_peers(self.metric).items():
            cases[name] = lambda medoid=medoid: by_class(medoid, self.x, self.labels, self.num_classes)
        if self.metric in COSTS:
            cost = COSTS[self.metric]
            cases["torch, all classes at once"] = lambda: at_once(cost, self.x, self.labels, self.num_classes)
        return cases

    def agreeing(self, cases):
        """The cases that find our medoids; others (matrix products lose digits) are left out by name."""
        expected = cases[OURS]()
        found = {name: int((case() != expected).sum()) for name, case in cases.items()}
        for name, different in found.items():
            if different:
                print(f"  {name} is left out: it finds other medoids in {different} of {self.num_classes} classes")
        return {name: case for name, case in cases.items() if not found[name]}


def by_class(medoid, x, labels, num_classes):
    """The loop a user writes: `medoid` of each class's rows."""
    medoids = []
    for c in range(num_classes):
        rows = (labels == c).nonzero().squeeze(1)
        medoids.append(rows[medoid(x[rows])])
    return torch.stack(medoids)


def at_once(cost, x, labels, num_classes):
    """Without a loop, for the metrics whose cost needs no pairs: each class's first row of least cost."""

    def class_mean(rows):
        count = torch.zeros(num_classes, device=x.device).index_add_(0, labels, torch.ones_like(rows[:, 0]))
        total = rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels, rows)
        return (total / count[:, None])[labels]

    costs = cost(x, class_mean)
    least = costs.new_full((num_classes,), torch.inf).scatter_reduce_(0, labels, costs, "amin")
    row = torch.where(costs == least[labels], torch.arange(len(x), device=x.device), len(x))
    return labels.new_full((num_classes,), len(x)).scatter_reduce_(0, labels, row, "amin")


def jeffreys_cost(x, class_mean):
    log_p = x.log_softmax(dim=1)
    p = log_p.exp()
    return ((p - class_mean(p)) * (log_p - class_mean(log_p))).sum(dim=1)


def cosine_cost(x, class_mean):
    unit = F.normalize(x, dim=1)
    return -(unit * class_mean(unit)).sum(dim=1)


COSTS = {
    "sqeuclidean": lambda x, class_mean: (x - class_mean(x)).square().sum(dim=1),
    "cosine": cosine_cost,
    "jeffreys": jeffreys_cost,
}


def medoid_peers(metric):
    """{name: medoid of one class's rows}; the first is the one to beat."""
    found = {
        "euclidean": {"torch.cdist": cdist_medoid(2.0)},
        "sqeuclidean": {"torch mean": mean_medoid},
        "cosine": {"torch sum": cosine_medoid},
        "cityblock": {"torch sort": sort_medoid, "torch.cdist": cdist_medoid(1.0)},
        "jeffreys": {"torch mean": jeffreys_medoid},
    }[metric]
    if metric == "euclidean" and DEVICE.type == "cpu" and not left_out("kmedoids"):
        found["kmedoids"] = kmedoids_medoid
    if metric != "jeffreys" and DEVICE.type == "cpu" and not left_out("scipy"):
        found["scipy"] = scipy_medoid(metric)
    if metric == "euclidean" and DEVICE.type == "cpu" and not left_out("pykeops"):
        found["pykeops"] = pykeops_medoid
    return found


def cdist_medoid(p):
    return lambda rows: torch.cdist(rows, rows, p=p).sum(dim=1).argmin()


def mean_medoid(rows):
    return (rows - rows.mean(dim=0)).square().sum(dim=1).argmin()


def cosine_medoid(rows):
    unit = F.normalize(rows, dim=1)
    return (unit @ unit.sum(dim=0)).argmax()


def jeffreys_medoid(rows):
    log_p = rows.log_softmax(dim=1)
    p = log_p.exp()
    return ((p - p.mean(dim=0)) * (log_p - log_p.mean(dim=0))).sum(dim=1).argmin()


def sort_medoid(rows):
    """sum over j of |v_i - v_j| from ranks and prefix sums, a column each."""
    n = len(rows)
    values, order = rows.sort(dim=0)
    before = values.cumsum(dim=0)
    rank = torch.arange(1, n + 1, dtype=rows.dtype, device=rows.device)[:, None]
    cost = (2 * rank - n) * values - 2 * before + before[-1]
    return torch.zeros_like(rows).scatter_(0, order, cost).sum(dim=1).argmin()


def scipy_medoid(metric):
    from scipy.spatial.distance import cdist

    return lambda rows: int(cdist(rows.numpy(), rows.numpy(), metric).sum(axis=1).argmin())


def kmedoids_medoid(rows):
    """FasterPAM, given torch.cdist's matrix."""
    import kmedoids

    return int(kmedoids.fasterpam(torch.cdist(rows, rows).numpy(), 1, random_state=0).medoids[0])


def pykeops_medoid(rows):
    from pykeops.torch import LazyTensor

    return (LazyTensor(rows[:, None]) - LazyTensor(rows[None])).square().sum(-1).sqrt().sum(dim=1).argmin()
