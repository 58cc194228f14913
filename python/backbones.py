"""The networks that python/train.py can train: a small CNN of our own, and five families of image classifiers.

The families are built by Hugging Face transformers from small configurations, with random weights: nothing is
downloaded, and transformers is needed only when one of them is asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BackboneError(Exception):
    """This backbone cannot be built here, and the message says why."""


def build(name: str, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """The network called `name`, from images [N, channels, image_size, image_size] to logits [N, num_classes]."""
    if name == "cnn":
        return SmallCNN(num_classes, channels)
    try:
        import transformers
    except ImportError as error:
        raise BackboneError(
            f"the backbone {name} needs transformers: pip install 'transformers>=5', or use --backbone cnn"
        ) from error
    return Family(FAMILIES[name](transformers, num_labels=num_classes, channels=channels, size=image_size))


class SmallCNN(nn.Sequential):
    """1.45 M parameters for 3,250 classes of 32 x 32 grey images, 0.1 ms an image on one CPU core.

    Half of the parameters are the last layer's: the width is in the classes, as in face or product recognition.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__(
            nn.PixelUnshuffle(2),
            *conv(4 * channels, 32, stride=2),
            *conv(32, 64),
            *conv(64, 128, stride=2),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(128 * 16, 256, bias=False),
            nn.BatchNorm1d(256),
            nn.ReLU(inplace=True),
            nn.Linear(256, num_classes),
        )

    def features(self, images: Tensor) -> Tensor:
        """[N, 256], what the last layer makes logits of."""
        for layer in list(self)[:-1]:
            images = layer(images)
        return images


def conv(in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


class Family(nn.Module):
    """A transformers image classifier that gives its logits and nothing else."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images).logits


def _resnet(transformers, num_labels: int, channels: int, size: int) -> nn.Module:
    config = transformers.ResNetConfig(
        num_channels=channels,
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 256],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        num_labels=num_labels,
    )
    return transformers.ResNetForImageClassification(config)


def _regnet(transformers, num_labels: int, channels: int, size: int) -> nn.Module:
    config = transformers.RegNetConfig(
        num_channels=channels,
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 256],
        depths=[1, 1, 2, 1],
        groups_width=16,
        num_labels=num_labels,
    )
    return transformers.RegNetForImageClassification(config)


def _mobilenet_v2(transformers, num_labels: int, channels: int, size: int) -> nn.Module:
    config = transformers.MobileNetV2Config(
        num_channels=channels,
        image_size=size,
        depth_multiplier=0.35,
        output_stride=16,
        classifier_dropout_prob=0.2,  # the configuration's own 0.8 is how much TensorFlow's keeps
        num_labels=num_labels,
    )
    classifier = transformers.MobileNetV2ForImageClassification(config)
    for norm in (module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 0.1  # PyTorch's own; transformers' 0.997 is how much of the old is kept in TensorFlow
    return classifier.to(memory_format=torch.channels_last)  # half the time of its depthwise convolutions on a CPU


def _convnextv2(transformers, num_labels: int, channels: int, size: int) -> nn.Module:
    config = transformers.ConvNextV2Config(
        num_channels=channels,
        image_size=size,
        patch_size=2,
        hidden_sizes=[32, 64, 128, 256],
        depths=[1, 1, 2, 1],
        num_labels=num_labels,
    )
    return transformers.ConvNextV2ForImageClassification(config)


def _vit(transformers, num_labels: int, channels: int, size: int) -> nn.Module:
    config = transformers.ViTConfig(
        num_channels=channels,
        image_size=size,
        patch_size=max(divisor for divisor in (1, 2, 4, 7, 8) if size % divisor == 0 and divisor <= size // 4),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        num_labels=num_labels,
    )
    return transformers.ViTForImageClassification(config)


FAMILIES = {
    "resnet": _resnet,
    "regnet": _regnet,
    "mobilenet_v2": _mobilenet_v2,
    "convnextv2": _convnextv2,
    "vit": _vit,
}
NAMES = ("cnn", *FAMILIES)
