"""Residual network (He et al. 2016), depths 18, 34, 50, 101 and 152, for ImageNet or CIFAR.

Module names and state-dict keys are those of torchvision's `resnet18` ... `resnet152` and
`wide_resnet50_2`, `wide_resnet101_2`, so its checkpoints load with `load_state_dict`. As there
(v1.5), a bottleneck strides in its 3x3 convolution. Different in code: no in-place activations (a
hook must see what it captured).
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.errors import FieldError, check_choice

Stem = Literal["imagenet", "cifar"]
# Units in each of the four layers.
UNITS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class BasicUnit(nn.Module):
    """conv3-BN-ReLU, conv3-BN, then a ReLU of the sum."""

    expansion = 1

    def __init__(self, channels_in: int, inner: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, inner, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """conv1-BN-ReLU, conv3-BN-ReLU, conv1-BN, then a ReLU of the sum."""

    expansion = 4

    def __init__(self, channels_in: int, inner: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample = shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


def shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    """The 1x1 projection beside a unit that changes the shape; None where it does not."""
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
    )


class ResNet(nn.Sequential):
    """ResNet-depth for normalised images (B, in_channels, H, W) to logits (B, num_classes).

    Args:
        depth: 18 and 34 have basic units, 50, 101 and 152 bottlenecks.
        num_classes: number of logits.
        in_channels: of the image.
        stem: "imagenet" is a 7x7 convolution of stride 2 and a max pool (224 pixels end in a 7x7
            map, 32 in a single pixel); "cifar" is a 3x3 convolution of stride 1 (32 pixels end in
            a 4x4 map).
        inner_width: channels of a bottleneck's 3x3 convolution in the first layer, twice as many
            in each next one: 64, and 128 in the wide ResNets.

    Any image size. `attention_blocks` names the outputs of the four layers.
    """

    attention_blocks = ("layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        depth: int = 50,
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: Stem = "imagenet",
        inner_width: int = 64,
    ) -> None:
        super().__init__()
        if depth not in UNITS:
            raise FieldError(self, "depth", f"must be one of {(*UNITS,)}, got {depth}")
        unit = BasicUnit if depth < 50 else Bottleneck
        if unit is BasicUnit and inner_width != 64:
            raise FieldError(self, "inner_width", f"belongs to depth 50 and more, not to {depth}")
        self.stem = stem
        check_choice(self, "stem", Stem)
        large = stem == "imagenet"
        window, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        # The modules are called in the order in which they are set.
        self.conv1 = nn.Conv2d(in_channels, 64, window, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        channels = 64
        layers = []
        for index, count in enumerate(UNITS[depth]):
            inner, stride = inner_width * 2**index, 1 if index == 0 else 2
            channels_out = unit.expansion * 64 * 2**index
            units: list[nn.Module] = []
            for position in range(count):
                units.append(unit(channels, inner, channels_out, stride if position == 0 else 1))
                channels = channels_out
            layers.append(nn.Sequential(*units))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
