"""Which kernels each op has, which are installed here, which one "auto" picks, and what to say when one cannot."""

import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch  # before _C: torch loads its OpenMP runtime globally, and the kernels share its thread pool


def _built(name: str) -> tuple[ModuleType | None, str]:
    """A module of kernels, or None and why it cannot be imported."""
    try:
        return importlib.import_module(f".{name}", __package__), ""
    except ImportError as error:
        return None, str(error)


_C, _WHY_NO_CPU_KERNELS = _built("_C")
_cuda, _WHY_NO_CUDA_KERNELS = _built("_cuda")  # a test may put _cuda_on_cpu, or None, into _cuda

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Kernels(NamedTuple):
    """What a backend can do for an op."""

    device: str | None  # type of the tensors' device ("cuda" is ROCm's too); None: any
    dtypes: tuple[torch.dtype, ...] = FLOATS
    widest: int | None = None  # row: classes, or columns of class_medoids' x; None: any
    auto_from: int = 0  # how wide rows must be for "auto" to take it; then they must be of those that it holds, too


REFERENCE = Kernels(None)

# op -> backend -> its kernels, in the order in which "auto" tries them. README.md has this as a table.
# Measured on a CPU: "cpu" against the reference and torch's own, in README.md and bench/README.md.
# Measured on one H200 (torch 2.11, Triton 3.6, caches flushed, forward + backward, bfloat16), us of trials of the two
# designs, rows in blocks (Triton) and held in registers ("cuda"):
#   plain 4096 x 16384   67, 73      plain 2048 x 128256   324, 301      top-k, past logits 512 x 131072   139, 130
#   plain 4096 x 32768  143, 140     dense, past 2048 x 32768  140, 153
# and of "cuda" alone, at 81 to 92% (plain) and 61 to 64% (top-k, past logits) of a copy's speed, 65,536 and 262,144
# classes. So "auto" takes it from 65,536 classes on for rows of these kinds. The kernels as they are now have not run
# on a GPU. There class_medoids on "triton" took 35.7 ms for 1.3M x 1000, a torch.cdist loop 257 to 352. Not measured:
# kept_rows and softmax_statistics on "triton", float64 on a GPU, AMD's GPUs, the widest rows.
KERNELS = {
    "blended_kl": {
        "cpu": Kernels("cpu"),
        "cuda": Kernels("cuda", FLOATS[1:], widest=2**31 - 2**16, auto_from=65_536),
        "triton": Kernels("cuda", FLOATS[1:], widest=2**31 - 2**16),  # argmax counts in int32, a block beyond the end
        "reference": REFERENCE,
    },
    "medoids": {
        "cpu": Kernels("cpu"),
        "triton": Kernels("cuda"),
        "reference": REFERENCE,
    },
    "kept_rows": {
        "cpu": Kernels("cpu"),
        "triton": Kernels("cuda", FLOATS[1:]),
        "reference": REFERENCE,
    },
    "softmax_statistics": {
        "cpu": Kernels("cpu"),
        "triton": Kernels("cuda", FLOATS[1:]),
        "reference": REFERENCE,
    },
}

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (8, 0)  # what the kernels are compiled for and checked in the tests
OLDEST_WITH_CLUSTERS = (9, 0)  # of thread blocks, which "cuda" is made of


@functools.cache
def implementation(op: str, backend: str) -> ModuleType:
    """The module with an op's kernels, or its reference."""
    return importlib.import_module(f".{op}.{backend}", __package__)


