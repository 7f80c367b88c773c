"""The warp against torch's own, the roughness by hand, the gradient in the flow against finite
differences, and the attack where its answer is known."""

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.attacks.gradient import Ascent
from hetpure.attacks.losses import criterion
from hetpure.attacks.stadv import StAdv, adam_step, flow_gradient, roughness, warp
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.purifiers import UniformPurifier
from tests.hetpure.attacks.defenses import LABELS, target_of, uphill

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@dataclass(frozen=True, kw_only=True)
class Recorded(StAdv):
    """Remembers the flow of every image that it asks about."""

    flows: list[Tensor] = field(default_factory=list)

    def climb(self, run: Ascent, start: Any, step: Any, images_of: Any) -> list[Tensor]:
        def recorded(state: Any) -> Tensor:
            self.flows.append(state[0])
            return images_of(state)

        return super().climb(run, start, step, recorded)


def attack_of(**settings: Any) -> Recorded:
    return Recorded(
        **{"steps": 3, "step_size": 0.2, "eot_samples": 2, "smoothness": 0.01, **settings}
    )


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1), (8, 8), (28, 28), (31, 33)], ids=str)
def test_no_flow_leaves_every_bit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    images = random(2, 3, *shape, dtype=dtype)
    images[0, 0, 0, 0], images[1, 2, -1, -1] = 0, 1
    assert torch.equal(warp(images, torch.zeros(2, 2, *shape, dtype=dtype)), images)


@pytest.mark.parametrize("reach", [0.5, 3.0, 30.0])
def test_warp_is_grid_sample_with_aligned_corners(reach: float) -> None:
    """Points far outside too."""
    images, flow = random(3, 2, 9, 12), reach * (2 * random(3, 2, 9, 12) - 1)
    down, across = torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij")
    u, v = (across + flow[:, 0]) / 11 * 2 - 1, (down + flow[:, 1]) / 8 * 2 - 1
    expected = F.grid_sample(
        images, torch.stack([u, v], -1), padding_mode="border", align_corners=True
    )
    torch.testing.assert_close(warp(images, flow), expected, rtol=0, atol=1e-12)


@dtypes
def test_no_pixel_gets_a_value_that_was_not_between_others(dtype: torch.dtype) -> None:
    """Black and white stay in [0, 1] exactly, for half a million flows."""
    flow = 10 * (2 * random(8, 2, 256, 256, dtype=dtype) - 1)
    pixels = warp((random(8, 1, 256, 256) > 0.5).to(dtype), flow)
    assert pixels.min() == 0 and pixels.max() == 1
    white = warp(torch.ones(8, 1, 256, 256, dtype=dtype), flow)
    assert white.max() == 1 and (1 - white).abs().max() < 1e-6


