"""EfficientNet-Lite: classifiers of photographs without squeeze-and-excitation, for CPUs.

"EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (Tan and Le, ICML 2019), table 1
and section 3.3, in the Lite variant of the same authors: ReLU6 in place of swish, no squeeze-and-excitation,
and a stem, a head, and numbers of blocks in the first and last stage that do not grow with the model.

The parameters have the names of timm's `tf_efficientnet_lite0` to `tf_efficientnet_lite2`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-3
"""Epsilon of the batch norms."""
STEM, HEAD, CHANNEL_STEP = 32, 1280, 8
"""Channels after the first and the last convolution; channels of blocks are multiples of the step."""


@dataclass(frozen=True, slots=True)
class BlockStage:
    """A row of table 1: blocks with the same kernel and number of channels."""

    blocks: int
    kernel: int
    stride: int
    """Of the first block; the others have 1."""
    expansion: int
    """Channels inside a block over channels at its input; 1: the block has no expansion."""
    channels: int


STAGES = (
    BlockStage(1, 3, 1, 1, 16),
    BlockStage(2, 3, 2, 6, 24),
    BlockStage(2, 5, 2, 6, 40),
    BlockStage(3, 3, 2, 6, 80),
    BlockStage(3, 5, 1, 6, 112),
    BlockStage(4, 5, 2, 6, 192),
    BlockStage(1, 3, 1, 6, 320),
)
"""Stages 2 to 8 of EfficientNet-B0. Of the first and the last one, the number of blocks is fixed."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """How much a variant is larger than the smallest one: compound scaling, equation 3 of the paper."""

    width: float
    depth: float
    image_size: int


SCALINGS: Mapping[str, Scaling] = {
    "efficientnet-lite0": Scaling(1.0, 1.0, 224),
    "efficientnet-lite1": Scaling(1.0, 1.1, 240),
    "efficientnet-lite2": Scaling(1.1, 1.2, 260),
}


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: the output has ceil(size / stride) pixels a side.

    For an odd number of padded pixels, the right and the bottom get one more.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        # With a stride of 1 the padding is even, and the convolution can do it itself.
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, ceil(H / stride), ceil(W / stride))."""
        if self.stride[0] == 1:
            return super().forward(x)
        (top, bottom), (left, right) = (self.padding_before_and_after(size) for size in x.shape[2:])
        return super().forward(F.pad(x, (left, right, top, bottom)))

    def padding_before_and_after(self, size: int) -> tuple[int, int]:
        """Pixels before and after a row or column of this size."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
        return total // 2, total - total // 2


class DepthwiseBlock(nn.Module):
    """A depthwise and a pointwise convolution: the only block of the first stage."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = SameConv2d(inputs, inputs, kernel, stride, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs, EPS)
        self.conv_pw = SameConv2d(inputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs, EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, h, w)."""
        x = F.relu6(self.bn1(self.conv_dw(x)), inplace=True)
        return cast("Tensor", self.bn2(self.conv_pw(x)))


class InvertedResidual(nn.Module):
    """MBConv: expand, filter each channel, project ("MobileNetV2", Sandler et al. 2018, section 3.3)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.conv_pw = SameConv2d(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width, EPS)
        self.conv_dw = SameConv2d(width, width, kernel, stride, groups=width)
        self.bn2 = nn.BatchNorm2d(width, EPS)
        self.conv_pwl = SameConv2d(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs, EPS)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, h, w)."""
        out = F.relu6(self.bn1(self.conv_pw(x)), inplace=True)
        out = F.relu6(self.bn2(self.conv_dw(out)), inplace=True)
        out = cast("Tensor", self.bn3(self.conv_pwl(out)))
        return out + x if self.residual else out


class EfficientNetLite(nn.Module):
    """The network of one variant: images (B, 3, S, S) to logits (B, classes), for any S from 32."""

    def __init__(self, scaling: Scaling, classes: int = 1000) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, STEM, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(STEM, EPS)
        inputs, stages = STEM, list[nn.Module]()
        for number, stage in enumerate(STAGES):
            fixed = number in (0, len(STAGES) - 1)
            count = stage.blocks if fixed else math.ceil(stage.blocks * scaling.depth)
            outputs = scaled_channels(stage.channels, scaling.width)
            blocks = list[nn.Module]()
            for index in range(count):
                blocks.append(_block(stage, inputs, outputs, 1 if index else stage.stride))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = SameConv2d(inputs, HEAD, 1)
        self.bn2 = nn.BatchNorm2d(HEAD, EPS)
        self.classifier = nn.Linear(HEAD, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) to logits (B, classes)."""
        x = F.relu6(self.bn1(self.conv_stem(images)), inplace=True)
        x = F.relu6(self.bn2(self.conv_head(self.blocks(x))), inplace=True)
        return cast("Tensor", self.classifier(x.mean((2, 3))))


def _block(stage: BlockStage, inputs: int, outputs: int, stride: int) -> nn.Module:
    if stage.expansion == 1:
        return DepthwiseBlock(inputs, outputs, stage.kernel, stride)
    return InvertedResidual(inputs, outputs, stage.kernel, stride, stage.expansion)


def scaled_channels(channels: int, width: float) -> int:
    """The nearest multiple of CHANNEL_STEP to `channels * width`, but never over 10% fewer."""
    target = channels * width
    rounded = max(CHANNEL_STEP, int(target + CHANNEL_STEP / 2) // CHANNEL_STEP * CHANNEL_STEP)
    return rounded + CHANNEL_STEP if rounded < 0.9 * target else rounded


def fold_batch_norms(model: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, in place: the answers stay the same.

    In float64 and with correctly rounded operations alone, so that every machine gets the same weights, and
    with them the same digest.
    """
    for parent, conv_name, norm_name in list(_folded_pairs(model)):
        conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * scale
        with torch.no_grad():
            weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
        conv.weight = nn.Parameter(weight.float(), requires_grad=False)
        conv.bias = nn.Parameter(shift.detach().float(), requires_grad=False)
        setattr(parent, norm_name, nn.Identity())


def _folded_pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """A module, and the names in it of a convolution and of the batch norm that follows."""
    for parent in model.modules():
        names = [
            name for name, child in parent.named_children() if isinstance(child, (nn.Conv2d, nn.BatchNorm2d))
        ]
        yield from ((parent, conv, norm) for conv, norm in zip(names[::2], names[1::2], strict=True))
