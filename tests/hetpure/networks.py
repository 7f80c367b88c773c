"""Networks that several test files build."""

from typing import Any

from diffusers import UNet2DModel


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
