"""Spatially transformed adversarial examples (stAdv; Xiao et al. 2018, arXiv 1801.02612): pixels
are moved along a flow field, and none is changed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hetpure.attacks.gradient import Ascent, GradientAttack
from hetpure.attacks.losses import Loss
from hetpure.errors import check_at_least, check_positive
from hetpure.noise import Purpose
from hetpure.numbers import Number

DECAY = (0.9, 0.999)  # Adam's beta_1 and beta_2
TINY = 1e-8  # Adam's epsilon, of an image's largest entry: the loss may have any scale
FlowState = tuple[Tensor, Tensor, Tensor, int]  # a flow in pixels, Adam's moments, steps so far


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Images (B, C, H, W) sampled along a flow (B, 2, H, W) in pixels, (du, dv): pixel (u, v) of
    the result is the bilinear value at (u + du, v + dv) (eq. 1), u to the right and v down, and
    points outside have the border's value.

    It is `grid_sample` with aligned corners, whose coordinates in [-1, 1] are rounded: here a flow
    of 0 leaves the image exactly as it is, and a border pixel's derivative is the one inwards.
    """
    height, width = images.shape[-2:]
    across = torch.arange(width, device=flow.device, dtype=flow.dtype)
    down = torch.arange(height, device=flow.device, dtype=flow.dtype)
    u = (across + flow[:, 0]).clamp(0, width - 1)
    v = (down[:, None] + flow[:, 1]).clamp(0, height - 1)
    left = u.detach().floor().clamp(max=max(width - 2, 0))
    top = v.detach().floor().clamp(max=max(height - 2, 0))
    right, below = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)

    def pixels(u: Tensor, v: Tensor) -> Tensor:
        place = (v * width + u).long().flatten(1)[:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, place).reshape(images.shape)

    to_right, to_below = (u - left)[:, None], (v - top)[:, None]
    upper = pixels(left, top) * (1 - to_right) + pixels(right, top) * to_right
    lower = pixels(left, below) * (1 - to_right) + pixels(right, below) * to_right
    warped: Tensor = upper * (1 - to_below) + lower * to_below
    return warped  # in [0, 1] as the images are: 1 - w + w never rounds to more than 1


def roughness(flow: Tensor) -> Tensor:
    """L_flow (B,) of a flow (B, 2, H, W) (eq. 4): over all pixels p and their neighbours q above,
    below, left and right, the sum of sqrt(|du_p - du_q|^2 + |dv_p - dv_q|^2)."""
    across = flow[..., :, 1:] - flow[..., :, :-1]
    down = flow[..., 1:, :] - flow[..., :-1, :]
    lengths = [torch.linalg.vector_norm(part, dim=1).flatten(1) for part in (across, down)]
    return 2 * torch.cat(lengths, 1).sum(1)  # p and q are each other's neighbours


def bounded(flow: Tensor, reach: float) -> Tensor:
    """The flow (B, 2, H, W), each component cut to `reach` pixels and to where the image ends:
    beyond, all points have the border's value, and a pixel that came from there had no gradient
    that brings it back."""
    height, width = flow.shape[-2:]
    across = torch.arange(width, device=flow.device, dtype=flow.dtype).expand(height, width)
    down = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None].expand(height, width)
    before = torch.stack([across, down]).clamp(max=reach)
    after = torch.stack([width - 1 - across, height - 1 - down]).clamp(max=reach)
    return flow.clamp(-before, after)


def adam_step(
    gradient: Tensor, mean: Tensor, square: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The direction of Adam's `count`-th step (Kingma & Ba 2015, Algorithm 1), from 1, and its new
    first and second moments, all (B, 2, H, W); moments in float64, or squares would vanish."""
    gradient = gradient.double()
    mean = DECAY[0] * mean + (1 - DECAY[0]) * gradient
    square = DECAY[1] * square + (1 - DECAY[1]) * gradient.square()
    root = (square / (1 - DECAY[1] ** count)).sqrt()
    largest = root.amax((1, 2, 3), keepdim=True)
    root = root + TINY * torch.where(largest > 0, largest, torch.ones_like(largest))
    return mean / (1 - DECAY[0] ** count) / root, mean, square


@dataclass(frozen=True, kw_only=True)
class StAdv(GradientAttack):
    """Ascends the expected loss less tau times the flow's roughness (eq. 2) in the flow, by Adam,
    and keeps every component of the flow within a bound. Its candidates are the last image of each
    run and the best: the one with the largest expected loss, whatever its roughness. The loss is
    the paper's, the margin (eq. 3), unless another is asked for.

    The paper takes L-BFGS, whose line search and curvature need a function that answers alike
    twice; the expected loss over fresh draws does not.

    Args:
        max_flow: how far away a pixel may come from, in pixels, along each axis.
        step_size: of Adam, pixels.
        smoothness: tau; the paper: 0.05.
        random_start: start at a flow of a tenth of the bound, uniform in each component, else at
            none: on whole pixels, where a derivative sees what lies on one side only.
    """

    loss: Loss = "margin"
    max_flow: Number = Number(1)  # noqa: RUF009 (immutable)
    step_size: Number = Number("0.1")  # noqa: RUF009 (immutable)
    smoothness: Number = Number("0.05")  # noqa: RUF009 (immutable)
    random_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "max_flow", "smoothness")
        check_positive(self, "step_size")

    @property
    def name(self) -> str:
        return "stadv"

    @property
    def threat(self) -> None:
        """No ball."""

    def ascend(self, run: Ascent) -> list[Tensor]:
        images = run.target.images

        def step(state: FlowState, gradient: Tensor) -> FlowState:
            flow, mean, square, count = state
            gradient = flow_gradient(images, flow, gradient, self.smoothness)
            along, mean, square = adam_step(gradient, mean, square, count + 1)
            flow = bounded(flow + self.step_size * along.to(flow), self.max_flow)
            return flow, mean, square, count + 1

        flow = self._start(run)
        zero = torch.zeros_like(flow, dtype=torch.float64)
        return self.climb(run, (flow, zero, zero, 0), step, lambda state: warp(images, state[0]))

    def _start(self, run: Ascent) -> Tensor:
        """The flow (B, 2, H, W) that a run begins with."""
        images = run.target.images
        flow = images.new_zeros(len(images), 2, *images.shape[-2:])
        if not self.random_start:
            return flow
        uniform = run.target.addresses.own_noise(run.number).uniform(Purpose.START, flow)
        return bounded(self.max_flow / 10 * (2 * uniform - 1), self.max_flow)


def flow_gradient(images: Tensor, flow: Tensor, gradient: Tensor, smoothness: float) -> Tensor:
    """d (loss - tau L_flow) / d flow (B, 2, H, W), for the gradient (B, C, H, W) of the loss in the
    warped images: the chain rule."""
    flow = flow.detach().requires_grad_()
    with torch.enable_grad():
        gained = (gradient * warp(images, flow)).sum()
        objective = gained - smoothness * roughness(flow).sum()
    return torch.autograd.grad(objective, flow)[0]
