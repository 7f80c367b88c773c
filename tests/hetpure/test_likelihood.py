"""Likelihood maximisation: its steps in closed form, and the second derivative in its gradient."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor

from hetpure.acceleration import Acceleration, accelerate
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser, to_model, to_pixels
from hetpure.errors import FieldError, InputError
from hetpure.gradient_check import GradientCheck, check_gradient, cosines
from hetpure.gradients import Execution
from hetpure.networks.song_unet import SongUNet
from hetpure.noise import BatchNoise, Noise, Purpose, Stream
from hetpure.numbers import Number
from hetpure.purifiers import LikelihoodPurifier, Purifier
from hetpure.schedule import NO_NOISE, linear_schedule
from tests.hetpure.networks import Optimal, cosine_schedule, states

SCHEDULE = linear_schedule()
MU, S = -0.1, Optimal.S
GAUSSIAN = Denoiser(Optimal(SCHEDULE, MU), SCHEDULE)
LM = LikelihoodPurifier(steps=2)
REPORT = Noise.of(7, Stream.REPORT)
Rows = Callable[..., BatchNoise]


def drawn_alphas(purifier: LikelihoodPurifier, noise: BatchNoise, repeat: int) -> Tensor:
    """Signal variances (B, 1, 1, 1) at the indices that a step draws."""
    sigmas = torch.tensor([SCHEDULE.sigma(t) for t in range(1000)])
    low, high = (int((sigmas - s).abs().argmin()) for s in (purifier.sigma_min, purifier.sigma_max))
    index = low + noise.integers(Purpose.TIMESTEP, high - low + 1, repeat=repeat)
    return torch.tensor(SCHEDULE.alphas_cumprod, dtype=torch.float64)[index].reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("radius", [None, Number("8/255")], ids=["no ball", "ball"])
def test_steps_in_closed_form(radius: Number | None, images: Tensor, rows: Rows) -> None:
    """Of Gaussian data the prediction is linear, sqrt(1 - a) (x_t - sqrt(a) mu) / v with
    v = a S^2 + 1 - a, so g = -2 sqrt(a (1 - a)) / v (n - prediction)."""
    noise, purifier = rows(0, 1, 2, 3), replace(LM, radius=radius)
    x = centre = 2 * images - 1
    highest = purifier.plan(SCHEDULE)[0].via
    expected = [x]
    for repeat in range(2):
        a = drawn_alphas(purifier, noise, repeat)
        n = noise.normal(Purpose.FORWARD, images, step=highest, repeat=repeat)
        v = a * S**2 + 1 - a
        noisy = a**0.5 * x + (1 - a) ** 0.5 * n
        residual = n - (1 - a) ** 0.5 * (noisy - a**0.5 * MU) / v
        g = -2 * (a * (1 - a)) ** 0.5 / v * residual
        x = x - 2 * 0.05 * g / (g**2).mean((1, 2, 3), keepdim=True) ** 0.5
        if radius is not None:
            x = torch.maximum(torch.minimum(x, centre + 16 / 255), centre - 16 / 255)
        expected.append(x)
    for found, known in zip(states(purifier, GAUSSIAN, images, None, noise), expected, strict=True):
        torch.testing.assert_close(found, known, rtol=0, atol=1e-12)


def test_a_step_moves_an_image_by_its_step_size(
    denoiser: Denoiser, images: Tensor, rows: Rows
) -> None:
    """Root mean square, pixel units, every image by as much."""
    before, after = states(replace(LM, steps=1), denoiser, images, None, rows(0, 1, 2, 3))
    moved = (to_pixels(after) - to_pixels(before)).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.05), rtol=0, atol=1e-12)


def test_the_ball_holds(denoiser: Denoiser, images: Tensor, rows: Rows) -> None:
    inside = LikelihoodPurifier(steps=4, radius=Number("8/255"))
    away = [
        float((to_pixels(state) - images).abs().max())
        for state in states(inside, denoiser, images, None, rows(0, 1, 2, 3))
    ]
    assert away[0] < 1e-12 and away[1:] == pytest.approx([8 / 255] * 4, abs=1e-12)
    free = states(replace(inside, radius=None), denoiser, images, None, rows(0, 1, 2, 3))[-1]
    assert (to_pixels(free) - images).abs().max() > 16 / 255


def test_the_denoising_loss_falls(rows: Rows) -> None:
    """The expected one, by draws that no step saw; of Gaussian data images go to the mean."""
    images = torch.full((64, 1, 8, 8), 0.9, dtype=torch.float64)
    pure = states(LikelihoodPurifier(), GAUSSIAN, images, None, rows(*range(64)))[-1]
    losses = []
    for x in (to_model(images), pure):
        n = rows(*range(64), draw=1).normal(Purpose.FORWARD, images)
        level = SCHEDULE.level(torch.full((64,), 140), images)
        losses.append(float((n - GAUSSIAN.predict(level.diffuse(x, n), level)[1]).square().mean()))
    assert losses[1] < 0.9 * losses[0]
    assert abs(pure.mean() - MU) < abs(0.8 - MU) - 0.1


@pytest.mark.parametrize("schedule", [SCHEDULE, cosine_schedule()], ids=["linear", "cosine"])
def test_every_index_between_both_levels_is_drawn_and_no_other(schedule: Any, rows: Rows) -> None:
    asked: list[Tensor] = []

    class Watched(Denoiser):
        def predict(self, x: Tensor, at: Any) -> tuple[Tensor, Tensor]:
            asked.append(at.time)
            return super().predict(x, at)

    images = torch.full((512, 1, 2, 2), 0.5, dtype=torch.float64)
    denoiser = Watched(Optimal(schedule), schedule)
    states(LikelihoodPurifier(steps=4), denoiser, images, None, rows(*range(512)))
    sigmas = torch.tensor([schedule.sigma(t) for t in range(1000)])
    low, high = (int((sigmas - sigma).abs().argmin()) for sigma in (0.4, 0.6))
    assert len(asked) == 4
    assert torch.cat(asked).unique().tolist() == list(range(low, high + 1))


def test_a_plan_is_a_call_a_step() -> None:
    plan = LikelihoodPurifier().plan(SCHEDULE)
    assert [step.network_calls for step in plan] == [1] * 5
    assert {(step.at, step.to) for step in plan} == {(NO_NOISE, NO_NOISE)}


def test_an_answer_is_the_same_bits_with_and_without_a_gradient(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """And holds no graph where none is wanted, whatever the mode it is called in."""
    defense = Defense(classifier, LM, denoiser, policy="tape")
    noise = REPORT.on(torch.arange(4))
    taped = defense.purify(images.clone().requires_grad_(), noise)
    assert taped.requires_grad
    with torch.no_grad():
        answers = [defense.purify(x, noise) for x in (images, images.clone().requires_grad_())]
    answers.append(defense.purify(images, noise))
    assert all(torch.equal(answer, taped) and not answer.requires_grad for answer in answers)
    assert all(parameter.grad is None for parameter in denoiser.parameters())


class Detached(LikelihoodPurifier):
    """The mistake of following the step's way as if it did not hang on the image."""

    def advance(self, denoiser: Denoiser, step: Any, state: Tensor, *rest: Any) -> Tensor:
        return state + (super().advance(denoiser, step, state, *rest) - state).detach()


