"""What the compile gate compiles, and what each case promises (test_compile_targets.py holds it to that)."""

import math
from collections import Counter
from dataclasses import dataclass
from unittest.mock import patch

import torch
from compile_only import EXP, MATRIX, count

from toast_kernels import SoftTargets, class_medoids, toast_loss
from toast_kernels.softmax_statistics import triton as statistics_on_triton

# An H200: what it reads and writes in a second, what its schedulers issue, what its tensor cores do in bfloat16.
BYTES, WARP_INSTRUCTIONS, FLOPS = 4.3e12, 132 * 4 * 1.7e9, 790e12

READS_ALL = ("scan_rows", "add_features", "deviations", "pack")  # the medoids' kernels that read all of x, if not again


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
    # Promises are what Triton 3.6 and 3.9 need, and up to 5% more.
    instructions_at_most: float  # promise for sm_90: a logit, those for the row and for what is rare included
    warps: int  # promise for sm_90: on a multiprocessor, at least
    dtype: torch.dtype = torch.bfloat16
    soft: str | None = None  # "dense", "top-k" (64 of them), "logits"
    past: str | None = None
    target: str = "labels"  # "mixup", "probabilities"
    weighted: bool = False
    label_smoothing: float = 0.0
    stats: bool = False
    reduction: str = "mean"
    wide: bool = True  # promise: dense logits and targets are read in 128 bits, and no more of them than there are
    realigned: bool = False  # promise: vectors of tables are put together from the two that each lies in
    exps: int = 1  # promise: exponentials a logit, without those of old logits
    spills: int = 0  # promise for sm_90: at most
    op = "blended_kl"
    kernels = ("row_kernel", "short_rows_kernel")

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
    def rows_compiled(self):
        """Whether a row has a past, for each kind of row that there is code for: one that works on several has one."""
        return [True, False] if self.past and self.classes > 512 else [self.past is not None]

    def read(self, past, loads=1):
        """Bytes a logit that one pass reads; each of a table `loads` times."""
        soft = (self.soft in ("dense", "logits")) * (2 if self.target == "mixup" else 1)
        dense = 1 + loads * (soft + (past and self.past in ("dense", "logits")) + (self.target == "probabilities"))
        class_weights = self.weighted and self.label_smoothing > 0
        return dense * self.dtype.itemsize + class_weights * torch.float32.itemsize

    def old_exps(self, past):
        """Exponentials a logit of tables of old logits."""
        return (self.soft == "logits") * (2 if self.target == "mixup" else 1) + (past and self.past == "logits")

    def logits(self, kernel):
        """Logits of a thread in a tile, with the padding."""
        constants = kernel.constants
        sides = ("ROWS", "SEGMENTS", "WIDTH") if "ROWS" in constants else ("LANES", "VECTORS", "WIDTH")
        return math.prod(constants[side] for side in sides) / kernel.threads

    def in_flight(self, kernel):
        """Bytes that a multiprocessor has asked for when every thread has issued a tile's loads."""
        return kernel.blocks * kernel.threads * self.logits(kernel) * self.read(self.past is not None)

    def passes(self, kernel):
        """[(opcodes, logits of a thread they are for)] of each reading of the row: straight code, or loops."""
        logits = self.logits(kernel)
        if kernel.constants.get("HELD", True):
            return [(kernel.opcodes - sum(kernel.loops, Counter()), logits)]
        return [(body, logits) for body in kernel.loops if count(body, EXP) >= logits]

    def needed(self, kernel):
        """What stands in the code of a thread for its logits: (passes, bytes read of logits and targets, exponentials).
        Where a row is held, rows with and without a past share what they read. Statistics of rows that take no part are
        one more pass without a past."""
        logits = self.logits(kernel)
        if kernel.constants.get("HELD", True):
            kinds = len(self.rows_compiled) + (self.stats and self.classes > 512)
            past = self.past is not None
            return 1, logits * self.read(past), logits * (self.exps * kinds + self.old_exps(past))
        passes = 2 * self.rows_compiled
        read = sum(self.read(past, 2 if self.realigned else 1) for past in passes)
        exps = sum(self.exps + self.old_exps(past) for past in passes)
        return (
            len(passes) + self.stats,
            logits * (read + self.stats * self.dtype.itemsize),
            logits * (exps + self.stats),
        )

    def instructions(self, kernel):
        """Of a thread, for each of its logits; loops over lists left out, what is done once a row not."""
        total = sum(body.total() for body, _ in self.passes(kernel))
        return total / self.logits(kernel) / len(self.rows_compiled)

    def bounds(self, kernels):
        """{what: seconds} that an H200 needs at least for the main kernel."""
        kernel = main(self, kernels)
        passes = 1 if kernel.constants.get("HELD", True) else 2
        tile = self.logits(kernel) * kernel.threads / kernel.constants.get("ROWS", 1)
        padded = self.rows * -(-self.classes // tile) * tile
        return {
            "bytes": (passes * self.read(self.past is not None) + self.dtype.itemsize)
            * self.rows
            * self.classes
            / BYTES,
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
    wide: bool = True  # promise: x is read in 128 bits
    spills: int = 16  # promise: at most, and none in tiles of products: bounds of outer loops, once an item
    warps = 8  # promise: on a multiprocessor, at least
    op = "medoids"

    @property
    def kernels(self):
        """The one that takes the time."""
        return ("pair_tiles" if self.metric in ("euclidean", "cityblock") else "deviations",)

    @property
    def products(self):
        """Promise: on tensor cores."""
        return self.metric == "euclidean"

    def __call__(self):
        x = torch.zeros(self.rows, self.width, dtype=self.dtype)
        with on_triton(self.op):
            class_medoids(x, torch.arange(self.rows) % self.classes, self.classes, metric=self.metric, backend="triton")

    def bounds(self, kernels):
        """{what: seconds} that an H200 needs at least: to read x, to write and read packed rows, to multiply them."""
        reads = sum(kernel.name in READS_ALL and not kernel.constants.get("AGAIN", False) for kernel in kernels)
        moved = reads * self.width * self.dtype.itemsize
        kernel = main(self, kernels)
        bounds = {}
        if self.products:
            tile, columns = kernel.constants["TILE"], kernel.constants["COLUMNS"]
            padded = -(-self.width // columns) * columns
            moved = self.width * self.dtype.itemsize + 2 * padded * torch.float16.itemsize
            side = -(-self.rows // (self.classes * tile))
            turns = self.classes * side * (side + 1) // 2 * padded // columns
            bounds["products"] = turns * 2 * tile**2 * columns / FLOPS
        return {"bytes": self.rows * moved / BYTES, **bounds}


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
    kernels = ("statistics_kernel",)

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
    return [kernel for kernel in kernels if kernel.name in case.kernels][-1]


def product_loops(kernel):
    return [body for body in kernel.loops if count(body, MATRIX)]


BLENDED = (  # name, rows, classes, instructions a logit, warps on a multiprocessor
    # Of what trials timed on an H200, which stored the rows' losses: blended_kl/README.md compares.
    Loss("plain 100", 8192, 100, 21, 48, reduction="none", wide=False),
    Loss("plain 1000", 8192, 1000, 13.5, 32, reduction="none"),
    Loss("plain 4096", 8192, 4096, 14.5, 40, reduction="none"),
    Loss("plain 16384", 8192, 16384, 11.5, 24, reduction="none", spills=6),
    Loss("plain 128256", 4096, 128256, 15, 32, reduction="none"),
    Loss("dense 100", 8192, 100, 47.5, 20, soft="dense", past="dense", reduction="none", wide=False),
    Loss("dense 1000", 8192, 1000, 23.5, 16, soft="dense", past="dense", reduction="none"),
    Loss("dense 4096", 8192, 4096, 25, 16, soft="dense", past="dense", reduction="none"),
    Loss("dense 8192", 8192, 8192, 30.5, 40, soft="dense", past="dense", reduction="none"),
    Loss("dense 16384", 8192, 16384, 30.5, 32, soft="dense", past="dense", reduction="none"),
    Loss("top-k 4096", 8192, 4096, 17, 36, soft="top-k", reduction="none"),
    Loss("top-k 128256", 4096, 128256, 18.5, 32, soft="top-k", reduction="none"),
    # The others are "mean", which divides, and adds the rows' losses up.
    Loss("plain 1000 mean", 8192, 1000, 22.5, 32),
    Loss("plain 1000 fp32", 8192, 1000, 21.5, 32, torch.float32),
    Loss("plain 16384 mean", 8192, 16384, 14.5, 24, spills=6),
    Loss("plain 21841", 4096, 21841, 22, 32),
    Loss("dense 128", 8192, 128, 64.5, 20, soft="dense", past="dense"),
    Loss("dense 512", 8192, 512, 66, 20, soft="dense", past="dense"),
    Loss("dense 1000 mean", 8192, 1000, 29, 16, soft="dense", past="dense"),
    Loss("dense 1003", 8192, 1003, 51, 20, soft="dense", past="dense", wide=False),
    Loss("dense 2048", 8192, 2048, 29, 16, soft="dense", past="dense"),
    Loss("dense 4096 mean", 8192, 4096, 29, 16, soft="dense", past="dense"),
    Loss("dense 4096 fp32", 8192, 4096, 27.5, 12, torch.float32, soft="dense", past="dense"),
    Loss("dense 16384 mean", 8192, 16384, 31, 32, soft="dense", past="dense"),
    Loss("dense 21841", 4096, 21841, 55.5, 32, soft="dense", past="dense", realigned=True),
    Loss("dense 128 stats", 8192, 128, 75, 20, soft="dense", past="dense", stats=True, wide=False, spills=22),
    Loss("dense 8192 stats", 8192, 8192, 38.5, 32, soft="dense", past="logits", stats=True),
    Loss("top-k 4096 mean", 8192, 4096, 19.5, 36, soft="top-k", past="top-k"),
    Loss("top-k 128256 mean", 4096, 128256, 21.5, 32, soft="top-k", past="top-k"),
    Loss("logits 1000", 8192, 1000, 66, 16, soft="logits", past="logits", stats=True),
    Loss("probabilities 1000", 8192, 1000, 28, 16, target="probabilities"),
    Loss("dense 1000 fp16", 8192, 1000, 29, 16, torch.float16, soft="dense", past="dense"),
    Loss("everything 1000", 8192, 1000, 74, 16, soft="dense", past="dense", target="mixup", weighted=True,
         label_smoothing=0.1, stats=True),
)  # fmt: skip
MEDOIDS = (
    Medoids("euclidean 1000", 20000, 1000, 20),
    Medoids("euclidean 1000 bf16", 20000, 1000, 20, dtype=torch.bfloat16),
    Medoids("euclidean 1000 bf16, in panels", 300_000, 1000, 300, dtype=torch.bfloat16),
    Medoids("euclidean 10000 bf16", 20000, 10_000, 200, dtype=torch.bfloat16),
    Medoids("euclidean 1000 fp64", 20000, 1000, 20, dtype=torch.float64),
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
# Each way to work on rows (several at once, held, read twice, from anywhere, with lists), and each op.
DAILY = ("plain 1000", "plain 21841", "dense 128", "dense 4096 mean", "top-k 4096 mean", "euclidean 1000 bf16", "8192")
EVERY_RUN = tuple(case for case in CASES if case.name in DAILY)
