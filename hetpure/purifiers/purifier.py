"""A purifier as a static plan of pure steps.

A plan is known before any image is seen, and purifiers differ in the numbers they write into it.
The image is in pixel [0, 1], the state in model units [-1, 1].
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from hetpure.denoiser import Denoiser, to_model, to_pixels
from hetpure.errors import FieldError, InputError, check_choice
from hetpure.noise import Group, Purpose, Randomness
from hetpure.samplers import DDIM, Sampler, add_noise, jump_forward
from hetpure.schedule import NO_NOISE, Schedule

Output = Literal["x0", "state"]


@dataclass(frozen=True)
class Step:
    """The state stands at index `at`; it is diffused up to `via` where that is above, denoised from
    there to index `to`, and, if `known`, its unattended pixels are replaced by the image at the
    noise level of `to` (or, before all else, at that of `at`: the purifier says which). `repeat`
    tells steps at one index apart. A step is one network call, or two where a Heun step is
    `corrected` with the slope at its end."""

    at: int
    via: int
    to: int
    known: bool = False
    repeat: int = 0
    corrected: bool = False

    @property
    def network_calls(self) -> int:
        return 2 if self.corrected else 1


Plan = tuple[Step, ...]


@dataclass(frozen=True)
class Purifier(ABC):
    """What every purifier is: a plan, a start, a step and an end."""

    needs_mask = False

    @abstractmethod
    def plan(self, schedule: Schedule) -> Plan:
        """The steps, known before any image."""

    def groups(self, plan: Plan) -> frozenset[Group]:
        """Which groups of noise the plan asks for; a purifier that does not know names both."""
        return frozenset(("forward", "reverse"))

    def start(self, denoiser: Denoiser, images: Tensor, noise: Randomness) -> Tensor:
        """Images (B, C, H, W) diffused to the first index of the plan."""
        return diffuse(denoiser, images, noise, self.plan(denoiser.schedule)[0].at)

    @abstractmethod
    def advance(
        self,
        denoiser: Denoiser,
        step: Step,
        state: Tensor,
        images: Tensor,
        mask: Tensor | None,
        noise: Randomness,
    ) -> Tensor:
        """The next state (B, C, H, W); images are the ones to purify, mask is (B, 1, H, W)."""

    def finish(self, state: Tensor) -> Tensor:
        """The last state as an image, pixel [0, 1]."""
        return to_pixels(state).clamp(0, 1)


@dataclass(frozen=True)
class GridPurifier(Purifier):
    """Purifiers that go down a grid of the schedule's indices with any sampler.

    The grid is given in one of three ways. Whichever it is, it holds the starting index, the stage
    boundary where there is one, and index 0; what lies above the start is left out.

    Args:
        steps: grid points for the whole schedule of T indices (S), multiples of T / S; 50 where
            no grid is given.
        sampler: how a reverse step is taken.
        output: `x0`, the prediction of the last network call, or `state`, the state at index 0
            (HetPure's published code): the same number of calls.
        stride: indices between grid points.
        timesteps: the grid itself, as indices.
    """

    steps: int | None = None
    sampler: Sampler = field(default_factory=DDIM)
    output: Output = "x0"
    stride: int | None = None
    timesteps: tuple[int, ...] | None = None

    default_steps: ClassVar[int | None] = 50  # None: every index

    def __post_init__(self) -> None:
        check_choice(self, "output", Output)
        given = [n for n in ("steps", "stride", "timesteps") if getattr(self, n) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} contradict: give one, the purifier's grid")

    def groups(self, plan: Plan) -> frozenset[Group]:
        """The sampler's own noise is asked for where it is stochastic and the step is no last."""
        drawn = self.sampler.stochastic and any(step.to != NO_NOISE for step in plan)
        return frozenset(("forward", "reverse") if drawn else ("forward",))

    def advance(
        self,
        denoiser: Denoiser,
        step: Step,
        state: Tensor,
        images: Tensor,
        mask: Tensor | None,
        noise: Randomness,
    ) -> Tensor:
        """One network call: jump up where the step says so, then denoise."""
        return self._denoise(denoiser, step, self._jump(denoiser, step, state, noise), noise)

    def _jump(self, denoiser: Denoiser, step: Step, state: Tensor, noise: Randomness) -> Tensor:
        """The state diffused from `at` up to `via`."""
        if step.via <= step.at:
            return state
        level = denoiser.schedule.alpha_cumprod
        fresh = noise.normal(Purpose.RESAMPLE, state, step=max(step.at, 0), repeat=step.repeat)
        return jump_forward(state, level(step.at), level(step.via), fresh)

    def _denoise(self, denoiser: Denoiser, step: Step, state: Tensor, noise: Randomness) -> Tensor:
        """The state taken from `via` down to `to`."""
        level = denoiser.schedule.alpha_cumprod
        x0, predicted_noise = denoiser.predict(state, step.via)
        x0 = self.sampler.clip(x0)
        if step.to == NO_NOISE:
            return x0
        fresh = (
            noise.normal(Purpose.REVERSE, state, step=step.to, repeat=step.repeat)
            if self.sampler.stochastic
            else None
        )
        return self.sampler.step(state, x0, predicted_noise, level(step.via), level(step.to), fresh)

    def grid(self, schedule: Schedule, start: int, include: int | None = None) -> list[int]:
        """Descending indices from `start` to the last state, which is `NO_NOISE` for output x0."""
        count = len(schedule)
        if self.timesteps is not None:
            points: Sequence[int] = self.timesteps
            if not points or min(points) < 0 or max(points) >= count:
                raise FieldError(self, "timesteps", f"must be in [0, {count - 1}], got {points}")
        elif self.stride is not None:
            if not 1 <= self.stride < count:
                raise FieldError(self, "stride", f"must be in [1, {count - 1}], got {self.stride}")
            points = range(0, count, self.stride)
        else:
            steps = self.steps if self.steps is not None else self.default_steps or count
            if not 1 <= steps <= count:
                raise FieldError(self, "steps", f"must be in [1, {count}], got {steps}")
            points = [round(k * count / steps) for k in range(steps)]
        # It hangs on 0, not on the start: two purifiers with different strengths share every index
        # below the smaller one.
        wanted = {*points, start, 0} | ({include} if include is not None else set())
        grid = sorted((t for t in wanted if t <= start), reverse=True)
        return [*grid[:-1], NO_NOISE if self.output == "x0" else 0]

    def rounds_from(self, schedule: Schedule, starts: Sequence[int]) -> Plan:
        """Down the grid from each start, one purification after another: the first from the image,
        the others from what came out of the one before them."""
        plan: list[Step] = []
        for number, start in enumerate(starts):
            grid = self.grid(schedule, start)
            first, *others = pairwise(grid)
            at = grid[-1] if number else start  # every round ends at the same index
            plan.append(Step(at=at, via=start, to=first[1], repeat=number))
            plan.extend(Step(at=t, via=t, to=s, repeat=number) for t, s in others)
        return tuple(plan)


def diffuse(
    denoiser: Denoiser, images: Tensor, noise: Randomness, index: int, repeat: int = 0
) -> Tensor:
    """q(x, t, n) in model units for images in pixel [0, 1], with the known noise of that index."""
    draw = noise.normal(Purpose.FORWARD, images, step=index, repeat=repeat)
    return add_noise(to_model(images), denoiser.schedule.alpha_cumprod(index), draw)


def strength_index(schedule: Schedule, strength: float) -> int:
    """The index of a strength, a fraction of T; below the first index is an error."""
    index = schedule.index(strength)
    if index < 1:
        raise InputError(f"a strength of {strength} is below the first of {len(schedule)} indices")
    return index
