"""The peers of bench_linear are what they say, and the check sees one that is not."""

import pytest
import torch


@pytest.mark.parametrize("blended", [False, True], ids=["plain", "blended"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
def test_every_peer_has_our_loss_and_gradients(bench, monkeypatch, dtype, blended):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # the suite checks what is compiled
    linear = bench("linear_peers").Linear(70, 24, 200, dtype, blended)
    linear.check()
    right = linear.losses["eager"]
    linear.losses["eager"] = lambda: 1.05 * right()
    with pytest.raises(AssertionError, match="eager has another loss: off by 5"):
        linear.check()


def test_flops(bench, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    linear = bench("linear_peers").Linear(7, 5, 11, torch.float32)
    product, flops = linear.products()
    product()
    assert linear.flops == 3 * flops == 3 * 2 * 7 * 5 * 11


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU's clock")
@pytest.mark.parametrize("blended", [False, True], ids=["plain", "blended"])
def test_from_times_to_a_table(bench, monkeypatch, blended):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(bench("harness"), "burst", lambda case: 0.001)
    report, suite = bench("report"), bench("bench_linear")
    suite.test_linear(lambda *_, **__: None, 24, 8, 300, "bfloat16", blended)
    table = report.tables.linear(report.last_runs("linear_blended" if blended else "linear_plain"))
    row = table.splitlines()[-1]
    assert row.startswith("| 24 x 8 x 300 | bfloat16 |")
    peer = "toast_kernels, without blending" if blended else "F.linear, toast_loss"
    assert f"{peer} " in row
    assert "torch.mm" not in row
