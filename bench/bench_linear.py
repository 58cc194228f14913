"""linear_toast_loss beside its peers: time, peak memory and percent of the rate of torch.mm, plain and blended.

pytest bench/bench_linear.py           (make bench, make gpu PART=linear; results/linear_plain.csv, linear_blended.csv)
"""

import pytest
import torch
from harness import measure, ratio
from linear_peers import Linear
from results import DEVICE, OURS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
if DEVICE.type == "cuda":
    SIZES = [(8192, 1024, 21_841, "bfloat16"), (4096, 4096, 128_256, "bfloat16")]
else:
    SIZES = [(*size, dtype) for size in [(2048, 512, 10_000), (512, 256, 50_000)] for dtype in DTYPES]


@pytest.mark.parametrize("blended", [False, True], ids=["plain", "blended"])
@pytest.mark.parametrize(("rows", "width", "classes", "dtype"), SIZES)
def test_linear(show, rows, width, classes, dtype, blended):
    linear = Linear(rows, width, classes, DTYPES[dtype], blended)
    linear.check()
    times = measure(
        f"linear_{'blended' if blended else 'plain'}", linear.cases(), op="blended_kl", size=linear.size, dtype=dtype,
        work="forward + backward", classes=classes, flops=linear.flops, products=linear.products(),
        others=linear.others, rounds=9, seconds=20.0,
    )  # fmt: skip
    show(times[OURS], **{peer: ratio(times, OURS, peer)[0] for peer in times})
