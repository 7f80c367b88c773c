"""Networks that several test files build, and the noise of a training's rows."""

from typing import Any

import torch
from diffusers import UNet2DModel

from hetpure.noise import BatchNoise, Noise, Stream


def tiny_unet(**changes: Any) -> UNet2DModel:
    """For 8x8 images, smooth, of the generator's next weights."""
    return UNet2DModel(
        **changes,
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    ).eval()


def seeded_unet(seed: int = 0) -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return tiny_unet()


def rows(count: int, seed: int = 0, index: int = 0) -> BatchNoise:
    return Noise.of(seed, Stream.TRAIN, index).on(torch.arange(count))
