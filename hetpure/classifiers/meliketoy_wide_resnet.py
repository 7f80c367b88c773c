"""The wide residual network of meliketoy/wide-resnet.pytorch, any depth and width.

Module names and state-dict keys are those of its `Wide_ResNet`, which ADDT and others evaluate.
It is another function than `WideResNet`: convolutions have biases, a unit strides in its second
convolution, and the shortcut takes the unit's input before its batch norm. Differences in code: no
dropout (an evaluation has none), and a pooling window as large as the map.
"""

from torch import Tensor, nn

from hetpure.classifiers.wide_resnet import sizes, stacks


class Unit(nn.Module):
    """BN-ReLU-conv3 twice, the second one strides; a 1x1 shortcut where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, stride, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut.append(nn.Conv2d(channels_in, channels_out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.relu1(self.bn1(x)))
        out = self.conv2(self.relu2(self.bn2(out)))
        added: Tensor = out + self.shortcut(x)
        return added


class MeliketoyWideResNet(nn.Sequential):
    """WRN-depth-width for normalised images (B, in_channels, H, W) to logits (B, num_classes).

    `attention_blocks` names the same places as in `WideResNet`: the inner relu2 of the last unit
    of each layer and the final relu.
    """

    def __init__(
        self, depth: int = 28, widen_factor: int = 10, num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        units, widths = sizes(depth, widen_factor)
        # The modules are called in the order in which they are set.
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.layer1, self.layer2, self.layer3 = stacks(Unit, units, widths)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(widths[3], num_classes)
        self.attention_blocks = (*(f"layer{i}.{units - 1}.relu2" for i in (1, 2, 3)), "relu")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
