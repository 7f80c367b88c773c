"""Attacks that look for nothing: the null attack, and images that another attack found."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hetpure.attacks.attack import Attack, Cost, Target, Threat
from hetpure.defense import Defense
from hetpure.noise import Group


@dataclass(frozen=True)
class NullAttack(Attack):
    """Strength zero: gives back the images themselves. Counting that is honest finds the clean
    accuracy under it."""

    @property
    def name(self) -> str:
        return "null"

    @property
    def threat(self) -> Threat:
        return Threat("linf", 0.0)

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        return Cost()

    def __call__(self, target: Target) -> Tensor:
        return target.images[None].clone()


@dataclass(frozen=True)
class EightBit(Attack):
    """Adversarial images as a file of 8 bits a pixel would hold them.

    Args:
        read: gives the images (N, C, H, W) that an attack found and their sample ids (N,).
    """

    read: Callable[[], tuple[Tensor, Tensor]]

    @property
    def name(self) -> str:
        return "8-bit images"

    @property
    def threat(self) -> None:
        return None

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        return Cost()

    def __call__(self, target: Target) -> Tensor:
        saved, ids = self.read()
        images = dict(zip(ids.tolist(), saved, strict=True))
        adversarial = torch.stack([images[sample] for sample in target.samples.tolist()])
        return ((255 * adversarial).round() / 255)[None].to(target.images)
