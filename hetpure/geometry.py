"""Balls around images, in pixel units: what every attack and adversarial training steps in.

Images are (B, C, H, W) in [0, 1]; every function treats each image by itself.
"""

from typing import Literal

import torch
from torch import Tensor

from hetpure.noise import BatchNoise, Purpose

Norm = Literal["linf", "l2"]


def project(moved: Tensor, images: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """The nearest point of the ball around `images`, then of [0, 1]; the second keeps the first,
    since the images themselves are in [0, 1].

    Laid out in memory as `images` are: convolutions differ in the last bit, and by a quarter in
    time, between layouts.
    """
    offset = moved - images
    if norm == "linf":
        offset = offset.clamp(-epsilon, epsilon)
    else:
        offset = offset * (epsilon / norms(offset)).clamp(max=1)
    return torch.empty_like(images).copy_((images + offset).clamp(0, 1))


def uniform_in_ball(noise: BatchNoise, images: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """A random start: uniform in the ball around each image, then cut to [0, 1]."""
    if norm == "linf":
        offset = 2 * noise.uniform(Purpose.START, images) - 1
    else:
        # Uniform in the ball: a uniform direction at radius u^(1/d).
        towards = noise.normal(Purpose.START, images)
        uniform = noise.uniform(Purpose.START, images[:, :1, :1, :1], step=1)
        offset = towards / norms(towards) * uniform ** (1 / images[0].numel())
    return project(images + epsilon * offset, images, epsilon, norm)


def direction(gradient: Tensor) -> Tensor:
    """The gradient at L2 norm 1 an image, however small it is; zero stays zero."""
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    scaled = gradient / torch.where(largest > 0, largest, torch.ones_like(largest))
    return scaled / norms(scaled)


def norms(images: Tensor) -> Tensor:
    """(B, 1, 1, 1) L2 norms, kept off zero."""
    lengths: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)
    return lengths.clamp(min=1e-12)
