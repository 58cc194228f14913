"""Every backbone: logits of the right shape, gradients in every parameter, and no download."""

import sys

import pytest
import torch
from programs import backbones
from torch import nn


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (1, 28), (3, 48)], ids=lambda value: str(value))
@pytest.mark.parametrize("name", backbones.NAMES)
def test_logits_and_gradients(name, channels, size, monkeypatch):
    if name != "cnn":
        pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    model = backbones.build(name, 11, channels, size)
    logits = model(torch.randn(4, channels, size, size))
    assert logits.shape == (4, 11)
    logits.square().sum().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


@pytest.mark.parametrize("name", backbones.NAMES)
def test_no_setting_means_what_another_framework_keeps(name):
    """As transformers' MobileNetV2 has them: BatchNorm's momentum is 0.997 there, and its dropout 0.8."""
    if name != "cnn":
        pytest.importorskip("transformers")
    modules = list(backbones.build(name, 11, 1, 32).modules())
    assert all(module.momentum <= 0.1 for module in modules if isinstance(module, nn.BatchNorm2d))
    assert all(module.p <= 0.5 for module in modules if isinstance(module, nn.Dropout))


def test_the_small_cnn_has_the_size_it_says():
    parameters = sum(parameter.numel() for parameter in backbones.build("cnn", 3250, 1, 32).parameters())
    assert parameters == pytest.approx(1.45e6, rel=0.01)


def test_without_transformers_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(backbones.BackboneError, match="needs transformers: pip install"):
        backbones.build("vit", 10, 1, 32)
