"""HetPure (CVPR 2025, arXiv 2503.01407)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor

from hetpure.denoiser import Denoiser
from hetpure.errors import (
    FieldError,
    check_at_least,
    check_at_most,
    check_choice,
    check_fraction,
)
from hetpure.noise import MOST_REPEATS, Randomness
from hetpure.purifiers.purifier import GridPurifier, Plan, Step, diffuse, strength_index
from hetpure.schedule import Schedule

Resampling = Literal["none", "single_step", "fused", "multi_step"]
Known = Literal["landing", "departure"]


@dataclass(frozen=True)
class HeterogeneousPurifier(GridPurifier):
    """Strong noise where the mask is 1, weak noise elsewhere.

    Stage 1 denoises attended pixels from t_large to t_small while the others are re-imposed at
    each index; stage 2 denoises the whole image. The network must see one noise level everywhere,
    so stage 1 starts from the image at t_large in every pixel; when its last step lands on
    t_small, unattended pixels are exactly q(x, t_small), and resampling follows. The grid always
    holds t_small: where its points miss it, it is put in as a point of its own.

    The published code has another order (`known: departure`): a stage-1 step from t to s begins
    with M x_t + (1 - M) q(x, t), goes up by U, and then down to s. Nothing is put back at t_small.
    All pixels start at q(x, t_large), so in a stage 1 of one step the mask does nothing. U single
    steps upwards are here one draw, which has the same law.

    Args:
        t_large: noise level of attended pixels, a fraction of T.
        t_small: noise level of the others.
        resampling: what harmonises the two regions after each stage-1 step: `none`; `single_step`
            (the paper): up by U and one step back, 1 more call; `fused` (published code): up by U
            and from there directly to the next index, no call more; `multi_step` (RePaint): U
            times back to the previous index and down again, U more calls.
        resample_jump: U; a jump ends at the last index of the schedule.
        recombine: re-impose the known pixels after a single-step resampling too, with fresh noise
            of the same level. RePaint's resampling always does, a fused jump does at its next step.
        known: when a stage-1 step re-imposes the known pixels: `landing`, after it; or
            `departure`, before it (published code), with resampling `fused` or `none`.
    """

    t_large: float = 0.2
    t_small: float = 0.1
    resampling: Resampling = "single_step"
    resample_jump: int = 10
    recombine: bool = False
    known: Known = "landing"

    needs_mask = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "resampling", Resampling)
        check_choice(self, "known", Known)
        check_at_least(self, 1, "resample_jump")
        check_at_most(self, MOST_REPEATS - 1, "resample_jump")  # repeats 1 to U
        check_fraction(self, "t_large", "t_small")
        if self.t_small > self.t_large:
            raise FieldError(self, "t_small", f"{self.t_small} is above t_large {self.t_large}")
        if self.recombine and self.resampling != "single_step":
            raise FieldError(
                self, "recombine", f"belongs to resampling single_step, not to {self.resampling}"
            )
        if self.known == "departure" and self.resampling not in ("fused", "none"):
            raise FieldError(
                self,
                "known",
                f"departure goes with resampling fused or none, not with {self.resampling}",
            )

    def plan(self, schedule: Schedule) -> Plan:
        small = strength_index(schedule, self.t_small)
        grid = self.grid(schedule, strength_index(schedule, self.t_large), include=small)
        last = len(schedule) - 1
        departs = self.known == "departure"
        plan: list[Step] = []
        landed = False  # whether the step before was one of stage 1
        for t, s in pairwise(grid):
            stage_1 = s >= small
            # A fused jump follows the known pixels: those of this departure, or of a landing on t.
            jumps = self.resampling == "fused" and (stage_1 if departs else landed)
            up = min(t + self.resample_jump, last) if jumps else t
            # They are in place at the start: initial and known noise of an index are one draw.
            known = stage_1 and (landed or not departs)
            plan.append(Step(at=t, via=up, to=s, known=known))
            landed = stage_1
            if stage_1 and self.resampling == "single_step":
                up = min(s + self.resample_jump, last)
                plan.append(Step(at=s, via=up, to=s, known=self.recombine, repeat=1))
            elif stage_1 and self.resampling == "multi_step":
                plan.extend(
                    Step(at=s, via=t, to=s, known=True, repeat=repeat)
                    for repeat in range(1, self.resample_jump + 1)
                )
        return tuple(plan)

    def advance(
        self,
        denoiser: Denoiser,
        step: Step,
        state: Tensor,
        images: Tensor,
        mask: Tensor | None,
        noise: Randomness,
    ) -> Tensor:
        """One network call; where the step says so, the known pixels are re-imposed before it or
        after it."""
        if not step.known:
            return super().advance(denoiser, step, state, images, mask, noise)
        assert mask is not None, "a heterogeneous step needs a mask"
        departs = self.known == "departure"
        known = diffuse(denoiser, images, noise, step.at if departs else step.to, step.repeat)
        if departs:
            state = mask * state + (1 - mask) * known
        state = super().advance(denoiser, step, state, images, mask, noise)
        return state if departs else mask * state + (1 - mask) * known


def heterogeneous_state(
    denoiser: Denoiser, images: Tensor, mask: Tensor, noise: Randomness, large: int, small: int
) -> Tensor:
    """x(t_l, t_s) = q(x, t_l) M + q(x, t_s) (1 - M) in model units, for two indices: the paper's
    forward process, which the plan never holds as a state."""
    attended = diffuse(denoiser, images, noise, large)
    return mask * attended + (1 - mask) * diffuse(denoiser, images, noise, small)
