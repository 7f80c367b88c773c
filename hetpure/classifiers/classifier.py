"""A network with its own normalisation: the only place where a mean or a std is known."""

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from hetpure.errors import InputError


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuses numbers that cannot be a mean and a std of pixels in [0, 1], one a channel."""
    given = f"classifier mean {mean} and std {std}"
    for value in (*mean, *std):
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            raise InputError(f"{given}: {value!r} is no finite number")
    if len(mean) != len(std) or min(std, default=0) <= 0:
        raise InputError(f"{given}: one positive std a channel")
    if min(mean) < 0 or max(*mean, *std) > 1:
        raise InputError(f"{given} are not of pixels in [0, 1]: divide those of 0..255 by 255")


class Classifier(nn.Module):
    """Pixels [0, 1] (B, C, H, W) to logits (B, num_classes).

    `mean` and `std` are of pixels in [0, 1], one number a channel: `network` is given
    (pixels - mean) / std. `attention_blocks` are module names inside `network` whose activations
    make the attention map; by default the network's own attribute of that name.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        attention_blocks: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        check_normalisation(mean, std)
        self.network = network
        self.num_classes = num_classes
        for name, values in (("mean", mean), ("std", std)):
            channels = torch.tensor([float(value) for value in values]).reshape(1, -1, 1, 1)
            self.register_buffer(name, channels, persistent=False)
        defaults: Sequence[str] = getattr(network, "attention_blocks", ())
        blocks = defaults if attention_blocks is None else attention_blocks
        known = dict(network.named_modules())
        for name in blocks:
            if name not in known:
                raise InputError(f"attention block {name!r} is no module of the classifier")
        self.attention_blocks: tuple[str, ...] = tuple(blocks)

    @property
    def channels(self) -> int:
        return self.mean.shape[1]

    def forward(self, pixels: Tensor) -> Tensor:
        """InputError where the network gives anything but float logits (B, num_classes): one logit
        for two classes would be read as something else."""
        logits = self.network((pixels - self.mean) / self.std)
        expected = (len(pixels), self.num_classes)
        output = f"a {type(logits).__name__}"
        if isinstance(logits, Tensor):
            if logits.shape == expected and logits.is_floating_point():
                return logits
            output = f"{logits.dtype} of shape {tuple(logits.shape)}"
        raise InputError(
            f"the classifier gives {output}, expected are float logits of shape {expected}: declare"
            " as many classes as it has logits, and wrap a network that gives anything else"
        )
