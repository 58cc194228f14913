"""What the peers of all ops need: the same data for everyone, and why a peer is left out."""

import importlib

import torch
from results import DEVICE

ONLY_ON = {"liger_kernel": "cuda", "cut_cross_entropy": "cuda", "kmedoids": "cpu", "scipy": "cpu"}
NAMES = {"liger_kernel": "Liger", "cut_cross_entropy": "Cut Cross-Entropy"}


def left_out(package):
    """None if `package` can be imported and used on this device; else why not, which is printed."""
    if ONLY_ON.get(package, DEVICE.type) != DEVICE.type:
        why = "needs a GPU" if ONLY_ON[package] == "cuda" else "works on a CPU only"
    else:
        try:
            importlib.import_module(package)
            return None
        except Exception as error:  # whatever a broken installation raises
            why = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    print(f"  {NAMES.get(package, package)} is left out: {why}")
    return why


def compiled(function):
    """As fast as torch.compile gets when told that the sizes never change."""
    return torch.compile(function, dynamic=False)


def normal(*shape, dtype, seed=0):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=DEVICE).mul_(3).to(dtype)


def random_labels(rows, classes, seed=1):
    return torch.randint(classes, (rows,), generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE)
