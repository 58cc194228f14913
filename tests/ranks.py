"""Runs a function on several ranks: processes that talk over gloo.

    results = ranks.run("test_distributed_medoids", "every_case", 4)

returns what each rank's every_case(rank, size) returned, in rank order, or raises RuntimeError with all that they
printed when one fails or the time is up. Ranks are forked from a server that has imported what takes long, once for all
tests.
"""

import datetime
import importlib
import multiprocessing.connection
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

fork_server = multiprocessing.get_context("forkserver")
fork_server.set_forkserver_preload(["blended_kl_cases", "medoid_cases", "toast_kernels.sharded.loss", "ranks"])


def run(module: str, function: str, size: int, timeout: float = 120) -> list:
    of_the_server = {"PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder, "printed")
        printed.touch()
        processes = [
            fork_server.Process(target=one_rank, args=(module, function, rank, size, folder, {**os.environ}))
            for rank in range(size)
        ]
        with mock.patch.dict(os.environ, of_the_server):
            for process in processes:
                process.start()
        running = {process.sentinel: process for process in processes}
        failed = False
        while running and not failed:  # the first failure ends all: the others would wait for it
            ended = multiprocessing.connection.wait(running, timeout)
            for sentinel in ended:
                process = running.pop(sentinel)
                process.join()
                failed |= process.exitcode != 0
            failed |= not ended
        for process in running.values():
            process.kill()
            process.join()
        if failed:
            raise RuntimeError(f"{module}.{function} failed\n{printed.read_text()}")
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(size)]


def seconds(number: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=number)


def one_rank(module: str, function: str, rank: int, size: int, folder: str, environment: dict) -> None:
    os.environ.update(environment)  # the server has that of its own start
    with open(os.path.join(folder, "printed"), "ab") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    store = dist.FileStore(os.path.join(folder, "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=seconds(30))
    found = getattr(importlib.import_module(module), function)(rank, size)
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()
