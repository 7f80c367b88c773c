"""DeepMind's wide residual network (Gowal et al. 2020, arXiv 2010.03593), any depth and width.

Module names and state-dict keys are those of `DMWideResNet` in RobustBench's model zoo, with ReLU
or SiLU (its `Swish`), so its checkpoints load with `load_state_dict`. That layout holds no mean and
std (its buffers are not persistent): they belong to `config.json`. Differences in code: padding
that fits maps of odd size as well, and a pooling window as large as the map; for 32 pixels both are
as published.
"""

from collections import OrderedDict
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.classifiers.wide_resnet import sizes, stacks
from hetpure.errors import check_choice

Activation = Literal["relu", "silu"]


def pad_same(x: Tensor, stride: int) -> Tensor:
    """Zeros around (B, C, H, W) for a 3x3 window, as TensorFlow's SAME puts them.

    At stride 2 the window of an even map overhangs at the right and at the bottom only.
    """
    height, width = x.shape[-2:]
    top, left = (1, 1) if stride == 1 else (height % 2, width % 2)
    return F.pad(x, (left, 1, top, 1))


class Unit(nn.Module):
    """Pre-activation unit: BN-activation-conv3 twice, a 1x1 shortcut where the width changes."""

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(channels_in)
        self.relu_0 = activation()
        self.conv_0 = nn.Conv2d(channels_in, channels_out, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(channels_out)
        self.relu_1 = activation()
        self.conv_1 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            if channels_in != channels_out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu_0(self.batchnorm_0(x))
        out: Tensor = self.conv_0(pad_same(activated, self.stride))
        out = self.conv_1(self.relu_1(self.batchnorm_1(out)))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class DeepMindWideResNet(nn.Sequential):
    """WRN-depth-width for normalised images (B, in_channels, H, W) to logits (B, num_classes).

    `attention_blocks` names the same places as in `WideResNet`: the inner activation of the last
    unit of each group and the final one. They are called relu also where they are SiLUs.
    """

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 10,
        num_classes: int = 10,
        in_channels: int = 3,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        units, widths = sizes(depth, widen_factor)
        self.activation = activation
        check_choice(self, "activation", Activation)
        chosen: type[nn.Module] = nn.ReLU if activation == "relu" else nn.SiLU
        # The modules are called in the order in which they are set.
        self.init_conv = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        blocks = stacks(partial(Unit, activation=chosen), units, widths)
        self.layer = nn.Sequential(*(nn.Sequential(OrderedDict(block=block)) for block in blocks))
        self.batchnorm = nn.BatchNorm2d(widths[3])
        self.relu = chosen()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.logits = nn.Linear(widths[3], num_classes)
        self.attention_blocks = (
            *(f"layer.{group}.block.{units - 1}.relu_1" for group in range(3)),
            "relu",
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.logits.bias)
