"""EDM's stochastic Heun sampler as a purifier (Karras et al. 2022, arXiv 2206.00364, Alg. 2)."""

from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt

from torch import Tensor

from hetpure.denoiser import Denoiser
from hetpure.errors import FieldError, check_at_least, check_fraction, check_positive
from hetpure.noise import Group, Purpose, Randomness
from hetpure.purifiers.purifier import Plan, Purifier, Step, strength_index
from hetpure.samplers import jump_forward
from hetpure.schedule import NO_NOISE, Schedule


@dataclass(frozen=True)
class EDMPurifier(Purifier):
    """Diffuse to one level, denoise along EDM's noise levels with Heun steps.

    Levels sigma = sqrt((1 - abar) / abar) are spaced as sigma^(1/rho) and taken at the nearest
    index that the network was trained on, as the paper does for discrete networks. Every step is
    two network calls, the last one: one.

    Args:
        levels: noise levels before the clean image (N): 2 N - 1 network calls, fewer where levels
            share an index.
        strength: noise level as a fraction of T.
        rho: spacing of the levels.
        sigma_min: lowest level before the clean image.
        churn: S_churn; 0 is deterministic.
        churn_min: S_tmin, lowest level that gets fresh noise.
        churn_max: S_tmax, the highest.
        churn_noise: S_noise, standard deviation of the fresh noise.
    """

    levels: int = 10
    strength: float = 0.1
    rho: float = 7.0
    sigma_min: float = 0.002
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        check_fraction(self, "strength")
        check_at_least(self, 1, "levels")
        check_positive(self, "rho", "sigma_min")
        check_at_least(self, 0, "churn", "churn_noise")
        if not self.churn_min <= self.churn_max:
            allowed = f"must be >= churn_min {self.churn_min}"
            raise FieldError(self, "churn_max", f"{allowed}, got {self.churn_max}")

    def plan(self, schedule: Schedule) -> Plan:
        start = strength_index(schedule, self.strength)
        high = schedule.sigma(start) ** (1 / self.rho)
        low = min(self.sigma_min, schedule.sigma(start)) ** (1 / self.rho)
        count = self.levels
        spaced = [high + k / max(count - 1, 1) * (low - high) for k in range(count)]
        indices = {start} | {schedule.nearest(root**self.rho) for root in spaced}
        gamma = min(self.churn / count, sqrt(2) - 1)
        plan = []
        for t, s in pairwise([*sorted(indices, reverse=True), NO_NOISE]):
            sigma = schedule.sigma(t)
            churned = self.churn_min <= sigma <= self.churn_max
            up = max(schedule.nearest(sigma * (1 + gamma)), t) if churned else t
            plan.append(Step(at=t, via=up, to=s, corrected=s != NO_NOISE))
        return tuple(plan)

    def groups(self, plan: Plan) -> frozenset[Group]:
        """Churning is the sampler's own noise."""
        churned = any(step.via > step.at for step in plan)
        return frozenset(("forward", "reverse") if churned else ("forward",))

    def advance(
        self,
        denoiser: Denoiser,
        step: Step,
        state: Tensor,
        images: Tensor,
        mask: Tensor | None,
        noise: Randomness,
    ) -> Tensor:
        """One Heun step. The slope of x / sqrt(abar) in sigma is the predicted noise."""
        schedule = denoiser.schedule
        if step.via > step.at:
            fresh = self.churn_noise * noise.normal(Purpose.REVERSE, state, step=step.at)
            up, down = schedule.alpha_cumprod(step.via), schedule.alpha_cumprod(step.at)
            state = jump_forward(state, down, up, fresh)
        x0, slope = denoiser.predict(state, step.via)
        if step.to == NO_NOISE:
            return x0
        x = state / schedule.alpha_cumprod(step.via) ** 0.5
        signal = schedule.alpha_cumprod(step.to) ** 0.5
        length = schedule.sigma(step.to) - schedule.sigma(step.via)
        euler = signal * (x + length * slope)
        _, slope_after = denoiser.predict(euler, step.to)
        corrected: Tensor = signal * (x + length * (slope + slope_after) / 2)
        return corrected
