"""A network with its own normalisation: the only place where a mean or a std is known."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hetpure.errors import InputError


class Classifier(nn.Module):
    """Pixels [0, 1] (B, C, H, W) to logits (B, num_classes).

    `attention_blocks` are module names inside `network` whose activations make the attention map;
    by default the network's own attribute of that name.
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
        if len(mean) != len(std) or min(std) <= 0:
            raise InputError(f"classifier mean {mean} and std {std}: one positive std a channel")
        self.network = network
        self.num_classes = num_classes
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)
        own: Sequence[str] = getattr(network, "attention_blocks", ())
        blocks = own if attention_blocks is None else attention_blocks
        known = dict(network.named_modules())
        for name in blocks:
            if name not in known:
                raise InputError(f"attention block {name!r} is no module of the classifier")
        self.attention_blocks: tuple[str, ...] = tuple(blocks)

    @property
    def channels(self) -> int:
        return self.mean.shape[1]

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits
