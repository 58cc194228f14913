"""Which backends this installation has, which one "auto" picks, and what to say when one is missing."""

import importlib

import torch  # before _C: torch loads its OpenMP runtime globally, and the kernels share its thread pool

try:
    _C = importlib.import_module("._C", __package__)
except ImportError as error:
    _C = None
    _WHY_NO_CPU_KERNELS = str(error)

BACKENDS = ("auto", "reference", "cpu")


def missing(backend: str) -> str | None:
    """Why `backend` cannot be used here and what would mend it, or None if it can."""
    if backend == "cpu" and _C is None:
        return (
            f"the C++ kernels are not built ({_WHY_NO_CPU_KERNELS}); "
            "install a C++ compiler and reinstall toast-kernels with TOAST_CPU=1 to see what stops the build"
        )
    return None


def choose(requested: str, device: torch.device) -> str:
    """The backend that runs on tensors of `device`: "auto" takes the fastest there is, a name is taken at its word.

    Raises ValueError for an unknown name or one that cannot take tensors of this device, RuntimeError for one
    that is not installed.
    """
    if requested not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {requested!r}")
    if requested == "auto":
        return "cpu" if device.type == "cpu" and _C is not None else "reference"
    if requested == "cpu" and device.type != "cpu":
        raise ValueError(f'backend "cpu" needs tensors on the CPU, got tensors on {device}')
    if why := missing(requested):
        raise RuntimeError(f'backend "{requested}" is not available: {why}')
    return requested
