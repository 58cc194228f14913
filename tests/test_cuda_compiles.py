"""What nvcc made of the CUDA kernels: nothing is spilled, and two blocks share a multiprocessor."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from toast_kernels import backends

TRITONS = Path(getattr(find_spec("triton"), "origin", "")).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
CUOBJDUMP = shutil.which("cuobjdump") or shutil.which(TRITONS)
REGISTERS, THREADS, BLOCKS = 65536, 256, 2  # of a multiprocessor, of a block, of a multiprocessor

module = next(Path(backends.__file__).parent.glob("_cuda.*.so"), None)
pytestmark = [
    pytest.mark.skipif(module is None, reason="the CUDA kernels are not built"),
    pytest.mark.skipif(CUOBJDUMP is None, reason="needs cuobjdump, of CUDA's toolkit or Triton"),
]


def resources():
    """(architecture, function, {resource: amount}) of every kernel in the module."""
    listing = subprocess.run([CUOBJDUMP, "--dump-resource-usage", module], capture_output=True, text=True, check=True)
    architecture, found = None, []
    for line in listing.stdout.splitlines():
        architecture = (re.search(r"arch = (\w+)", line) or [None, architecture])[1]
        if name := re.search(r"Function (\S+):", line):
            found.append((architecture, name[1], {}))
        elif "REG:" in line:
            found[-1][2].update({key: int(amount) for key, amount in re.findall(r"(\w+):(\d+)", line)})
    return found


def test_every_architecture_has_every_kernel():
    kernels = {}
    for architecture, name, _ in resources():
        kernels.setdefault(architecture, set()).add(name)
    assert len(set(map(frozenset, kernels.values()))) == 1
    rows = [name for name in next(iter(kernels.values())) if "blended_kl_kernel" in name]
    assert len(rows) == 3 * 3  # of each type of logits: labels alone, a target row, and a past


def test_nothing_is_spilled_and_two_blocks_fit():
    for architecture, name, used in resources():
        assert used["LOCAL"] == 0, (architecture, name, used)
        if "blended_kl_kernel" in name:
            assert used["REG"] * THREADS * BLOCKS <= REGISTERS, (architecture, name, used)
