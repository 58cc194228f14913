"""Which backends this installation has, which one "auto" picks, and what to say when one is missing."""

import functools
import importlib
from pathlib import Path

import torch  # before _C: torch loads its OpenMP runtime globally, and the kernels share its thread pool

try:
    _C = importlib.import_module("._C", __package__)
except ImportError as error:
    _C = None
    _WHY_NO_CPU_KERNELS = str(error)
try:
    _cuda = importlib.import_module("._cuda", __package__)  # a test may put _cuda_on_cpu here
except ImportError as error:
    _cuda = None
    _WHY_NO_CUDA_KERNELS = str(error)

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
# What "auto" tries in this order, by device; ROCm's devices are called cuda too.
FASTEST = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
# Where "cuda" is predicted to be faster than Triton: for rows that Triton reads twice, on GPUs with block clusters.
LONG_ROW = 16385
CLUSTERS_FROM = (9, 0)
OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (8, 0)  # what the kernels are compiled for and checked in the tests


def missing(backend: str, device: torch.device) -> str | None:
    """Why `backend` cannot run on `device` here and what would mend it, or None if it can."""
    if backend == "cpu" and _C is None:
        return (
            f"the C++ kernels are not built ({_WHY_NO_CPU_KERNELS}); "
            "install a C++ compiler and reinstall toast-kernels with TOAST_CPU=1 to see what stops the build"
            + _in_sources()
        )
    if backend == "triton":
        return _why_no_triton() or (_why_no_gpu(device) if device.type == "cuda" else None)
    if backend == "cuda" and _cuda is None:
        return (
            f"the CUDA kernels are not built ({_WHY_NO_CUDA_KERNELS}); "
            "install CUDA's compiler, nvcc, and reinstall toast-kernels with TOAST_CUDA=1 to see what stops the build"
        )
    if backend == "cuda" and device.type == "cuda":
        return "this PyTorch is for AMD's GPUs" if torch.version.hip else _why_no_gpu(device)
    return None


def choose(requested: str, device: torch.device, row: int | None = None) -> str:
    """The backend that runs on tensors of `device`: "auto" takes the fastest there is, a name is taken at its word.

    row: the number of classes in a row, or None for an op that has no CUDA kernel.

    Raises ValueError for an unknown name or one that cannot take tensors of this device, RuntimeError for one
    that is not installed.
    """
    if requested not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {requested!r}")
    if requested == "auto":
        for name in FASTEST.get(device.type, ()):
            pays = name != "cuda" or (row is not None and row >= LONG_ROW and has_clusters(device))
            if pays and not missing(name, device):
                return name
        return "reference"
    if requested == "cuda" and row is None:
        raise ValueError('backend "cuda" has no kernel for this op; use "auto" or "triton"')
    if requested == "cpu" and device.type != "cpu":
        raise ValueError(f'backend "cpu" needs tensors on the CPU, got tensors on {device}')
    if why := missing(requested, device):
        raise RuntimeError(f'backend "{requested}" is not available: {why}')
    if requested in ("triton", "cuda") and device.type != "cuda" and not (device.type == "cpu" and on_cpu(requested)):
        hint = " (TRITON_INTERPRET=1, set before Python starts, runs it on the CPU, very slowly)"
        hint = hint if requested == "triton" and device.type == "cpu" else ""
        raise ValueError(f'backend "{requested}" needs tensors on a GPU, got tensors on {device}{hint}')
    return requested


def on_cpu(backend: str) -> bool:
    """Whether a GPU's kernels run on tensors on the CPU here, as in tests."""
    return interpreted() if backend == "triton" else _cuda is not None and _cuda.on_cpu


def has_clusters(device: torch.device) -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= CLUSTERS_FROM


def interpreted() -> bool:
    """Whether Triton's kernels are run by its interpreter, on tensors on the CPU."""
    return _why_no_triton() is None and importlib.import_module("triton").knobs.runtime.interpret


# torch.compile is to take the answers and not to look at how they are found. What torch.compiler.assume_constant_result
# sets, which would import all of torch._dynamo to do so.
for answer in (missing, has_clusters, interpreted, on_cpu):
    answer._dynamo_marked_constant = True


def _in_sources() -> str:
    sources = (Path(__file__).parent.parent / "csrc").is_dir()
    return "; or, as these are the sources, which hide what is installed: run elsewhere" if sources else ""


@functools.cache
def _why_no_triton() -> str | None:
    try:
        triton = importlib.import_module("triton")
        version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    except Exception as error:  # whatever a broken installation raises
        return f"Triton cannot be imported ({error}); pip install {getattr(error, 'name', None) or 'triton'}"
    if version < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"Triton is {triton.__version__}, and the kernels need {oldest}, which comes with PyTorch 2.10"
    return None


@functools.cache
def _why_no_gpu(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if torch.version.cuda and (capability := torch.cuda.get_device_capability(device)) < OLDEST_CAPABILITY:
        oldest, this = (".".join(map(str, version)) for version in (OLDEST_CAPABILITY, capability))
        return f"{torch.cuda.get_device_name(device)} has compute capability {this}, and the kernels need {oldest}"
    return None
