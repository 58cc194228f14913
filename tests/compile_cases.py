"""What the compile gate compiles, and what each case promises (test_compile_targets.py holds it to that)."""

from collections import Counter
from dataclasses import dataclass
from unittest.mock import patch

import torch
from compile_only import EXP, MATRIX, count

from toast_kernels import SoftTargets, class_medoids, toast_loss
from toast_kernels.softmax_statistics import triton as statistics_on_triton

# An H200: what it reads and writes in a second, what its schedulers issue, what its tensor cores do in bfloat16.
BYTES, WARP_INSTRUCTIONS, FLOPS = 4.3e12, 132 * 4 * 1.7e9, 790e12

READS_ALL = ("scan_rows", "add_features", "deviations", "measure_rounding")  # the medoids' kernels that read all of x


def on_triton(op):
    """Lets the Triton backend have tensors on the CPU."""
    module = {"blended_kl": "plan"}.get(op, "op")
    return patch(f"toast_kernels.{op}.{module}.choose", lambda op, requested, *_, **__: requested)


@dataclass(frozen=True)
class Loss:
    """toast_loss and its backward on N x C logits; all rows have a past, or none."""

    name: str
    rows: int
    classes: int
    dtype: torch.dtype = torch.bfloat16
    soft: str | None = None  # "dense", "top-k" (64 of them), "logits"
    past: str | None = None
    target: str = "labels"  # "mixup", "probabilities"
    weighted: bool = False
    label_smoothing: float = 0.0
    stats: bool = False
    reduction: str = "mean"
    wide: bool = True  # promise: dense logits and targets are read in 128 bits, and no more of them than there are
    exps: int = 1  # promise: exponentials a logit
    warps = 8  # promise: on a multiprocessor, at least
    op = "blended_kl"
    kernel = "blended_kl_kernel"

    def __call__(self):
        n, c = self.rows, self.classes
        logits = torch.empty(n, c, dtype=self.dtype, requires_grad=True)
        target = torch.zeros(n, dtype=torch.int64)
        if self.target == "mixup":
            target = (target, target, torch.zeros(n))
        elif self.target == "probabilities":
            target = torch.empty(n, c, dtype=self.dtype)
        with on_triton(self.op):
            loss = toast_loss(
                logits, target, torch.empty(c) if self.weighted else None,
                soft_targets=self.table(self.soft, c), alpha=0.1 if self.soft else 0.0,
                past=self.table(self.past, n), past_index=torch.zeros(n, dtype=torch.int64) if self.past else None,
                temperature=3.0, label_smoothing=self.label_smoothing, reduction=self.reduction,
                return_stats=self.stats, backend="triton",
            )  # fmt: skip
            loss = loss[0] if self.stats else loss
            loss.backward(torch.ones_like(loss))

    def table(self, encoding, rows):
        if encoding is None:
            return None
        width = 64 if encoding == "top-k" else self.classes
        return SoftTargets(
            torch.empty(rows, width, dtype=torch.float32 if encoding == "top-k" else self.dtype),
            torch.zeros(rows), torch.ones(rows, dtype=torch.bool), self.classes,
            indices=torch.zeros(rows, width, dtype=torch.int32) if encoding == "top-k" else None,
            logsumexp=torch.zeros(rows, dtype=torch.float64) if encoding == "logits" else None,
            temperature=3.0,
        )  # fmt: skip

    @property
    def read(self):
        """Bytes a logit that one pass reads."""
        soft = (self.soft in ("dense", "logits")) * (2 if self.target == "mixup" else 1)
        dense = 1 + soft + (self.past in ("dense", "logits")) + (self.target == "probabilities")
        class_weights = self.weighted and self.label_smoothing > 0
        return dense * self.dtype.itemsize + class_weights * torch.float32.itemsize

    def logits(self, kernel):
        """Logits of a thread, with the padding; of a row in blocks, in one block."""
        return kernel.constants["ROWS"] * kernel.constants["BLOCK"] / kernel.threads

    def in_flight(self, kernel):
        """Bytes that a multiprocessor has asked for when every thread has issued a tile's loads."""
        return kernel.blocks * kernel.threads * self.logits(kernel) * self.read

    def passes(self, kernel):
        """[(opcodes, logits of a thread they are for)] of each reading of the row: straight code, or two loops."""
        logits = self.logits(kernel)
        if kernel.constants["SINGLE_PASS"]:
            return [(kernel.opcodes - sum(kernel.loops, Counter()), logits)]
        turns = [(body, count(body, EXP) // (self.exps * logits) * logits) for body in kernel.loops]
        return [(body, unrolled) for body, unrolled in turns if unrolled]

    def instructions(self, kernel):
        """Of a thread, for each of its logits, and each turn of a loop over lists counted once."""
        if kernel.constants["SINGLE_PASS"]:
            # The last loop adds the rows' losses up, in one program.
            adding_up = 0 if self.reduction == "none" else kernel.loops[-1].total()
            return (kernel.instructions - adding_up) / self.logits(kernel)
        return sum(body.total() / logits for body, logits in self.passes(kernel))

    def bounds(self, kernels):
        """{what: seconds} that an H200 needs at least for the main kernel."""
        kernel = main(self, kernels)
        passes = 1 if kernel.constants["SINGLE_PASS"] else 2
        block = kernel.constants["BLOCK"]
        padded = kernel.programs * kernel.constants["ROWS"] * -(-self.classes // block) * block
        return {
            "bytes": (passes * self.read + self.dtype.itemsize) * self.rows * self.classes / BYTES,
            "issue": self.instructions(kernel) * padded / 32 / WARP_INSTRUCTIONS,
        }


@dataclass(frozen=True)
class Medoids:
    """class_medoids of N x D rows in K classes of one size."""

    name: str
    rows: int
    width: int
    classes: int
    metric: str = "euclidean"
    dtype: torch.dtype = torch.float32
    wide: bool = True  # promise: the tiles of products read x in 128 bits
    warps = 8  # promise: on a multiprocessor, at least
    op = "medoids"

    @property
    def kernel(self):
        """The one that takes the time."""
        return "pair_tiles" if self.metric in ("euclidean", "cityblock") else "exact_costs"

    @property
    def products(self):
        """Promise: on tensor cores."""
        return self.metric == "euclidean"

    def __call__(self):
        x = torch.zeros(self.rows, self.width, dtype=self.dtype)
        with on_triton(self.op):
            class_medoids(x, torch.arange(self.rows) % self.classes, self.classes, metric=self.metric, backend="triton")

    def bounds(self, kernels):
        """{what: seconds} that an H200 needs at least: to read x, and for the tiles of products."""
        reads = sum(kernel.name in READS_ALL for kernel in kernels)
        bounds = {"bytes": reads * self.rows * self.width * self.dtype.itemsize / BYTES}
        if self.products:
            kernel = main(self, kernels)
            tile, columns = kernel.constants["TILE"], kernel.constants["COLUMNS"]
            side = -(-self.rows // (self.classes * tile))
            turns = self.classes * side * (side + 1) // 2 * -(-self.width // columns)
            (turn,) = product_loops(kernel)
            bounds["products"] = turns * 2 * tile**2 * columns / FLOPS
            bounds["issue"] = turns * turn.total() * kernel.num_warps / WARP_INSTRUCTIONS
        return bounds


@dataclass(frozen=True)
class Statistics:
    """softmax_statistics of R x C logits."""

    name: str
    rows: int
    classes: int
    dtype: torch.dtype = torch.bfloat16
    begin: int = 0  # logits before the first
    warps = 16  # promise: on a multiprocessor, at least
    op = "softmax_statistics"
    kernel = "statistics_kernel"

    def __call__(self):
        memory = torch.empty(self.begin + self.rows * self.classes, dtype=self.dtype)
        logits = memory[self.begin :].view(self.rows, self.classes)
        with patch.dict(statistics_on_triton._launches, clear=True):
            statistics_on_triton.softmax_statistics(logits, 3.0)

    def logits(self, kernel):
        """Logits of a thread in a turn of the loop."""
        return 2 * kernel.constants["WIDTH"]

    def in_flight(self, kernel):
        """Bytes that a multiprocessor has asked for when every thread has issued a turn's loads."""
        return kernel.blocks * kernel.threads * self.logits(kernel) * self.dtype.itemsize

    def passes(self, kernel):
        """[(opcodes, logits of a thread they are for)] of the one reading of the row."""
        return [(body, self.logits(kernel)) for body in kernel.loops]

    def instructions(self, kernel):
        """Of a thread, for each of its logits; what is done once a row, too."""
        (turn,) = kernel.loops
        once = kernel.instructions - turn.total()
        return turn.total() / self.logits(kernel) + once * kernel.threads / self.classes

    def bounds(self, kernels):
        """{what: seconds} that an H200 needs at least."""
        kernel = main(self, kernels)
        logits = self.rows * self.classes
        return {
            "bytes": logits * self.dtype.itemsize / BYTES,
            "issue": self.instructions(kernel) * logits / 32 / WARP_INSTRUCTIONS,
        }


def main(case, kernels):
    """The launch that a case is about: of the loss the last one, which computes the gradient."""
    return [kernel for kernel in kernels if kernel.name == case.kernel][-1]


def product_loops(kernel):
    return [body for body in kernel.loops if count(body, MATRIX)]


BLENDED = (
    Loss("plain 1000", 8192, 1000),
    Loss("plain 1000 fp32", 8192, 1000, torch.float32),
    Loss("plain 128256", 4096, 128256),
    Loss("dense 100", 8192, 100, soft="dense", past="dense", wide=False),
    Loss("dense 128", 8192, 128, soft="dense", past="dense"),
    Loss("dense 256", 8192, 256, soft="dense", past="dense"),
    Loss("dense 512", 8192, 512, soft="dense", past="dense"),
    Loss("dense 1000", 8192, 1000, soft="dense", past="dense"),
    Loss("dense 1003", 8192, 1003, soft="dense", past="dense", wide=False),
    Loss("dense 2048", 8192, 2048, soft="dense", past="dense"),
    Loss("dense 4096", 8192, 4096, soft="dense", past="dense"),
    Loss("dense 4096 fp32", 8192, 4096, torch.float32, soft="dense", past="dense"),
    Loss("dense 8192", 8192, 8192, soft="dense", past="dense"),
    Loss("dense 16384", 8192, 16384, soft="dense", past="dense"),
    Loss("dense 21841", 4096, 21841, soft="dense", past="dense", wide=False),
    Loss("dense 128 stats", 8192, 128, soft="dense", past="dense", stats=True, wide=False),
    Loss("dense 8192 stats", 8192, 8192, soft="dense", past="logits", exps=2, stats=True),
    Loss("top-k 4096", 8192, 4096, soft="top-k", past="top-k"),
    Loss("top-k 128256", 4096, 128256, soft="top-k", past="top-k"),
    Loss("logits 1000", 8192, 1000, soft="logits", past="logits", exps=3, stats=True),
    Loss("probabilities 1000", 8192, 1000, target="probabilities"),
    Loss("none 1000 fp16", 8192, 1000, torch.float16, soft="dense", past="dense", reduction="none"),
    Loss("everything 1000", 8192, 1000, soft="dense", past="dense", target="mixup", weighted=True, label_smoothing=0.1,
         stats=True),
)  # fmt: skip
MEDOIDS = (
    Medoids("euclidean 1000", 20000, 1000, 20),
    Medoids("euclidean 1000 bf16", 20000, 1000, 20, dtype=torch.bfloat16),
    Medoids("euclidean 101 bf16", 20000, 101, 20, dtype=torch.bfloat16, wide=False),
    Medoids("cityblock 1000", 20000, 1000, 20, "cityblock"),
    Medoids("sqeuclidean 1000", 20000, 1000, 20, "sqeuclidean"),
    Medoids("cosine 1000", 20000, 1000, 20, "cosine"),
    Medoids("jeffreys 1000", 20000, 1000, 20, "jeffreys"),
)
STATISTICS = (
    Statistics("1000", 4096, 1000),
    Statistics("8192", 4096, 8192),
    Statistics("8192 fp32", 4096, 8192, torch.float32),
    Statistics("21841", 4096, 21841),
    Statistics("21841, a view", 4096, 21841, begin=21841),
    Statistics("131072 fp16", 512, 131072, torch.float16),
)
CASES = BLENDED + MEDOIDS + STATISTICS
