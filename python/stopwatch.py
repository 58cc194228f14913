"""Where the time of a training step goes, and the most memory it needed."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch


class Stopwatch:
    """Seconds by part. On a GPU the parts are marked by events, so that measuring does not make the host wait."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if self.on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            begin = time.perf_counter()
            yield
            self._add(name, time.perf_counter() - begin)

    def seconds(self) -> dict[str, float]:
        if self._events:
            torch.cuda.synchronize()
            for name, begin, end in self._events:
                self._add(name, begin.elapsed_time(end) / 1000)
            self._events.clear()
        return dict(self._seconds)

    def load(self, seconds: dict[str, float]) -> None:
        self._seconds = dict(seconds)

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


class PeakMemory:
    """The most memory since it was made, in bytes: allocated by torch on a GPU, resident in the process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            _reset_resident_peak()

    def bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _resident_peak()


def _reset_resident_peak() -> None:
    with suppress(OSError):  # elsewhere than on Linux the peak is the whole process's
        Path("/proc/self/clear_refs").write_text("5")


def _resident_peak() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
