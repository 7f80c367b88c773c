"""Attacks that look for nothing: the null attack, and images that another attack found."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hetpure.attacks.attack import SILENT, Addresses, Attack, Monitor, Threat
from hetpure.defense import Defense
from hetpure.noise import Group


class Unsearched(Attack):
    """An attack that asks the defence nothing."""

    def candidates(self, defense: Defense) -> int:
        return 1

    def purifications(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        return 0

    def draws(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        return 1


@dataclass(frozen=True)
class NullAttack(Unsearched):
    """Strength zero: gives back the images themselves. Counting that is honest finds the clean
    accuracy under it."""

    @property
    def name(self) -> str:
        return "null"

    def describe(self) -> str:
        return "the images themselves"

    @property
    def threat(self) -> Threat:
        return Threat("linf", 0.0)

    def __call__(
        self,
        defense: Defense,
        images: Tensor,
        labels: Tensor,
        addresses: Addresses,
        *,
        monitor: Monitor = SILENT,
    ) -> Tensor:
        return images[None].clone()


@dataclass(frozen=True)
class EightBit(Unsearched):
    """Adversarial images as a file of 8 bits a pixel would hold them.

    Args:
        read: gives the images (N, C, H, W) that an attack found and their sample ids (N,).
    """

    read: Callable[[], tuple[Tensor, Tensor]]

    @property
    def name(self) -> str:
        return "8-bit images"

    def describe(self) -> str:
        return "adversarial images rounded to 8 bits"

    @property
    def threat(self) -> None:
        return None

    def __call__(
        self,
        defense: Defense,
        images: Tensor,
        labels: Tensor,
        addresses: Addresses,
        *,
        monitor: Monitor = SILENT,
    ) -> Tensor:
        adversarial, ids = self.read()
        known = dict(zip(ids.tolist(), adversarial, strict=True))
        found = torch.stack([known[sample] for sample in addresses.samples.tolist()])
        return ((255 * found).round() / 255)[None].to(images)
