"""What was aimed at on two cores of a CPU, and the table of what was measured."""

from statistics import median
from typing import NamedTuple

from medoid_peers import KMEDOIDS, LOOPLESS
from results import COPY, FLOORS, OURS
from tables import BACKWARD, markdown, over_runs

BYTES = {"float32": 4, "bfloat16": 2}


class Aim(NamedTuple):
    what: str
    suite: str
    work: str
    sizes: tuple[str, ...] | None  # None for all of the suite's
    value: str  # what is looked at: "faster", "slower" (than the peer), "of_copy", "gradients" of extra memory, "us"
    peer: str | None = None  # None with "faster": the best of all peers
    at_least: float | None = None
    at_most: float | None = None


LARGE = ("4096 x 1000", "1024 x 3250", "256 x 21841")
AIMS = [
    Aim("blended: 12 times as fast as eager", "loss_blended", BACKWARD, LARGE, "faster", "eager", at_least=12),
    Aim("... 10 times at 1024 x 1000", "loss_blended", BACKWARD, ("1024 x 1000",), "faster", "eager", at_least=10),
    Aim(
        "blended: 5 times as fast as torch.compile", "loss_blended", BACKWARD, None, "faster", "torch.compile",
        at_least=5,
    ),
    Aim("blended: at most 1.8 times a copy's time", "loss_blended", BACKWARD, LARGE, "of_copy", at_most=1.8),
    Aim("blended: at most 1.1 gradients of extra memory", "loss_blended", BACKWARD, None, "gradients", at_most=1.1),
    Aim(
        "plain: 2.3 times as fast as F.cross_entropy", "loss_plain", BACKWARD, ("1024 x 1000", *LARGE), "faster",
        "F.cross_entropy", at_least=2.3,
    ),
    Aim(
        "top-k: at most 1.15 times plain", "loss_top_k", BACKWARD, None, "slower",
        "toast_kernels without soft targets", at_most=1.15,
    ),
    Aim(
        "plain, 8 x 10: at most 1.3 times F.cross_entropy's time", "loss_plain", BACKWARD, ("8 x 10",), "slower",
        "F.cross_entropy", at_most=1.3,
    ),
    Aim("... 1.1 times at 256 x 100", "loss_plain", BACKWARD, ("256 x 100",), "slower", "F.cross_entropy", at_most=1.1),
    Aim("... 3 times, forward alone", "loss_plain", "forward", ("8 x 10",), "slower", "F.cross_entropy", at_most=3),
    Aim(
        "linear, plain: at most F.linear_cross_entropy's time", "linear_plain", BACKWARD, None, "slower",
        "F.linear_cross_entropy", at_most=1,
    ),
    Aim(
        "linear, blended: at most 1.1 times plain", "linear_blended", BACKWARD, None, "slower",
        "toast_kernels, without blending", at_most=1.1,
    ),
    Aim("medoids: as fast as torch.cdist's loop", "medoids", "euclidean", None, "faster", "torch.cdist", at_least=1),
    Aim("medoids: 5 times as fast as kmedoids", "medoids", "euclidean", None, "faster", KMEDOIDS, at_least=5),
    Aim(
        "medoids, cosine: 1.3 times as fast as torch without a loop", "medoids", "cosine", None, "faster", LOOPLESS,
        at_least=1.3,
    ),
    Aim("... jeffreys", "medoids", "jeffreys", None, "faster", LOOPLESS, at_least=1.3),
    Aim("medoids, cityblock: twice as fast as the best peer", "medoids", "cityblock", None, "faster", at_least=2),
    Aim(
        "a training step with TOAST: at most 1.03 times one with cross-entropy on the same rows", "training_step",
        "training step", None, "slower", "F.cross_entropy", at_most=1.03,
    ),
    Aim("a small step but for the model: at most 200 us", "small_step", "replay, loss, pool", None, "us", at_most=200),
]  # fmt: skip


def came_out(last_runs):
    """The table of aims, from `last_runs(suite)`: what was measured in each case, and in how many the aim is met."""
    rows = []
    for aim in AIMS:
        found = {
            f"{size}, {dtype}": value(aim, size, dtype, case)
            for (work, size, dtype), case in last_runs(aim.suite).items()
            if work == aim.work and (aim.sizes is None or size in aim.sizes)
        }
        found = {case: number for case, number in found.items() if number is not None}
        met = [number for number in found.values() if is_met(aim, number)]
        measured = "; ".join(f"{case}: {number:.3g}" for case, number in found.items())
        verdict = "yes" if len(met) == len(found) else f"in {len(met)} of {len(found)} cases" if met else "no"
        rows.append([aim.what, measured or "not measured yet", verdict if found else ""])
    return markdown(["aim", "measured", "met"], rows)


def is_met(aim, number):
    return number >= aim.at_least if aim.at_most is None else number <= aim.at_most


def value(aim, size, dtype, case):
    """The number to hold against the aim: the median over the runs; None where the peer was not there."""
    if aim.value == "gradients":
        rows, classes = (int(n) for n in size.split(" x "))
        return float(case[OURS][-1]["peak_mb"]) * 2**20 / (rows * classes * BYTES[dtype])
    if aim.value == "us":
        return 1e3 * median(float(row["p50_ms"]) for row in case[OURS])
    if aim.value == "of_copy":
        return over_runs(case[OURS], "of_copy")[0] if COPY in case else None
    if aim.peer is None:
        return min(over_runs(rows, "ours_faster")[0] for peer, rows in case.items() if peer not in (OURS, *FLOORS))
    if aim.peer not in case:
        return None
    ratio = over_runs(case[aim.peer], "ours_faster")[0]
    return 1 / ratio if aim.value == "slower" else ratio
