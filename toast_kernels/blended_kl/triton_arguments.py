"""Arguments of blended_kl's Triton kernels."""

from typing import Any, NamedTuple


class Labels(NamedTuple):
    target: Any  # [N] int64; None with class probabilities
    target_b: Any  # [N] int64 or None
    lam: Any  # [N] or None
    weight: Any  # [C] or None


class Table(NamedTuple):
    """problem.Table and its layout; without a table its tensors are None. With class probabilities row i of the soft
    targets is the target of row i."""

    stride: int
    width: int  # C | k
    search_step: int  # the largest power of 2 up to it
    data: Any  # values [R, C] or [R, k]; a tuple of Triton has an attribute `values` of its own
    indices: Any  # [R, k] int32, ascending, or None
    logsumexp: Any  # [R] float64 or None
    entropy: Any  # [R] or None
    filled: Any  # [R] bool or None
    temperature: float  # of the logits


class Settings(NamedTuple):
    """A number and its tensor: the tensor counts where there is one."""

    alpha: float
    alpha_tensor: Any  # []
    past_weight: float
    past_weight_tensor: Any  # []
    upstream: Any  # [] or [N] or None: multiplies loss and gradient before they are rounded
    upstream_stride: int
    label_smoothing: Any  # float; None where it is 0
    temperature: float
    ignore_index: int


class Inputs(NamedTuple):
    """Flags are 1 or None: so they are known when a kernel is compiled."""

    logits: Any  # [N, C]
    stride: int
    labels: Labels
    soft: Table
    past: Table
    past_index: Any  # [N] or None
    settings: Settings
    class_tile: Any  # flag: mass of the class term is read class by class: dense tables, smoothing by class weights
    past_tile: Any  # flag: mass of the past term is, too
    uniform: Any  # flag: there is mass that all classes share: smoothing without class weights, tails of top-k rows


class Reduction(NamedTuple):
    """Of "mean" and "sum"; for "none" all are None."""

    divisors: Any  # [2, parts] from normalisers_kernel; None for "sum"
    parts: int
    finished: Any  # [1 + groups] zeros: counters of finished groups of programs, and of each group's finished programs
    partial: Any  # [programs] out: the sum of each one's row losses
    group_sums: Any  # [groups] float64 out
