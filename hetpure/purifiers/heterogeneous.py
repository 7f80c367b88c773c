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


@dataclass(frozen=True)
class HeterogeneousPurifier(GridPurifier):
    """Strong noise where the mask is 1, weak noise elsewhere.

    Stage 1 denoises attended pixels from t_large to t_small while the others are re-imposed at
    each index; stage 2 denoises the whole image. The network must see one noise level everywhere,
    so stage 1 starts from the image at t_large in every pixel; when its last step lands on
    t_small, unattended pixels are exactly q(x, t_small), and resampling follows. The grid always
    holds t_small: where its points miss it, it is put in as a point of its own.

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
    """

    t_large: float = 0.2
    t_small: float = 0.1
    resampling: Resampling = "single_step"
    resample_jump: int = 10
    recombine: bool = False

    needs_mask = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "resampling", Resampling)
        check_at_least(self, 1, "resample_jump")
        check_at_most(self, MOST_REPEATS - 1, "resample_jump")  # repeats 1 to U
        check_fraction(self, "t_large", "t_small")
        if self.t_small > self.t_large:
            raise FieldError(self, "t_small", f"{self.t_small} is above t_large {self.t_large}")
        if self.recombine and self.resampling != "single_step":
            raise FieldError(
                self, "recombine", f"belongs to resampling single_step, not to {self.resampling}"
            )

    def plan(self, schedule: Schedule) -> Plan:
        small = strength_index(schedule, self.t_small)
        grid = self.grid(schedule, strength_index(schedule, self.t_large), include=small)
        last = len(schedule) - 1
        plan: list[Step] = []
        jump = 0  # the fused jump that the next step starts with
        for t, s in pairwise(grid):
            stage_1 = s >= small
            plan.append(Step(at=t, via=min(t + jump, last), to=s, known=stage_1))
            jump = 0
            if stage_1 and self.resampling == "single_step":
                up = min(s + self.resample_jump, last)
                plan.append(Step(at=s, via=up, to=s, known=self.recombine, repeat=1))
            elif stage_1 and self.resampling == "fused":
                jump = self.resample_jump
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
        """One network call; then, if the step says so, the known pixels are re-imposed."""
        state = super().advance(denoiser, step, state, images, mask, noise)
        if step.known:
            assert mask is not None, "a heterogeneous step needs a mask"
            known = diffuse(denoiser, images, noise, step.to, step.repeat)
            state = mask * state + (1 - mask) * known
        return state


def heterogeneous_state(
    denoiser: Denoiser, images: Tensor, mask: Tensor, noise: Randomness, large: int, small: int
) -> Tensor:
    """x(t_l, t_s) = q(x, t_l) M + q(x, t_s) (1 - M) in model units, for two indices: the paper's
    forward process, which the plan never holds as a state."""
    attended = diffuse(denoiser, images, noise, large)
    return mask * attended + (1 - mask) * diffuse(denoiser, images, noise, small)