def loss(defense: Any, images: Tensor, execution: Execution) -> Tensor:
    logits = defense(images, REPORT.on(torch.arange(len(images))), None, execution)
    return F.cross_entropy(logits, torch.arange(len(images)), reduction="sum")


def song_unet() -> SongUNet:
    torch.manual_seed(5)
    return SongUNet(8, 1, 1, model_channels=8, channel_mult=(1, 1), num_blocks=1)


def diffusers_unet() -> UNet2DModel:
    torch.manual_seed(5)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
    )


def checked(
    purifier: Purifier, denoiser: Denoiser, classifier: Classifier, image: Tensor
) -> GradientCheck:
    """The gradient check of one image (1, C, H, W), in one direction."""
    generator = torch.Generator().manual_seed(9)
    direction = torch.randn((1, *image.shape), generator=generator, dtype=torch.float64)
    compared = [Execution("tape"), Execution("checkpoint"), Execution("hybrid", 1)]
    defense = Defense(classifier, purifier, denoiser)
    return check_gradient(defense, loss, image, direction, compared, bound=1e-6)


@pytest.mark.parametrize("network", [song_unet, diffusers_unet], ids=lambda make: make.__name__)
def test_the_second_derivative_is_exact_through_attention(
    network: Callable[[], Any], smooth_classifier: Classifier, images: Tensor
) -> None:
    denoiser = Denoiser(network().eval(), SCHEDULE).double().requires_grad_(False)
    check = checked(LM, denoiser, smooth_classifier, images[:1])
    assert check.passed and check.directions == 1, check.failure


