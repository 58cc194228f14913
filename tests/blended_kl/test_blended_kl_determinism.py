"""The same bits for any number of threads; the same bits from AVX2 and AVX-512; the portable build is as accurate."""

import os
import subprocess
import sys

import pytest
import torch
from blended_kl_cases import DTYPES, ENCODINGS, Case, name, run

from toast_kernels import toast_loss
from toast_kernels.backends import _C

THREADS = (1, 2, 3, 5)
SHAPES = {
    "one wide row": (1, 100_003),
    "few wide rows": (3, 33_001),
    "rows in chunks": (9, 9_001),
    "rows too wide to keep": (9, 33_001),
    "many narrow rows": (4_001, 33),
    "streamed past the caches": (1_050, 2_051),
}
CASES = [
    Case(rows, classes, dtype, soft, past, temperature=t, reduction=reduction, weighted=True, label_smoothing=eps)
    for dtype in DTYPES
    for rows, classes, soft, past, t, reduction, eps in (
        (5, 130, "dense", "dense", 3.0, "mean", 0.0),
        (5, 131, "bfloat16", "logits", 2.5, "none", 0.0),
        (3, 2100, "top-k", "top-k", 2.0, "none", 0.1),
        (40, 2051, None, "logits", 4.0, "mean", 0.0),
        (3, 17_001, None, "dense", 1.0, "none", 0.0),
        (9, 45, None, None, 1.0, "sum", 0.0),
    )
]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def flat(result):
    return (*result[:2], *result[2])


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("past", ["dense", "logits"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=name)
def test_any_number_of_threads(dtype, shape, past, reduction, threads):
    """float64 shows the order in which the parts of a row are added, which float32 results round away."""
    rows, classes = SHAPES[shape]
    case = Case(rows, classes, dtype, "dense" if classes < 100 else None, past, reduction=reduction, weighted=True)
    logits, target, keywords = case.arguments()
    results = []
    for count in THREADS:
        threads(count)
        results.append(flat(run(logits, target, case.upstream(), keywords, "cpu")))
    for count, result in zip(THREADS[1:], results[1:], strict=True):
        for one, other in zip(results[0], result, strict=True):
            assert torch.equal(one, other), f"{count} threads"


@pytest.mark.parametrize("past", ENCODINGS)
def test_the_same_call_twice(past):
    case = Case(6, 20_001, past=past)
    logits, target, keywords = case.arguments()
    first, second = (flat(run(logits, target, case.upstream(), keywords, "cpu")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_loss_does_not_depend_on_whether_a_gradient_is_wanted():
    for case in CASES:
        logits, target, keywords = case.arguments()
        keywords["backend"] = "cpu"
        alone = toast_loss(logits, target, **keywords)
        assert torch.equal(alone, toast_loss(logits.requires_grad_(), target, **keywords).detach())


IN_ITS_OWN_PROCESS = """
import sys
import torch
from blended_kl_cases import check, run
from test_blended_kl_determinism import CASES, flat
from toast_kernels.backends import _C

results = []
for case in CASES:
    check(case)
    logits, target, keywords = case.arguments()
    results.append(flat(run(logits, target, case.upstream(), keywords, "cpu")))
torch.save((_C.cpu_isa(), results), sys.argv[1])
"""


def start(isa, threads, path):
    environment = {**os.environ, "TOAST_CPU_ISA": isa, "OMP_NUM_THREADS": str(threads)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", IN_ITS_OWN_PROCESS, str(path)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """What each build of the kernel gives, or why it does not run here."""
    folder = tmp_path_factory.mktemp("isa")
    running = {isa: start(isa, n, folder / isa) for isa, n in (("generic", 2), ("avx2", 1), ("avx512", 3))}
    results = {}
    for isa, process in running.items():
        output, _ = process.communicate(timeout=300)
        if process.returncode == 0:
            chosen, results[isa] = torch.load(folder / isa)
            assert chosen == isa
        else:
            results[isa] = output
    return results


def results_of(builds, isa):
    if isinstance(builds[isa], str):
        if "TOAST_CPU_ISA must be one of" in builds[isa]:
            pytest.skip(f"this processor has no {isa}")
        pytest.fail(builds[isa])
    return builds[isa]


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_each_build_is_as_good_as_naive_code(builds, isa):
    """Its own process has checked each case against the float64 truth."""
    assert len(results_of(builds, isa)) == len(CASES)


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{name(CASES[i].dtype)}-{CASES[i].classes}")
def test_avx2_and_avx512_give_the_same_bits(builds, index):
    for one, other in zip(results_of(builds, "avx2")[index], results_of(builds, "avx512")[index], strict=True):
        assert torch.equal(one, other)


def test_an_instruction_set_that_is_not_there_is_refused():
    environment = {**os.environ, "TOAST_CPU_ISA": "sse9", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import torch, toast_kernels as t; t.toast_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "TOAST_CPU_ISA must be one of generic" in done.stderr
    assert "got sse9" in done.stderr
    assert _C.cpu_isa() in ("generic", "avx2", "avx512")
