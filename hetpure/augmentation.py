"""Training augmentations as functions of addressed noise."""

import torch
from torch import Tensor

from hetpure.noise import BatchNoise, Purpose


def flip(images: Tensor, noise: BatchNoise) -> Tensor:
    """Each image (B, C, H, W) is mirrored left-right with probability one half."""
    mirrored = noise.integers(Purpose.AUGMENTATION, 2).bool().reshape(-1, 1, 1, 1)
    return torch.where(mirrored, images.flip(-1), images)


def shift(images: Tensor, noise: BatchNoise, pixels: int) -> Tensor:
    """Each image is moved by up to `pixels` in both directions; zeros come in at the border."""
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, [pixels] * 4)
    down = noise.integers(Purpose.AUGMENTATION, 2 * pixels + 1, step=1)
    right = noise.integers(Purpose.AUGMENTATION, 2 * pixels + 1, step=2)
    rows = down[:, None] + torch.arange(height, device=images.device)
    columns = right[:, None] + torch.arange(width, device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved: Tensor = padded.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]]
    return moved.movedim(-1, 1)
