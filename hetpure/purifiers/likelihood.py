"""Likelihood maximisation, LM (Chen et al., ICML 2024, arXiv 2305.15241)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hetpure.denoiser import Denoiser, to_model
from hetpure.errors import FieldError, InputError, check_at_least, check_at_most, check_positive
from hetpure.noise import MOST_REPEATS, Purpose, Randomness
from hetpure.numbers import Number
from hetpure.purifiers.purifier import Plan, Purifier, Step
from hetpure.schedule import NO_NOISE, Schedule


@dataclass(frozen=True)
class LikelihoodPurifier(Purifier):
    """The image itself goes down the denoising loss, whose mean over indices and noise bounds
    -log p(x) up to weights.

    A step draws an index t and noise n for each image x. With

        g = gradient in x of |n - eps(sqrt(abar_t) x + sqrt(1 - abar_t) n, t)|^2

    it is x <- clip(x - step_size g / rms(g)): rms is over the image, and clip is to the ball around
    the input. Steps and noise levels are as many and as high as in the published code. That code
    takes Adam's steps at a rate of 0.1 in model units, which is this `step_size`, and its ball, of
    an L2 radius of 100, is never reached. Adam's first step is a sign, which has no derivative:
    hence rms.

    A step is one network call and a backward pass, and its gradient differentiates both. Fused
    attention kernels have no second derivative: attention is computed by plain products here.
    Compiled code has none either, and float16 scales gradients on their way: both are refused.

    Args:
        steps: gradient steps.
        step_size: root mean square of the pixels' way in a step, pixel units.
        radius: no pixel goes further than so much (Linf), pixel units; null: no ball.
        sigma_min: lowest noise level that is drawn, noise over signal at the nearest index.
        sigma_max: highest one.
    """

    steps: int = 5
    step_size: Number = Number(0.05)  # noqa: RUF009 (immutable)
    radius: Number | None = None
    sigma_min: float = 0.4
    sigma_max: float = 0.6

    def __post_init__(self) -> None:
        check_at_least(self, 1, "steps")
        check_at_most(self, MOST_REPEATS, "steps")
        check_positive(self, "step_size", "sigma_min", "sigma_max")
        if self.radius is not None:
            check_positive(self, "radius")
        if self.sigma_max < self.sigma_min:
            allowed = f"must be >= sigma_min {self.sigma_min}"
            raise FieldError(self, "sigma_max", f"{allowed}, got {self.sigma_max}")

    def plan(self, schedule: Schedule) -> Plan:
        """`via` is the highest index that may be drawn."""
        highest = schedule.nearest(self.sigma_max)
        return tuple(
            Step(at=NO_NOISE, via=highest, to=NO_NOISE, repeat=number)
            for number in range(self.steps)
        )

    def start(self, denoiser: Denoiser, images: Tensor, noise: Randomness) -> Tensor:
        """The images (B, C, H, W) themselves, in model units."""
        return to_model(images)

    def advance(
        self,
        denoiser: Denoiser,
        step: Step,
        state: Tensor,
        images: Tensor,
        mask: Tensor | None,
        noise: Randomness,
    ) -> Tensor:
        """One step down the gradient, and back into the ball."""
        _check_twice_differentiable(denoiser)
        lowest = denoiser.schedule.nearest(self.sigma_min)
        # The index belongs to the reverse group of noise, and the noise at it to the forward group.
        drawn = noise.integers(Purpose.TIMESTEP, step.via - lowest + 1, repeat=step.repeat)
        level = denoiser.schedule.level(lowest + drawn, state)
        fresh = noise.normal(Purpose.FORWARD, state, step=step.via, repeat=step.repeat)
        differentiated = torch.is_grad_enabled() and state.requires_grad
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            x = state if differentiated else state.detach().requires_grad_()
            _, predicted = denoiser.predict(level.diffuse(x, fresh), level)
            loss = (fresh - predicted).square().sum()
            # The graph is made even where nobody differentiates the step: without one torch takes
            # other backward kernels, and answers would differ from the attacked ones in some bits.
            (g,) = torch.autograd.grad(loss, x, create_graph=True)
            rms = g.square().mean((1, 2, 3), keepdim=True).sqrt()
            moved: Tensor = x - 2 * self.step_size * g / rms  # 2: from pixel to model units
        if not differentiated:
            moved = moved.detach()
        if self.radius is None:
            return moved
        centre, reach = to_model(images), 2 * self.radius
        return moved.clamp(centre - reach, centre + reach)


def _check_twice_differentiable(denoiser: Denoiser) -> None:
    """InputError where the network is accelerated in a way that has no second derivative. What an
    accelerated network says of itself: whether it is `compiled`, whether it `guards` its gradients
    by scaling them on their way."""
    for refused in ("compiled", "guards"):
        if getattr(denoiser.network, refused, False):
            raise InputError(
                "LikelihoodPurifier differentiates the network twice, which compiled code and"
                " float16 cannot: take float32 or bfloat16, and compile: off"
            )
