"""Defences whose analyses are known in closed form, and blocks for them."""

from typing import Any

import torch
from torch import Tensor

from hetpure.analysis.subject import Subject
from hetpure.attacks import PGD
from hetpure.defense import Defense
from hetpure.evaluation.protocol import Block, Protocol
from hetpure.noise import BatchNoise, Group, Purpose
from tests.hetpure.attacks.defenses import linear

SAMPLES = torch.tensor([31, 7, 100, 5])
MARGIN = 0.85  # of the images of `halves` to the other class, in the radius of the attack


class Halves(Defense):
    """Looks at the left or at the right half of an image, by a coin of its noise."""

    groups = frozenset[Group]({"reverse"})

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Tensor:
        coin = noise.integers(Purpose.REVERSE, 2)[:, None, None, None].to(images)
        left = torch.zeros_like(images)
        left[..., : images.shape[-1] // 2] = 1
        seen = coin * left + (1 - coin) * (1 - left)
        return self.classifier(0.5 + (images - 0.5) * seen)


def first_pixels(noise: BatchNoise) -> list[float]:
    """The reverse noise of each entry in its first pixel: it tells draws apart."""
    like = torch.zeros(len(noise), 1, 8, 8, dtype=torch.float64)
    return noise.normal(Purpose.REVERSE, like)[:, 0, 0, 0].tolist()


def pgd(**settings: Any) -> PGD:
    usual = {"epsilon": 0.1, "steps": 3, "step_size": 0.1, "eot_samples": 2, "random_start": False}
    return PGD(**usual | {"mask": "recomputed"} | settings)


def subject(defense: Defense, attack: PGD | None = None, **changes: Any) -> Subject:
    settings = {"protocol": Protocol(report_draws=3, selection_draws=2), "seed": 7, "first": 31}
    return Subject("row", defense, attack or pgd(), **settings | changes)


def halves() -> tuple[Subject, Block]:
    """Both halves have the same margin. An L2 attack that knows the half it is looked at with needs
    less than its radius; one that must move both at once has not enough."""
    towards = torch.full((1, 64), 32**-0.5, dtype=torch.float64)  # of norm 1 in each half
    classifier = linear(
        torch.cat([towards, -towards]) / 2,
        torch.stack([-towards.sum() / 4, towards.sum() / 4]),
    )
    image = 0.5 + MARGIN * towards.reshape(1, 1, 8, 8)
    block = Block(image.repeat(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64), SAMPLES)
    attack = pgd(norm="l2", epsilon=1.0, step_size=1.0, steps=1, eot_samples=256)
    return subject(Halves(classifier), attack), block
