"""Wide residual network (Zagoruyko & Komodakis 2016), any depth and width.

Module names and state-dict keys are those of the CIFAR WRN-28-10 in RobustBench's model zoo, so
its checkpoints load with `load_state_dict`. Differences in code: no in-place activations (a hook
must see what it captured) and a pooling window as large as the map (28-pixel images work too).
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from hetpure.errors import InputError


def sizes(depth: int, widen_factor: int) -> tuple[int, tuple[int, int, int, int]]:
    """Of any WRN: units in each of the three blocks, channels of the stem and of the blocks."""
    if depth < 10 or (depth - 4) % 6:
        raise InputError(f"depth of a WRN must be 6n + 4 with n >= 1 (10, 16, 28), got {depth}")
    if widen_factor < 1:
        raise InputError(f"widen_factor of a WRN must be at least 1, got {widen_factor}")
    return (depth - 4) // 6, (16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor)


def stacks(
    unit: Callable[[int, int, int], nn.Module], units: int, widths: tuple[int, int, int, int]
) -> list[nn.Sequential]:
    """The three stacks of a WRN, each of `unit(channels_in, channels_out, stride)` at one
    resolution; the first unit widens, and strides in all but the first stack."""
    return [
        nn.Sequential(
            unit(channels_in, channels_out, stride),
            *(unit(channels_out, channels_out, 1) for _ in range(units - 1)),
        )
        for channels_in, channels_out, stride in zip(widths[:3], widths[1:], (1, 2, 2), strict=True)
    ]


class BasicBlock(nn.Module):
    """Pre-activation unit: BN-ReLU-conv3 twice, and a 1x1 shortcut where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.convShortcut = (
            nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            if channels_in != channels_out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        out: Tensor = self.relu2(self.bn2(self.conv1(activated)))
        out = self.conv2(self.dropout(out))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class WideResNet(nn.Sequential):
    """WRN-depth-width for normalised images (B, in_channels, H, W) to logits (B, num_classes).

    `attention_blocks` names the activations HetPure reads: the inner relu2 of the last unit of
    each block and the final relu.
    """

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 10,
        num_classes: int = 10,
        in_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        units, widths = sizes(depth, widen_factor)
        # The modules are called in the order in which they are set.
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        layers = stacks(partial(BasicBlock, dropout=dropout), units, widths)
        self.block1, self.block2, self.block3 = (
            nn.Sequential(OrderedDict(layer=layer)) for layer in layers
        )
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(widths[3], num_classes)
        self.attention_blocks = (
            *(f"block{i}.layer.{units - 1}.relu2" for i in (1, 2, 3)),
            "relu",
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)
