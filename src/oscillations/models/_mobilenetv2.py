"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) without torchvision, whose import costs more than a short run."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oscillations.models.mobilenetv2 import STAGES

STEM, LAST = 32, 1280  # channels of the first and the last convolution


def scaled(channels: int, width: float) -> int:
    """``channels * width`` as a multiple of 8, at least 8 and not more than a tenth below the product."""
    product = channels * width
    rounded = max(8, int(product + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * product else rounded + 8


def conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    padding = (kernel - 1) // 2
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """1x1 expansion (unless by 1), 3x3 depthwise, 1x1 projection; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([] if expansion == 1 else [conv_norm_relu(inputs, hidden, 1)]),
            conv_norm_relu(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """Input ``[batch, channels, height, width]``, output logits ``[batch, classes]``.

    Without the dropout before the classifier, which no other network here has.
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int, width: float, stem: str, smallest: int):
        super().__init__()
        channels, side = image_shape[0], min(image_shape[1:])
        early = 2 if stem == "imagenet" else 1  # stride of the two layers that a CIFAR stem does not let halve

        def fitting(stride: int) -> int:
            """The stride of the next layer, 1 if ``stride`` would leave too small an image."""
            nonlocal side
            stride = stride if math.ceil(side / stride) >= smallest else 1
            side = math.ceil(side / stride)
            return stride

        inputs = scaled(STEM, width)
        features: list[nn.Module] = [conv_norm_relu(channels, inputs, 3, fitting(early))]
        for stage, (expansion, base, blocks, first) in enumerate(STAGES):
            outputs = scaled(base, width)
            for block in range(blocks):
                stride = fitting(early if stage == 1 else first) if block == 0 else 1
                features.append(InvertedResidual(inputs, outputs, stride, expansion))
                inputs = outputs
        features.append(conv_norm_relu(inputs, scaled(LAST, width), 1))
        self.features = nn.Sequential(*features)
        linear = nn.Linear(scaled(LAST, width), classes)
        self.classifier = nn.Sequential(nn.Identity(), linear)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))
