"""python -m toast_kernels: what is installed here, and which backend "auto" picks for each op and device, and why."""

import argparse
import importlib
import platform
from pathlib import Path

import torch

from . import __version__, backends

DEVICES = ("cpu", "cuda")
KINDS = {"cpu": "C++", "triton": "Triton", "cuda": "CUDA"}


def environment() -> list[tuple[str, str]]:
    """(what, its state) of everything that decides which backend runs."""
    return [
        ("toast_kernels", f"{__version__} in {Path(__file__).parent}"),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("Triton kernels", backends.missing("triton", torch.device("cuda")) or f"usable, {_triton()}"),
        ("CUDA kernels", backends.missing("cuda", torch.device("cuda")) or "usable"),
        ("C++ kernels", backends.missing("cpu", torch.device("cpu")) or f"built, {_cpu_kernels()}"),
        ("threads", f"{torch.get_num_threads()} (torch.get_num_threads)"),
        ("CUDA", _cuda_devices()),
    ]


def choices() -> list[tuple[str, str, str, str]]:
    """(op, device, the backend of "auto", why) for every op and device."""
    rows = []
    for op, kernels in backends.KERNELS.items():
        for device in map(torch.device, DEVICES):
            auto = {dtype: backends.choose(op, "auto", device, dtype) for dtype in backends.FLOATS}
            backend = auto[torch.float32]
            if backend == "reference":
                kind = next(KINDS[name] for name, these in kernels.items() if these.device == device.type)
                why = f"plain PyTorch: the {kind} kernels cannot be used, see above"
            else:
                exceptions = [str(dtype).removeprefix("torch.") for dtype in auto if auto[dtype] == "reference"]
                exceptions += ["a target that requires grad"] if op == "blended_kl" else []
                why = f"{KINDS[backend]} kernels"
                why += f"; the reference for {' and '.join(exceptions)}" if exceptions else ""
                why += "".join(
                    f"; the {KINDS[name]} kernels for rows of {these.auto_from:,} numbers and more, some kinds of them"
                    for name, these in kernels.items()
                    if these.auto_from
                    and backends.choose(op, "auto", device, torch.bfloat16, these.auto_from, held=True) == name
                )
            rows.append((op, device.type, backend, why))
    return rows


def _triton() -> str:
    interpreted = ", by its interpreter on the CPU" if backends.interpreted() else ""
    return f"Triton {importlib.import_module('triton').__version__}{interpreted}"


def _cpu_kernels() -> str:
    try:
        return f"instruction set {backends._C.cpu_isa()} (TOAST_CPU_ISA asks for a lower one)"
    except RuntimeError as error:  # TOAST_CPU_ISA names one that is not there
        return f"but unusable: {error}"


def _cuda_devices() -> str:
    if not torch.cuda.is_available():
        return "no device" if torch.version.cuda else "no device, and a torch without CUDA"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return f"{torch.version.cuda}, {', '.join(names)}, compute capability {capability}"


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main() -> None:
    argparse.ArgumentParser(prog="python -m toast_kernels", description=__doc__).parse_args()
    print(_table(environment()), end="\n\n")
    print(_table([("op", "device", 'backend="auto"', "why"), *choices()]))


if __name__ == "__main__":
    main()
