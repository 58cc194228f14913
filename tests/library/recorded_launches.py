"""A stand-in for a GPU's driver: kernels are compiled for its chip, and launches are written down and not run.

Where it is used TRITON_INTERPRET must not be set; the tests start processes of their own.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import triton
from compile_only import CHIPS, CompileOnlyDriver
from triton.backends.compiler import GPUTarget


class RecordingDriver(CompileOnlyDriver):
    """What a CompiledKernel asks of a driver to be launched; `device` and `stream` are the current ones."""

    def __init__(self, chip):
        super().__init__(GPUTarget(*CHIPS[chip].target))
        self.device, self.stream, self.launches = (chip, 0), 7, []
        self.utils = SimpleNamespace(
            load_binary=lambda name, kernel, shared, device: (object(), hash((name, kernel)), 32, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": CHIPS[chip].shared_bytes},
        )

    @staticmethod
    def launcher_cls(source, metadata):
        return lambda *arguments: triton.runtime.driver.active.launches.append(arguments)

    def get_current_device(self):
        return self.device  # a kernel keeps what it compiled by device

    def get_current_stream(self, device=None):
        return self.stream


@contextmanager
def recorded(chip="sm_90"):
    """Yields the RecordingDriver; its `launches` hold the arguments of each CompiledKernel.run."""
    assert not triton.knobs.runtime.interpret, "TRITON_INTERPRET is set: nothing would be compiled"
    with patch.object(triton.runtime.driver, "_active", RecordingDriver(chip)):
        yield triton.runtime.driver.active


@contextmanager
def compiling_process():
    """Yields run(function, *arguments), which calls function in a process of its own without Triton's interpreter."""
    worker = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with patch.dict(os.environ), worker:
        os.environ.pop("TRITON_INTERPRET", None)  # read when Triton is imported
        yield lambda function, *arguments: worker.submit(function, *arguments).result()
