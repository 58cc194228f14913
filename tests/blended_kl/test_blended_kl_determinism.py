"""The same bits for any number of threads; the same bits from AVX2 and AVX-512; the portable build is as accurate."""

import os
import subprocess
import sys

import pytest
import torch
from blended_kl_cases import DTYPES, ENCODINGS, Case, assert_runs_as_good, in_truth, name, run

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
        (3, 2060, None, "top-k", 2.0, "none", 0.1),
        (40, 2051, None, "logits", 4.0, "mean", 0.0),
        (3, 17_001, None, "dense", 1.0, "none", 0.0),
        (9, 45, "top-k", None, 1.0, "sum", 0.0),
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
import os, sys
import torch
from test_blended_kl_determinism import results_of_all_cases
from toast_kernels import toast_loss
from toast_kernels.backends import _C

isa, os.environ["TOAST_CPU_ISA"] = os.environ["TOAST_CPU_ISA"], "sse9"
try:
    toast_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
except RuntimeError as error:
    refused = str(error)
os.environ["TOAST_CPU_ISA"] = isa
results = results_of_all_cases()
torch.save((_C.cpu_isa(), refused, results), sys.argv[1])
"""


def results_of_all_cases():
    results = []
    for case in CASES:
        logits, target, keywords = case.arguments()
        results.append(run(logits, target, case.upstream(), keywords, "cpu"))
    return results


def with_the_build_for(isa, threads, folder):
    """In its own process: what cpu_isa() says, the error for an instruction set that is not there, and the results."""
    environment = {**os.environ, "TOAST_CPU_ISA": isa, "OMP_NUM_THREADS": str(threads)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", IN_ITS_OWN_PROCESS, str(folder / isa)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / isa, weights_only=False)


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    return with_the_build_for("generic", 3, tmp_path_factory.mktemp("isa"))


def test_the_portable_build_is_as_good_as_naive_code(portable):
    isa, _, results = portable
    assert isa == "generic"
    for case, result in zip(CASES, results, strict=True):
        logits, target, keywords = case.arguments()
        naive = run(logits, target, case.upstream(), keywords, "reference")
        assert_runs_as_good(result, naive, in_truth(logits, target, case.upstream(), keywords), case)


def test_an_instruction_set_that_is_not_there_is_refused(portable):
    assert "TOAST_CPU_ISA must be one of generic" in portable[1]
    assert portable[1].endswith("got sse9")


def test_avx2_gives_the_bits_of_avx512(tmp_path):
    """Those of this process, which other tests compare with the truth."""
    if _C.cpu_isa() != "avx512":
        pytest.skip(f"{_C.cpu_isa()} is the best that this processor has")
    isa, _, results = with_the_build_for("avx2", 1, tmp_path)
    assert isa == "avx2"
    for case, one, other in zip(CASES, results, results_of_all_cases(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(flat(one), flat(other), strict=True)), case