def test_the_derivative_of_the_warp() -> None:
    """Finite differences between pixels; at the border without flow, what lies inwards."""
    images, flow = random(1, 2, 4, 5), 3 * (random(1, 2, 4, 5) - 0.5)
    assert torch.autograd.gradcheck(lambda f: warp(images, f), flow.requires_grad_())
    still = torch.zeros(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(warp(images[:, :1], still).sum(), still)
    across = images[0, 0].diff(dim=1)
    down = images[0, 0].diff(dim=0)
    assert torch.equal(slope[0, 0], torch.cat([across, across[:, -1:]], 1))
    assert torch.equal(slope[0, 1], torch.cat([down, down[-1:]], 0))


def test_roughness_by_its_formula() -> None:
    """Over all pixels and the neighbours of each; flat where all are alike, with a derivative of
    0 there."""
    flow = random(2, 2, 3, 4)
    at = {(y, x): flow[:, :, y, x] for y, x in product(range(3), range(4))}
    steps = (0, 1), (0, -1), (1, 0), (-1, 0)
    near = [(p, at.get((p[0] + dy, p[1] + dx))) for p in at for dy, dx in steps]
    lengths = [(at[p] - other).norm(dim=1) for p, other in near if other is not None]
    torch.testing.assert_close(roughness(flow), torch.stack(lengths).sum(0), rtol=0, atol=1e-12)
    still = torch.ones(1, 2, 3, 4, requires_grad=True)
    assert roughness(still).tolist() == [0]
    assert not torch.autograd.grad(roughness(still).sum(), still)[0].any()


@pytest.mark.parametrize("purified", [False, True])
def test_gradient_in_the_flow_against_finite_differences(
    purified: bool, denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """Of the mean loss over the draws less tau L_flow, through warp and defence; the flow keeps off
    the kinks at whole pixels."""
    purifier = UniformPurifier(steps=3) if purified else None
    defense = Defense(smooth_classifier, purifier, denoiser if purifier else None)
    attack, losses = attack_of(mask="recomputed"), criterion("cross_entropy", LABELS)
    generator = torch.Generator().manual_seed(3)
    flow = 0.2 + 0.6 * torch.rand(4, 2, 8, 8, generator=generator, dtype=torch.float64)
    towards = torch.randn(4, 2, 8, 8, generator=generator, dtype=torch.float64)

    def loss(flow: Tensor) -> Any:
        return attack.ask(
            Ascent(target_of(defense, images), 0, losses, None), warp(images, flow), 0
        )

    gradient = flow_gradient(images, flow, loss(flow).gradient, 0.03)
    up, down = (
        loss(moved).loss - 0.03 * roughness(moved)
        for moved in (flow + 1e-5 * towards, flow - 1e-5 * towards)
    )
    ours = (gradient * towards).sum((1, 2, 3))
    torch.testing.assert_close(ours, (up - down) / 2e-5, rtol=1e-6, atol=1e-9)


def test_steps_are_adams() -> None:
    """Those of torch, whose epsilon is made as good as none; and the same for a loss of any scale,
    where float32 squares are 0."""
    parameter = torch.zeros(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.999), eps=1e-30, maximize=True)
    generator = torch.Generator().manual_seed(0)
    flow, mean, square = torch.zeros_like(parameter), torch.zeros(1), torch.zeros(1)
    small = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for count in range(1, 6):
        gradient = torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64)
        parameter.grad = gradient
        theirs.step()
        step, mean, square = adam_step(gradient, mean, square, count)
        flow = flow + 0.1 * step
        scaled, *small = adam_step((1e-30 * gradient).float(), *small, count)
        torch.testing.assert_close(scaled, step, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(flow, parameter.detach(), rtol=0, atol=1e-6)
    nothing, *_ = adam_step(0 * gradient, *(torch.zeros(1),) * 2, 1)
    assert torch.equal(nothing, 0 * gradient)


@pytest.mark.parametrize("scale", [1.0, 1e-14, 1e-100], ids="slope {:g}".format)
def test_a_ramp_in_closed_form(scale: float, linear_classifier: Classifier) -> None:
    """Where an image rises evenly to the right, moving a pixel is changing its value: each ends as
    far as it may go in the direction of a linear classifier's weight, at the border with the
    border's value. Whatever the slope of the loss."""
    linear_classifier.network[1].weight.mul_(scale)
    ramp = (0.2 + 0.08 * torch.arange(8, dtype=torch.float64)).expand(4, 1, 8, 8).contiguous()
    away = uphill(linear_classifier)
    attack = attack_of(steps=8, max_flow=0.75, smoothness=0, step_size=0.2)
    last, best = attack(target_of(Defense(linear_classifier), ramp))
    expected = (ramp + 0.75 * 0.08 * away.sign()).clamp(0.2, 0.2 + 7 * 0.08)
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-12)
    if scale == 1:  # else all losses are one number
        torch.testing.assert_close(best, last, rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_flow", [0.0, 0.3, 2.5])
@pytest.mark.parametrize("random_start", [False, True])
def test_the_flow_stays_within_its_bound(
    max_flow: float, random_start: bool, smooth_classifier: Classifier, images: Tensor
) -> None:
    """And inside the image, all of it is used, and each candidate is an image so warped. Without
    room no bit changes."""
    attack = attack_of(max_flow=max_flow, step_size=2.0, restarts=2, random_start=random_start)
    candidates = attack(target_of(Defense(smooth_classifier), images))
    assert torch.equal(candidates, images.expand_as(candidates)) == (max_flow == 0)
    flows = torch.stack(attack.flows)
    assert flows.abs().max() == max_flow
    place = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")[::-1])
    assert -1e-12 <= (place + flows).min() <= (place + flows).max() <= 7 + 1e-12
    made = torch.stack([warp(images, flow) for flow in flows])
    assert all((made == candidate).all((2, 3, 4)).any(0).all() for candidate in candidates)
    if random_start and max_flow:
        assert 0 < flows[0].abs().max() <= max_flow / 10 and flows[0].std() > max_flow / 30
    else:
        assert not flows[0].any()


def test_more_smoothness_makes_smoother_flow(smooth_classifier: Classifier, images: Tensor) -> None:
    rough = []
    for smoothness in (0.0, 0.1):
        attack = attack_of(smoothness=smoothness, steps=20, step_size=0.04)
        attack(target_of(Defense(smooth_classifier), images))
        rough.append(roughness(attack.flows[-1]))
    assert (rough[0] > 1.5 * rough[1]).all()