def test_a_step_without_its_second_derivative_fails_the_gradient_check(
    denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    check = checked(Detached(steps=2), denoiser, smooth_classifier, images[:1])
    assert check.policies_equal and not check.passed
    assert check.finite_difference_error > 1e-3


def test_fused_attention_is_not_used(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    """Without the plain products a second derivative is refused by torch, or wrong."""
    denoiser = Denoiser(song_unet().eval(), SCHEDULE).requires_grad_(False)
    seen = []
    attend = F.scaled_dot_product_attention

    def watched(*tensors: Tensor) -> Tensor:
        output = attend(*tensors)
        seen.append(output.grad_fn.name() if output.grad_fn is not None else "")
        return output

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    noise = REPORT.on(torch.arange(4))
    states(replace(LM, steps=1), denoiser, images.float(), None, noise)
    assert seen and not any("Scaled" in name for name in seen)


REFUSED = {
    "compiled": Acceleration(compile="default"),
    "float16": Acceleration("float16"),
    "float16, channels last": Acceleration("float16", channels_last=True),
}


@pytest.mark.parametrize("acceleration", REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_second_derivative_is_refused(
    acceleration: Acceleration, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    fast = accelerate(denoiser.float(), acceleration)
    defense = Defense(classifier.float(), LM, fast)
    with pytest.raises(InputError, match="differentiates the network twice, .* compile: off"):
        defense.purify(images.float(), REPORT.on(torch.arange(4)))


@pytest.mark.parametrize("channels_last", [False, True])
def test_bfloat16_gives_nearly_the_same_gradient(
    channels_last: bool, smooth_classifier: Classifier, images: Tensor
) -> None:
    """As nearly as an evaluation asks for by default: a cosine of .99 to float32."""
    network = diffusers_unet().eval()
    smooth_classifier.float()
    gradients = []
    for acceleration in (Acceleration(), Acceleration("bfloat16", channels_last)):
        denoiser = accelerate(Denoiser(network, SCHEDULE).requires_grad_(False), acceleration)
        defense = Defense(smooth_classifier, LM, denoiser)
        point = images.float().requires_grad_()
        gradients.append(torch.autograd.grad(loss(defense, point, Execution("tape")), point)[0])
    assert cosines(gradients[1], gradients[0]).min() > 0.99


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"steps": 2**16 + 1}, "steps must be <= 65536, got 65537"),
        ({"step_size": Number(0)}, "step_size must be > 0, got 0"),
        ({"radius": Number(0)}, "radius must be > 0, got 0"),
        ({"radius": Number("-1/255")}, "radius must be > 0, got -1/255"),
        ({"sigma_min": 0.0}, "sigma_min must be > 0, got 0.0"),
        ({"sigma_max": math.inf}, "sigma_max must be > 0, got inf"),
        ({"sigma_min": 0.7}, "sigma_max must be >= sigma_min 0.7, got 0.6"),
    ],
    ids=lambda value: str(value),
)
def test_settings_that_are_none_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=f"LikelihoodPurifier.{message}"):
        LikelihoodPurifier(**settings)
