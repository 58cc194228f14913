"""softmax_statistics beside its peers: the same two numbers a row by torch, eager and compiled.

pytest bench/bench_softmax_statistics.py   (make bench, make gpu; results are appended to softmax_statistics.csv)
"""

import pytest
import torch
from harness import measure, ratio
from peers import compiled, normal
from results import DEVICE, OURS

from toast_kernels.softmax_statistics.op import softmax_statistics

TEMPERATURE = 3.0
ON_GPU = DEVICE.type == "cuda"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ON_CPU_SIZES = [(1024, 1000), (1024, 3250), (256, 21_841), (64, 131_072)]
ON_GPU_SIZES = [(16_384, 1000), (8192, 8192), (4096, 21_841), (512, 131_072)]


def eager(logits):
    z = logits.float() / TEMPERATURE
    logsumexp = z.logsumexp(1, keepdim=True)
    log_p = z - logsumexp
    return logsumexp[:, 0], -(log_p.exp() * log_p).sum(1)


@pytest.mark.parametrize("dtype", ["bfloat16"] if ON_GPU else DTYPES)
@pytest.mark.parametrize(("rows", "classes"), ON_GPU_SIZES if ON_GPU else ON_CPU_SIZES)
def test_softmax_statistics(show, rows, classes, dtype):
    logits = normal(rows, classes, dtype=DTYPES[dtype])
    functions = {
        OURS: lambda x: softmax_statistics(x, TEMPERATURE),
        "eager": eager,
        "torch.compile": compiled(eager),
        "backend reference": lambda x: torch.ops.toast_kernels.softmax_statistics(x, TEMPERATURE, "reference"),
    }
    expected = eager(logits)
    for peer, function in functions.items():
        for found, truth in zip(function(logits), expected, strict=True):
            torch.testing.assert_close(found.double(), truth.double(), rtol=1e-5, atol=1e-5, msg=f"{peer} is off")
    times = measure(
        "softmax_statistics", {peer: lambda f=f: f(logits) for peer, f in functions.items()},
        op="softmax_statistics", size=f"{rows} x {classes}", dtype=dtype, work="logsumexp and entropy",
        num_bytes=logits.numel() * logits.element_size(), flops=6 * logits.numel(), rounds=15, seconds=8.0,
    )  # fmt: skip
    show(times[OURS], **{peer: ratio(times, OURS, peer)[0] for peer in times})
