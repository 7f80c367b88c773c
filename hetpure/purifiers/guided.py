"""Guided purification: GDMP (Wang et al. 2022, arXiv 2205.14969), squared-error guidance."""

from dataclasses import dataclass, field
from math import sqrt
from typing import ClassVar

from torch import Tensor

from hetpure.denoiser import Denoiser
from hetpure.errors import FieldError, check_at_least, check_at_most, check_fraction
from hetpure.noise import MOST_REPEATS, Randomness
from hetpure.purifiers.purifier import GridPurifier, Plan, Step, diffuse, strength_index
from hetpure.samplers import DDPM, Sampler
from hetpure.schedule import NO_NOISE, Schedule


@dataclass(frozen=True)
class GuidedPurifier(GridPurifier):
    """DDPM purification whose every step is drawn towards the diffused input.

    The mean of a step from x_t moves by -s_t Sigma_t grad D, where D = |x_t - q(x, t, n)|^2,
    Sigma_t is the step's variance and s_t = guidance sqrt(1 - abar_t) / sqrt(abar_t). The whole
    purification is repeated on its own output, always guided by the input. Where no grid is given
    it visits every index, as published: the pull grows with a step's length.

    Args:
        strength: noise level as a fraction of T; GDMP's CIFAR-10 setting is 36 of 1000.
        guidance: 0 is none. 9.3 is the published scale on CIFAR-10 at 8/255: 60000 x 3 / (16/255)
            on the mean over a batch of 100 images. Here the error is summed over each image, so
            that no image depends on its batch.
        rounds: purifications one after another; GDMP: 4.
    """

    sampler: Sampler = field(default_factory=DDPM)
    strength: float = 0.036
    guidance: float = 9.3
    rounds: int = 4

    default_steps: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "strength")
        check_at_least(self, 1, "rounds")
        check_at_most(self, MOST_REPEATS - 1, "rounds")  # guidance draws one repeat further
        if not isinstance(self.sampler, DDPM):
            raise FieldError(self, "sampler", "must be DDPM: guidance is scaled by its variance")
        check_at_least(self, 0, "guidance")

    def plan(self, schedule: Schedule) -> Plan:
        plan = self.rounds_from(schedule, [strength_index(schedule, self.strength)] * self.rounds)
        for step in plan:
            if step.to != NO_NOISE and self._pull(schedule, step) >= 1:
                raise FieldError(
                    self,
                    "guidance",
                    f"{self.guidance} overshoots its target on the step from {step.via} to"
                    f" {step.to}: lower it, or give a finer grid",
                )
        return plan

    def _pull(self, schedule: Schedule, step: Step) -> float:
        """Which share of its distance to the target a step takes back: 2 s_t Sigma_t."""
        assert isinstance(self.sampler, DDPM)
        alpha, alpha_next = schedule.alpha_cumprod(step.via), schedule.alpha_cumprod(step.to)
        scale = self.guidance * sqrt((1 - alpha) / alpha)
        return 2 * scale * self.sampler.step_variance(alpha, alpha_next)

    def advance(
        self,
        denoiser: Denoiser,
        step: Step,
        state: Tensor,
        images: Tensor,
        mask: Tensor | None,
        noise: Randomness,
    ) -> Tensor:
        """One network call, and the pull towards the input."""
        state = self._jump(denoiser, step, state, noise)
        after = self._denoise(denoiser, step, state, noise)
        if step.to == NO_NOISE:  # no variance is left
            return after
        # A draw of its own, or the first target would be the very state that starts the round.
        target = diffuse(denoiser, images, noise, step.via, step.repeat + 1)
        guided: Tensor = after - self._pull(denoiser.schedule, step) * (state - target)
        return guided
