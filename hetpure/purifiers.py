"""Purifiers as static plans of pure steps, each of them exactly one network call.

A plan is known before any image is seen. Every step has one form (see `Step`), and the four
resampling variants of HetPure differ only in the numbers they write into it. Noise is asked for by
address. The image is in pixel [0, 1], the state in model units [-1, 1].
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from torch import Tensor

from hetpure.denoiser import Denoiser, to_model, to_pixels
from hetpure.errors import InputError, check_choice
from hetpure.noise import Purpose, RowNoise
from hetpure.samplers import DDIM, Sampler, add_noise, jump_forward
from hetpure.schedule import CLEAN, Schedule

Resampling = Literal["none", "single_step", "fused", "multi_step"]
Output = Literal["x0", "state"]


@dataclass(frozen=True)
class Step:
    """One network call. The state stands at index `at`; it is diffused up to `via` where that is
    above, denoised from there to index `to`, and, if `known`, its unattended pixels are replaced
    by the image at the noise level of `to`. `repeat` tells resampling steps at one index apart."""

    at: int
    via: int
    to: int
    known: bool = False
    repeat: int = 0


Plan = tuple[Step, ...]


def timestep_grid(
    schedule: Schedule, steps: int, start: int, include: int | None = None
) -> list[int]:
    """Descending indices from `start` to 0: the multiples of T / steps, and `include`.

    The grid hangs on 0, not on the start: two purifiers with different strengths share every index
    below the smaller one.
    """
    count = len(schedule)
    regular = {round(k * count / steps) for k in range(steps)}
    wanted = regular | {start} | ({include} if include is not None else set())
    return sorted((t for t in wanted if t <= start), reverse=True)


@dataclass(frozen=True)
class Purifier(ABC):
    """What all diffusion purifiers share.

    Args:
        steps: grid points for the whole schedule of T indices (S); the stride is T / S.
        sampler: DDIM or DDPM reverse steps.
        output: `x0`, the prediction of the last network call, or `state`, the state at index 0
            (HetPure's published code): the same number of calls.
    """

    steps: int = 50
    sampler: Sampler = field(default_factory=DDIM)
    output: Output = "x0"

    needs_mask = False

    def __post_init__(self) -> None:
        check_choice("purifier output", self.output, Output)

    @abstractmethod
    def plan(self, schedule: Schedule) -> Plan:
        """The steps, known before any image."""

    def start(self, denoiser: Denoiser, images: Tensor, noise: RowNoise) -> Tensor:
        """Images (B, C, H, W) diffused to the first index of the plan."""
        return _diffuse(denoiser, images, noise, self.plan(denoiser.schedule)[0].at)

    def advance(
        self,
        denoiser: Denoiser,
        step: Step,
        state: Tensor,
        images: Tensor,
        mask: Tensor | None,
        noise: RowNoise,
    ) -> Tensor:
        """One network call: jump up, denoise, re-impose the known pixels, as the step says."""
        level = denoiser.schedule.alpha_cumprod
        if step.via > step.at:
            jump = noise.normal(Purpose.RESAMPLE, state, step=step.at, repeat=step.repeat)
            state = jump_forward(state, level(step.at), level(step.via), jump)
        x0, predicted_noise = denoiser.predict(state, step.via)
        x0 = self.sampler.clip(x0)
        if step.to == CLEAN:
            return x0
        fresh = (
            noise.normal(Purpose.REVERSE, state, step=step.to, repeat=step.repeat)
            if self.sampler.stochastic
            else None
        )
        state = self.sampler.step(
            state, x0, predicted_noise, level(step.via), level(step.to), fresh
        )
        if step.known:
            assert mask is not None, "a heterogeneous step needs a mask"
            known = _diffuse(denoiser, images, noise, step.to, step.repeat)
            state = mask * state + (1 - mask) * known
        return state

    def finish(self, state: Tensor) -> Tensor:
        """The last state as an image, pixel [0, 1]."""
        return to_pixels(state).clamp(0, 1)

    def _grid(self, schedule: Schedule, start: int, include: int | None = None) -> list[int]:
        if not 1 <= self.steps <= len(schedule):
            raise InputError(f"purifier steps must be in [1, {len(schedule)}], got {self.steps}")
        grid = timestep_grid(schedule, self.steps, start, include)
        return [*grid[:-1], CLEAN if self.output == "x0" else 0]


@dataclass(frozen=True)
class UniformPurifier(Purifier):
    """The same noise everywhere (DiffPure's discrete form; ADDT's DP_DDPM and DP_DDIM).

    Args:
        strength: noise level as a fraction of T: 0.1 is index 100 of 1000.
        through: a lower level that joins the grid, as the t_small of the heterogeneous purifier
            that this one is compared with.
    """

    strength: float = 0.1
    through: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_strength("strength", self.strength)
        if self.through is not None:
            _check_strength("through", self.through)

    def plan(self, schedule: Schedule) -> Plan:
        through = None if self.through is None else _index(schedule, self.through)
        grid = self._grid(schedule, _index(schedule, self.strength), include=through)
        return tuple(Step(at=t, via=t, to=s) for t, s in pairwise(grid))


@dataclass(frozen=True)
class HeterogeneousPurifier(Purifier):
    """Strong noise where the mask is 1, weak noise elsewhere (HetPure, CVPR 2025).

    Stage 1 denoises attended pixels from t_large to t_small while the others are re-imposed at
    each index; stage 2 denoises the whole image. The network must see one noise level everywhere,
    so stage 1 starts from the image at t_large in every pixel; when its last step lands on
    t_small, unattended pixels are exactly q(x, t_small), and resampling follows.

    Args:
        t_large: noise level of attended pixels, a fraction of T.
        t_small: noise level of the others.
        resampling: what harmonises the two regions after each stage-1 step: `none`; `single_step`
            (the paper): up by U and one step back, 1 more call; `fused` (published code): up by U
            and from there directly to the next index, no call more; `multi_step` (RePaint): U
            times back to the previous index and down again, U more calls.
        resample_jump: U.

    Every reverse step, also of resampling, is the sampler's: by default it is the paper's
    DDIM step.
    """

    t_large: float = 0.2
    t_small: float = 0.1
    resampling: Resampling = "single_step"
    resample_jump: int = 10

    needs_mask = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("resampling", self.resampling, Resampling)
        _check_strength("t_large", self.t_large)
        _check_strength("t_small", self.t_small)
        if self.t_small > self.t_large:
            raise InputError(f"t_small {self.t_small} is above t_large {self.t_large}: swap them")
        if self.resample_jump < 1:
            raise InputError(f"resample_jump must be >= 1, got {self.resample_jump}")

    def plan(self, schedule: Schedule) -> Plan:
        small = _index(schedule, self.t_small)
        grid = self._grid(schedule, _index(schedule, self.t_large), include=small)
        last = len(schedule) - 1
        plan: list[Step] = []
        jump = 0  # the fused jump that the next step starts with
        for t, s in pairwise(grid):
            stage_1 = s >= small
            plan.append(Step(at=t, via=min(t + jump, last), to=s, known=stage_1))
            jump = 0
            if stage_1 and self.resampling == "single_step":
                plan.append(Step(at=s, via=min(s + self.resample_jump, last), to=s, repeat=1))
            elif stage_1 and self.resampling == "fused":
                jump = self.resample_jump
            elif stage_1 and self.resampling == "multi_step":
                plan.extend(
                    Step(at=s, via=t, to=s, known=True, repeat=repeat)
                    for repeat in range(1, self.resample_jump + 1)
                )
        return tuple(plan)


def heterogeneous_state(
    denoiser: Denoiser, images: Tensor, mask: Tensor, noise: RowNoise, large: int, small: int
) -> Tensor:
    """x(t_l, t_s) = q(x, t_l) M + q(x, t_s) (1 - M) in model units, for two indices.

    The paper's picture of the forward process. The plan never holds it as a state: its two levels
    meet in stage 1, one index at a time.
    """
    attended = _diffuse(denoiser, images, noise, large)
    return mask * attended + (1 - mask) * _diffuse(denoiser, images, noise, small)


def _diffuse(
    denoiser: Denoiser, images: Tensor, noise: RowNoise, index: int, repeat: int = 0
) -> Tensor:
    draw = noise.normal(Purpose.FORWARD, images, step=index, repeat=repeat)
    return add_noise(to_model(images), denoiser.schedule.alpha_cumprod(index), draw)


def _index(schedule: Schedule, strength: float) -> int:
    index = schedule.index(strength)
    if index < 1:
        raise InputError(f"a strength of {strength} is below the first of {len(schedule)} indices")
    return index


def _check_strength(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise InputError(f"{name} is a fraction of the schedule in (0, 1], got {value}")
