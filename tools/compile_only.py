"""Compiles on a machine without a GPU what the library would launch on one, and reads what came out.

    with compile_only("sm_90") as kernels:
        toast_loss(logits, target)  # on CPU tensors: every launch is compiled for the chip, none runs
    kernels[0].registers

In a process without TRITON_INTERPRET; compile_all starts such processes. A kernel's grid, its constants and the
specialisation on alignment and divisibility are those of the launch, so what is read is what a GPU would run.
compile_cases.py says what is compiled, compile_report.py prints a table of it.
"""

import multiprocessing
import os
import re
import subprocess
import tempfile
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget

from toast_kernels import triton_launch
from toast_kernels.blended_kl import plan


@dataclass(frozen=True)
class Chip:
    """What a multiprocessor (compute unit) holds. Registers are those of one of its four parts, a lane."""

    target: tuple
    shared_bytes: int  # the most a block may have
    shared_total: int
    shared_reserved: int  # of every block
    registers: int  # a lane of one part, to be divided among its warps
    registers_a_thread: int
    warps: int  # of one part
    max_blocks: int = 32


CHIPS = {
    "sm_80": Chip(("cuda", 80, 32), 163 << 10, 164 << 10, 1 << 10, 512, 255, 16),
    "sm_90": Chip(("cuda", 90, 32), 227 << 10, 228 << 10, 1 << 10, 512, 255, 16),
    "sm_100": Chip(("cuda", 100, 32), 227 << 10, 228 << 10, 1 << 10, 512, 255, 16),
    "gfx942": Chip(("hip", "gfx942", 64), 64 << 10, 64 << 10, 0, 512, 512, 8),
}
PARTS = 4
MOST_THREADS = 1024  # of a block
REGISTER_GRANULE = 8
TENSOR_MEMORY = 512  # columns of a multiprocessor, sm_100

MATRIX = re.compile(r"(HMMA|HGMMA|DMMA|UTC\w*MMA|v_mfma)")
GLOBAL_LOAD = re.compile(r"(LDG|LDGSTS)\.|(global|buffer|flat)_load_")
GLOBAL_STORE = re.compile(r"STG\.|(global|buffer|flat)_store_")
LOCAL = re.compile(r"(LDL|STL)\b|scratch_(load|store)_")
EXP = re.compile(r"MUFU\.EX2|v_exp_f32")
WIDTHS = {  # bytes a thread moves, by a part of the opcode; 4 where none is named
    "256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1,
    "dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "ushort": 2, "sshort": 2, "short": 2, "ubyte": 1, "sbyte": 1, "byte": 1,
}  # fmt: skip


class Code(NamedTuple):
    opcodes: Counter
    loops: tuple  # a Counter for the body of each innermost loop
    spilled: int  # registers by the compiler's account (AMD), else local loads and stores


