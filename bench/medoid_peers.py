"""What else a user could call for class_medoids: the same medoids by other means, each checked before it is timed."""

import torch
import torch.nn.functional as F
from peers import left_out, normal, random_labels
from results import DEVICE, OURS

from toast_kernels import class_medoids

KMEDOIDS = "kmedoids on torch.cdist's matrix"
LOOPLESS = "torch without a loop"
# These compute all pairs of a class's rows. The others know the identity that ours uses, or sort.
ALL_PAIRS = ("torch.cdist", KMEDOIDS, "scipy", "pykeops")
# Each element's flops where no pairs are needed: mean, difference, square, sum; and so on.
FLOPS = {"sqeuclidean": 4, "cosine": 6, "jeffreys": 11}


class Medoids:
    """Class medoids of a pool, by us and by peers."""

    def __init__(self, rows, width, num_classes, metric, dtype=torch.float32, share=None, separated=False):
        """share: the part of the rows that is in class 0; by default all classes are alike. separated: rows lie around
        their class's centre, as a trained network's logits do; else all classes are one cloud."""
        self.size = f"{rows} x {width}, {num_classes} classes" + ", separated" * separated
        self.labels = random_labels(rows, num_classes)
        if share:
            self.labels = 1 + random_labels(rows, num_classes - 1)
            self.labels[: int(share * rows)] = 0
        self.x = normal(rows, width, dtype=dtype)
        if separated:
            self.x = normal(num_classes, width, dtype=dtype, seed=2)[self.labels].add_(self.x, alpha=1 / 3)
        self.num_classes, self.metric = num_classes, metric
        self.bytes = self.x.numel() * self.x.element_size()
        self.pairs = int(self.labels.bincount().square().sum())

    @property
    def flops(self):
        """euclidean: the full product of each class's rows with themselves. cityblock: each pair's differences and
        their sum once, which a sort undercuts. Others: those of the identity, nothing but passes over x."""
        width = self.x.shape[1]
        return {"euclidean": 2 * self.pairs * width, "cityblock": self.pairs * width}.get(
            self.metric, FLOPS.get(self.metric, 0) * self.x.numel()
        )

    def products(self):
        """(torch's product of each class's rows with themselves, for classes of one size, its flops); None for a metric
        that needs no pairs. On a GPU one batch, so that no launches are timed."""
        if self.metric not in ("euclidean", "cityblock"):
            return None
        rows, width = len(self.x) // self.num_classes, self.x.shape[1]
        blocks = self.x[: rows * self.num_classes].view(self.num_classes, rows, width)
        flops = 2 * self.num_classes * rows**2 * width
        if DEVICE.type == "cuda":
            out = self.x.new_empty(self.num_classes, rows, rows)
            return lambda: torch.bmm(blocks, blocks.mT, out=out), flops
        out = self.x.new_empty(rows, rows)

        def one_by_one():
            for block in blocks:
                torch.mm(block, block.T, out=out)

        return one_by_one, flops

    def ours(self):
        return class_medoids(self.x, self.labels, self.num_classes, metric=self.metric)

    def cases(self):
        return (
            {OURS: self.ours}
            | {name: self.loop(medoid) for name, medoid in medoid_peers(self.metric).items()}
            | ({LOOPLESS: self.at_once} if self.metric in COSTS else {})
        )

    def loop(self, medoid):
        """The loop a user writes: `medoid` of each class's rows, which one sort brings together."""

        def run():
            order = self.labels.argsort(stable=True)
            classes = order.split(self.labels.bincount(minlength=self.num_classes).tolist())
            return torch.stack([rows[medoid(self.x[rows])] for rows in classes])

        return run

    def at_once(self):
        return at_once(COSTS[self.metric], self.x, self.labels, self.num_classes)

    def agreeing(self, cases):
        """The cases that find our medoids; others (matrix products lose digits) are left out by name."""
        expected = cases[OURS]()
        found = {name: int((case() != expected).sum()) for name, case in cases.items()}
        for name, different in found.items():
            if different:
                print(f"  {name} is left out: it finds other medoids in {different} of {self.num_classes} classes")
        return {name: case for name, case in cases.items() if not found[name]}

    def check_some(self, count=20):
        """Our medoids of `count` random classes are those of float64."""
        found = self.ours()
        for c in torch.randperm(self.num_classes, generator=torch.Generator().manual_seed(0))[:count].tolist():
            rows = (self.labels == c).nonzero().squeeze(1)
            exact = torch.cdist(self.x[rows].double(), self.x[rows].double(), compute_mode=EXACT).sum(dim=1)
            cost = exact.square() if self.metric == "sqeuclidean" else exact
            assert found[c] == rows[cost.argmin()], f"class {c} has another medoid"


class InFile:
    """A pool in a memory-mapped file, in chunks of whole classes; and at once, which on a GPU takes all of it there."""

    chunk_bytes = 512 << 20

    def __init__(self, path, rows, width, num_classes, metric, dtype):
        self.size = f"{rows} x {width}, {num_classes} classes"
        self.labels, self.num_classes, self.metric = random_labels(rows, num_classes).cpu(), num_classes, metric
        self.x = torch.from_file(str(path), shared=True, size=rows * width, dtype=dtype).view(rows, width)
        for seed, some in enumerate(self.x.split(50_000)):
            some.copy_(normal(*some.shape, dtype=dtype, seed=seed))
        self.bytes = self.x.numel() * self.x.element_size()

    def ours(self):
        return class_medoids(
            self.x, self.labels, self.num_classes, metric=self.metric, device=DEVICE, chunk_bytes=self.chunk_bytes
        )

    def whole(self):
        x, labels = self.x.to(DEVICE), self.labels.to(DEVICE)
        return class_medoids(x, labels, self.num_classes, metric=self.metric).cpu()


EXACT = "donot_use_mm_for_euclid_dist"


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


def sqeuclidean_cost(x, class_mean):
    return (x - class_mean(x)).square().sum(dim=1)


COSTS = {"sqeuclidean": sqeuclidean_cost, "cosine": cosine_cost, "jeffreys": jeffreys_cost}


def medoid_peers(metric):
    """{name: medoid of one class's rows}; the first is the one to beat."""
    found = {
        "euclidean": {"torch.cdist": cdist_medoid(2.0)},
        "sqeuclidean": {"torch mean": mean_medoid},
        "cosine": {"torch sum": cosine_medoid},
        "cityblock": {"torch sort": sort_medoid, "torch.cdist": cdist_medoid(1.0)},
        "jeffreys": {"torch mean": jeffreys_medoid},
    }[metric]
    if metric == "euclidean" and not left_out("kmedoids"):
        found[KMEDOIDS] = kmedoids_medoid
    if metric != "jeffreys" and not left_out("scipy"):
        found["scipy"] = scipy_medoid(metric)
    if metric == "euclidean" and not left_out("pykeops"):
        found["pykeops"] = pykeops_medoid
    return found


def cdist_medoid(p):
    return lambda rows: torch.cdist(rows.float(), rows.float(), p=p).sum(dim=1).argmin()


def mean_medoid(rows):
    rows = rows.float()
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
    """FasterPAM."""
    import kmedoids

    return int(kmedoids.fasterpam(torch.cdist(rows, rows).numpy(), 1, random_state=0).medoids[0])


def pykeops_medoid(rows):
    from pykeops.torch import LazyTensor

    return (LazyTensor(rows[:, None]) - LazyTensor(rows[None])).square().sum(-1).sqrt().sum(dim=1).argmin()