def choose(
    op: str,
    requested: str,
    device: torch.device,
    dtype: torch.dtype,
    width: int | None = None,
    *,
    held: bool = False,
) -> str:
    """The backend that runs `op` on tensors of this device and dtype, whose rows hold `width` numbers (None: few).

    "auto" takes the first of KERNELS[op] that can, and at last the reference; a name is taken at its word.
    held: "cuda" would hold the rows in registers, see blended_kl/cuda.py.

    Raises ValueError for an unknown name or one that cannot take these tensors, RuntimeError for one that is not
    installed; both say what would do.
    """
    if requested not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {requested!r}")
    if requested == "auto":
        for name, kernels in KERNELS[op].items():
            wanted = not kernels.auto_from or (held and width >= kernels.auto_from)
            here = wanted and kernels.device in (None, device.type) and not missing(name, device)
            if here and not _refusal(kernels, dtype, width):
                return name
    if requested not in KERNELS[op]:
        others = " or ".join(f'"{name}"' for name in ("auto", *KERNELS[op]))
        raise ValueError(f'backend "{requested}" has no kernel for {op}; use {others}')
    if why := missing(requested, device):
        raise RuntimeError(f'backend "{requested}" is not available: {why}')
    kernels = KERNELS[op][requested]
    if kernels.device not in (None, device.type) and not (device.type == "cpu" and on_cpu(requested)):
        where = "the CPU" if kernels.device == "cpu" else "a GPU"
        hint = " (TRITON_INTERPRET=1, set before Python starts, runs it on the CPU, very slowly)"
        hint = hint if requested == "triton" and device.type == "cpu" else ""
        raise ValueError(f'backend "{requested}" needs tensors on {where}, got tensors on {device}{hint}')
    if why := _refusal(kernels, dtype, width):
        raise ValueError(f'backend "{requested}" {why}; use "auto" or "reference"')
    return requested


def _refusal(kernels: Kernels, dtype: torch.dtype, width: int | None) -> str | None:
    """Why these kernels cannot take such tensors, wherever they are; None if they can."""
    if dtype not in kernels.dtypes:
        return f"computes in float32, and the logits are {str(dtype).removeprefix('torch.')}"
    if width is not None and kernels.widest is not None and width > kernels.widest:
        return f"takes rows of at most {kernels.widest} numbers, and these have {width}"
    return None


def missing(backend: str, device: torch.device) -> str | None:
    """Why `backend` cannot run on `device` here and what would mend it, or None if it can."""
    if backend == "cpu" and _C is None:
        return _not_built("C++", _WHY_NO_CPU_KERNELS, "a C++ compiler", "TOAST_CPU") + _in_sources()
    if backend == "triton":
        return _why_no_triton() or (_why_no_gpu(device) if device.type == "cuda" else None)
    if backend == "cuda" and _cuda is None:
        return _not_built("CUDA", _WHY_NO_CUDA_KERNELS, "CUDA's compiler, nvcc,", "TOAST_CUDA")
    if backend == "cuda" and device.type == "cuda":
        return "this PyTorch is for AMD's GPUs" if torch.version.hip else _why_no_gpu(device, OLDEST_WITH_CLUSTERS)
    return None


def on_cpu(backend: str) -> bool:
    """Whether a GPU's kernels run on tensors on the CPU here, as in tests."""
    return interpreted() if backend == "triton" else _cuda is not None and _cuda.on_cpu


def interpreted() -> bool:
    """Whether Triton's kernels are run by its interpreter, on tensors on the CPU."""
    return _why_no_triton() is None and importlib.import_module("triton").knobs.runtime.interpret


# torch.compile is to take the answers and not to look at how they are found. What torch.compiler.assume_constant_result
# sets, which would import all of torch._dynamo to do so.
for answer in (missing, interpreted, on_cpu):
    answer._dynamo_marked_constant = True


def _not_built(kernels: str, why: str, compiler: str, variable: str) -> str:
    return (
        f"the {kernels} kernels are not built ({why}): this build found no compiler or had {variable}=0; "
        f"with {compiler} reinstall toast-kernels from its sources with {variable}=1 to have them or see what stops it"
    )


def _in_sources() -> str:
    sources = (Path(__file__).parent.parent / "csrc").is_dir()
    return "; or, as these are the sources, which hide what is installed: run elsewhere" if sources else ""


@functools.cache
def _why_no_triton() -> str | None:
    try:
        triton = importlib.import_module("triton")
        version = tuple(int(number) for number in triton.__version__.split(".")[:2])
    except Exception as error:  # whatever a broken installation raises
        return f"Triton cannot be imported ({error}); pip install {getattr(error, 'name', None) or 'triton'}"
    if version < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"Triton is {triton.__version__}, and the kernels need {oldest}, which comes with PyTorch 2.10"
    return None


@functools.cache
def _why_no_gpu(device: torch.device, oldest: tuple[int, int] = OLDEST_CAPABILITY) -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if torch.version.cuda and (capability := torch.cuda.get_device_capability(device)) < oldest:
        oldest, this = (".".join(map(str, version)) for version in (oldest, capability))
        return f"{torch.cuda.get_device_name(device)} has compute capability {this}, and the kernels need {oldest}"
    return None
