"""Runs a function on several ranks: processes that talk over gloo.

    results = ranks.run("test_distributed_medoids", "every_case", 4)

imports the module once, forks, and returns what each rank's every_case(rank, size) returned, in rank order, or raises
RuntimeError with all that was printed when a rank fails or the time is up.
"""

import datetime
import importlib
import multiprocessing.connection
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist


def run(module: str, function: str, size: int, timeout: float = 120) -> list:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, Path(__file__), module, function, str(size), folder, str(timeout)]
        paths = os.pathsep.join(sys.path)
        environment = {**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=2 * timeout
        )
        if done.returncode:
            raise RuntimeError(f"{module}.{function} failed\n{done.stdout}")
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(size)]


def seconds(number: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=number)


def one_rank(function, rank: int, size: int, folder: str) -> None:
    store = dist.FileStore(os.path.join(folder, "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=seconds(30))
    torch.save(function(rank, size), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def main(module: str, function: str, size: str, folder: str, timeout: str) -> int:
    function = getattr(importlib.import_module(module), function)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=one_rank, args=(function, rank, int(size), folder)) for rank in range(int(size))]
    for process in processes:
        process.start()
    running = {process.sentinel: process for process in processes}
    failed = False
    while running and not failed:  # the first failure ends all: the others would wait for it
        ended = multiprocessing.connection.wait(running, float(timeout))
        for sentinel in ended:
            process = running.pop(sentinel)
            process.join()
            failed |= process.exitcode != 0
        failed |= not ended
    for process in running.values():
        process.kill()
        process.join()
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