@dataclass(frozen=True)
class Kernel:
    """One launch: how it was asked for and what the compiler made of it. Instructions are counted as they stand."""

    name: str
    chip: str
    constants: dict
    grid: tuple
    num_warps: int
    num_stages: int
    registers: int
    local_bytes: int  # stack and local memory of a thread
    shared_bytes: int
    tensor_memory: int  # columns
    binary: bytes | str  # cubin, or AMD's assembly

    @cached_property
    def code(self):
        """Read when it is asked for: nvdisasm takes half a second to start."""
        return read_cubin(self.binary) if isinstance(self.binary, bytes) else read_amdgcn(self.binary)

    @property
    def opcodes(self):
        return self.code.opcodes

    @property
    def loops(self):
        return self.code.loops

    @property
    def spilled(self):
        nowhere = isinstance(self.binary, bytes) and not self.local_bytes
        return 0 if nowhere else self.code.spilled

    @property
    def programs(self):
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def threads(self):
        return self.num_warps * CHIPS[self.chip].target[2]

    @property
    def instructions(self):
        return sum(self.opcodes.values())

    @cached_property
    def loads(self):
        """{bytes: instructions}, the global loads by width."""
        return widths(self.opcodes, GLOBAL_LOAD)

    @cached_property
    def stores(self):
        return widths(self.opcodes, GLOBAL_STORE)

    @property
    def exps(self):
        return count(self.opcodes, EXP)

    @property
    def matrix(self):
        """{instruction: how many}: HMMA, HGMMA, UTCHMMA, v_mfma."""
        found = Counter()
        for opcode, times in self.opcodes.items():
            if match := MATRIX.match(opcode):
                found[match[1]] += times
        return dict(found)

    @property
    def blocks(self):
        """Blocks that a multiprocessor holds at a time."""
        chip = CHIPS[self.chip]
        if self.threads > MOST_THREADS:
            return 0
        registers = -(-self.registers // REGISTER_GRANULE) * REGISTER_GRANULE
        warps = PARTS * min(chip.warps, chip.registers // max(registers, 1))
        fits = [chip.max_blocks, warps // self.num_warps]
        if self.shared_bytes:
            fits.append(chip.shared_total // (self.shared_bytes + chip.shared_reserved))
        if self.tensor_memory:
            fits.append(TENSOR_MEMORY // self.tensor_memory)
        return min(fits)


def count(opcodes, pattern):
    return sum(times for opcode, times in opcodes.items() if pattern.match(opcode))


def widths(opcodes, pattern):
    found = Counter()
    for opcode, times in opcodes.items():
        if pattern.match(opcode):
            found[next((WIDTHS[part] for part in re.split("[._]", opcode) if part in WIDTHS), 4)] += times
    return dict(found)


class CompileOnlyDriver:
    """As much of a Triton driver as a launch asks for before it launches."""

    def __init__(self, target):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target  # a kernel keeps what it compiled by device

    def get_current_stream(self, device=None):
        return 0


@contextmanager
def compile_only(chip):
    """Every launch in the block is compiled for a chip of CHIPS and not run; yields the list of Kernel."""
    assert not triton.knobs.runtime.interpret, "TRITON_INTERPRET is set: nothing would be compiled"
    launch = triton.runtime.JITFunction.run
    kernels = []

    def run(function, *args, grid, warmup, **keywords):
        binary = launch(function, *args, grid=grid, warmup=True, **keywords)
        if callable(grid):
            grid = grid(dict(zip(function.arg_names, args, strict=False)) | keywords)
        kernels.append(read(function, chip, (*grid, 1, 1)[:3], binary))
        return binary

    backend, *_ = CHIPS[chip].target
    with (
        patch.object(triton.runtime.JITFunction, "run", run),
        patch.object(triton_launch, "TRIED", ()),  # no launch is kept, all go through JITFunction.run
        patch.dict(plan._plans, clear=True),  # those of another chip have its configurations
        patch.object(triton.runtime.driver, "_active", CompileOnlyDriver(GPUTarget(*CHIPS[chip].target))),
        patch.object(torch.version, "hip", "6.4" if backend == "hip" else None),  # as where such a GPU is
    ):
        yield kernels


def compile_all(jobs):
    """{job: [Kernel], or the traceback as text}; a job is (chip, function), the function importable and without
    arguments. In processes of their own, without Triton's interpreter, as many as there are cores for this one."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    workers = ProcessPoolExecutor(max(cores, 1), multiprocessing.get_context("spawn"))
    with patch.dict(os.environ), workers:
        os.environ.pop("TRITON_INTERPRET", None)  # read when Triton is imported
        return dict(zip(jobs, workers.map(compile_one, *zip(*jobs, strict=True)), strict=True))


def compile_one(chip, function):
    torch.set_num_threads(1)
    try:
        with compile_only(chip) as kernels:
            function()
        return kernels
    except Exception:
        return traceback.format_exc()


def read(function, chip, grid, binary):
    metadata = binary.metadata
    if "amdgcn" in binary.asm:
        code = binary.asm["amdgcn"]
        registers, local_bytes = field(code, "vgpr_count"), field(code, "private_segment_fixed_size")
    else:
        code = binary.asm["cubin"]
        usage = cuobjdump(code, "-res-usage")
        registers, *local = (int(re.search(rf"\b{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
        local_bytes = sum(local)
    constants = {
        ".".join(map(str, (function.arg_names[path[0]], *path[1:]))): value
        for path, value in binary.src.constants.items()
        if isinstance(value, (bool, int, float, str))
    }
    return Kernel(
        function.fn.__name__, chip, constants, grid, metadata.num_warps, metadata.num_stages, registers, local_bytes,
        shared_bytes=metadata.shared, tensor_memory=getattr(metadata, "tmem_size", None) or 0, binary=code,
    )  # fmt: skip


@cache
def read_cubin(cubin):
    sass = cuobjdump(cubin, "-sass")
    instruction = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@\S+\s+)?([A-Z][\w.]*)([^;]*);", re.M)
    found = [(int(at, 16), guard, opcode, rest) for at, guard, opcode, rest in instruction.findall(sass)]
    # After the exit stand slow paths of divisions, shuffles and waits. A loop for ever has its exits inside.
    end = max((at for at, guard, opcode, _ in found if opcode == "EXIT" and not guard), default=found[-1][0])
    jumps = [(int(target[1], 16), at) for at, _, opcode, rest in found
             if opcode.startswith("BRA") and at <= end and (target := re.search(r"0x([0-9a-f]+)", rest))]  # fmt: skip
    padding = {at for to, at in jumps if to == at} | {at for at, _, opcode, _ in found if opcode == "NOP"}
    lines = [(at, opcode) for at, _, opcode, _ in found if at <= end and at not in padding]
    spilled = sum(bool(LOCAL.match(opcode)) for _, _, opcode, _ in found)
    return Code(Counter(opcode for _, opcode in lines), innermost(jumps, lines), spilled)


def cuobjdump(cubin, what):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, what, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def field(assembly, name):
    return int(re.search(rf"^\s+(?:- )?\.{name}:\s+(\d+)", assembly, re.M)[1])


@cache
def read_amdgcn(assembly):
    """Of the assembly's text, in which comments say which loop a block of code is in."""
    opcodes, loops, block, header, inner = Counter(), {}, None, None, set()
    for line in assembly.splitlines():
        if match := re.match(r"(?:\.L|; %)(BB\w+|bb\.\d+):", line):
            block, header = match[1], None
        if re.search(r"=>\s*This (Inner )?Loop Header", line):
            header = block
            inner |= {block} if "Inner" in line else set()
        elif match := re.search(r"in Loop: Header=(BB\w+)", line):
            header = match[1]
        elif match := re.match(r"\t([a-z]+_\w+)", line):
            opcodes[match[1]] += 1
            loops.setdefault(header, Counter())[match[1]] += 1
    innermost_loops = tuple(body for header, body in loops.items() if header in inner and works(body))
    spilled = field(assembly, "vgpr_spill_count")  # scalar registers spill into lanes of vector registers
    return Code(opcodes, innermost_loops, spilled)


def innermost(jumps, lines):
    """Opcodes of each innermost loop that works: found by the jumps (to, from) that go back."""
    bodies = {(to, at): Counter(op for line, op in lines if to <= line <= at) for to, at in sorted(jumps) if to < at}
    work = [span for span, body in bodies.items() if works(body)]
    return tuple(bodies[a] for a in work if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in work))


def works(body):
    """Whether a loop does more than wait."""
    return any(count(body, kind) for kind in (GLOBAL_LOAD, EXP, MATRIX))
