"""The continuous adjoint of a diffusion's differential equation, by which DiffPure was attacked
(Nie et al. 2022; Li et al. 2020): memory does not grow with the steps, but the gradient is that of
the equation and not that of the steps that were taken."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.noise import Purpose, Randomness
from hetpure.purifiers import Plan, Purifier, UniformPurifier
from hetpure.samplers import ContinuousSampler
from hetpure.schedule import NO_NOISE


def equation(purifier: Purifier | None) -> UniformPurifier:
    """The purifier itself; InputError unless it solves one differential equation."""
    if isinstance(purifier, UniformPurifier) and isinstance(purifier.sampler, ContinuousSampler):
        return purifier
    raise InputError(
        "gradient adjoint needs one differential equation, a UniformPurifier with sampler VPSDE or"
        f" VPODE, not {purifier or 'a plain classifier'}: use auto"
    )


def solved(plan: Plan) -> Plan:
    """The steps that the equation is solved by: all but a read-out of the predicted image."""
    return plan[:-1] if plan[-1].to == NO_NOISE else plan


def solve(
    purifier: UniformPurifier, denoiser: Denoiser, plan: Plan, state: Tensor, noise: Randomness
) -> Tensor:
    """The plan's last state (B, C, H, W), differentiable in the first by the continuous adjoint.

    A last step that reads the predicted image off the network solves nothing: it is exact.
    """
    flow = solved(plan)
    state = _Adjoint.apply(purifier, denoiser, flow, noise, state)  # type: ignore[no-untyped-call]
    for step in plan[len(flow) :]:
        state = purifier.advance(denoiser, step, state, state, None, noise)
    return state


class _Adjoint(torch.autograd.Function):
    """Keeps the last state only. Going back, the equation is solved backwards from it along the
    same noise, together with its adjoint a: da = -a d(drift)/dx dtau."""

    @staticmethod
    def forward(
        ctx: Any,
        purifier: UniformPurifier,
        denoiser: Denoiser,
        plan: Plan,
        noise: Randomness,
        state: Tensor,
    ) -> Tensor:
        for step in plan:
            state = purifier.advance(denoiser, step, state, state, None, noise)
        ctx.problem = purifier, denoiser, plan, noise
        ctx.save_for_backward(state)
        return state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        purifier, denoiser, plan, noise = ctx.problem
        (state,) = ctx.saved_tensors
        sampler, level = purifier.sampler, denoiser.schedule.alpha_cumprod
        for step in reversed(plan):  # an Euler step up from `to` to `via`
            alpha = level(step.to)
            length = math.log(alpha / level(step.via))
            point = state.detach().requires_grad_()
            with torch.enable_grad():
                x0, _ = denoiser.predict(point, step.to)
                drift = sampler.drift(point, sampler.clip(x0), alpha)
            (pull,) = torch.autograd.grad(drift, point, adjoint)
            state = state - length * drift.detach()
            if sampler.stochastic:
                fresh = noise.normal(Purpose.REVERSE, state, step=step.to, repeat=step.repeat)
                state = state - math.sqrt(length) * fresh
            adjoint = adjoint + length * pull
        return None, None, None, None, adjoint
