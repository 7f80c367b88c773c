"""Gradual purification (Lee & Kim, ICCV 2023, arXiv 2303.09051)."""

from dataclasses import dataclass, field
from typing import ClassVar

from hetpure.errors import FieldError
from hetpure.noise import MOST_REPEATS
from hetpure.purifiers.purifier import GridPurifier, Plan, strength_index
from hetpure.samplers import DDIM, Sampler
from hetpure.schedule import Schedule


@dataclass(frozen=True)
class GradualPurifier(GridPurifier):
    """Purification in rounds whose noise grows: each round diffuses what the one before it made of
    the image, and denoises it.

    The weak rounds are meant to take away a part of a perturbation before strong noise meets it.
    Defaults are those of the published script for CIFAR-10: rounds of 30, 30, 30, 30, 50, 50, 125
    and 125 of 1000 indices, each of which is visited (470 network calls), and DDPM's steps with the
    posterior variance and without clipping, which are DDIM's with eta = 1. On SVHN the last two
    rounds have 80 indices, on ImageNet 200. The published answer is the majority of ten such
    purifications. Here these are report draws, counted as a vote or by their mean logit.

    Args:
        sampler: how a reverse step is taken.
        strengths: noise level of each round, a fraction of T.
    """

    sampler: Sampler = field(default_factory=lambda: DDIM(eta=1.0))
    strengths: tuple[float, ...] = (0.03, 0.03, 0.03, 0.03, 0.05, 0.05, 0.125, 0.125)

    default_steps: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strengths or not all(0 < strength <= 1 for strength in self.strengths):
            allowed = "must be one or more numbers in (0, 1]"
            raise FieldError(self, "strengths", f"{allowed}, got {self.strengths}")
        if len(self.strengths) > MOST_REPEATS:
            raise FieldError(
                self, "strengths", f"must be {MOST_REPEATS} or fewer, got {len(self.strengths)}"
            )

    def plan(self, schedule: Schedule) -> Plan:
        return self.rounds_from(schedule, [strength_index(schedule, s) for s in self.strengths])
