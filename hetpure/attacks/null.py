"""Attacks that look for nothing: images given as candidates, and the null attack."""

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


class Given(Unsearched):
    """Images that are known, by sample id."""

    def __init__(self, images: Tensor, samples: Tensor, what: str) -> None:
        self.what = what
        self.images = dict(zip(samples.tolist(), images, strict=True))

    @property
    def name(self) -> str:
        return self.what

    def describe(self) -> str:
        return self.what

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
        found = [self.images[sample] for sample in addresses.samples.tolist()]
        return torch.stack(found)[None].to(images)
