"""RBGM, the perturbation's strength, CGPO and the training loss, against the paper's numbers."""

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from scipy import stats
from torch import Tensor, nn

from hetpure.addt import (
    Guide,
    denoising_loss,
    mix_noise,
    optimise_perturbation,
    perturbation_ratio,
    rank_gaussian,
)
from hetpure.denoiser import Denoiser, PredictionType
from hetpure.noise import Noise, Purpose, RowNoise, Stream
from hetpure.samplers import add_noise
from hetpure.schedule import linear_schedule

SCHEDULE = linear_schedule()
LEVELS = torch.tensor(SCHEDULE.alphas_cumprod, dtype=torch.float64)
CLASSES = 4


def rows(count: int, seed: int = 0, index: int = 0) -> RowNoise:
    return Noise.of(seed, Stream.TRAIN, index).on(torch.arange(count))


def rank_inputs(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """(values, draw, tie breaker) of one shape, all addressed."""
    noise, like = rows(shape[0]), torch.empty(shape)
    return (
        noise.normal(Purpose.PERTURBATION, like),
        noise.normal(Purpose.RANK, like),
        noise.uniform(Purpose.TIES, like),
    )


# --- RBGM ---


def test_rank_gaussian_gives_the_worked_example() -> None:
    """SPEC section 3, one row of seven values."""
    values = torch.tensor([0.5, -2.2, -1.4, 7.2, 5.1, -0.6, 1.1]).reshape(1, 1, 1, 7)
    draw = torch.tensor([1.2, 0.0, -1.6, 0.8, -0.6, 0.4, -0.2]).reshape(1, 1, 1, 7)
    expected = torch.tensor([0.0, -1.6, -0.6, 1.2, 0.8, -0.2, 0.4]).reshape(1, 1, 1, 7)
    assert torch.equal(rank_gaussian(values, draw, torch.zeros(1, 1, 1, 7)), expected)


@pytest.mark.parametrize("per", ["channel", "image"])
def test_rank_gaussian_is_the_exact_multiset_in_the_order_of_the_input(
    per: Literal["channel", "image"],
) -> None:
    values, draw, ties = rank_inputs(3, 2, 4, 5)
    start = 2 if per == "channel" else 1
    result = rank_gaussian(values, draw, ties, per)
    assert result.shape == values.shape
    flat = result.flatten(start)
    assert torch.equal(flat.sort(-1).values, draw.flatten(start).sort(-1).values)
    assert torch.equal(flat.argsort(-1), values.flatten(start).argsort(-1))


def test_rank_gaussian_ranks_channels_apart_by_default_and_images_whole_on_request() -> None:
    """A second channel far above the first: per channel it gets its own draw, per image the
    larger half of all numbers."""
    values, draw, ties = rank_inputs(2, 2, 4, 4)
    values[:, 1] += 100
    default, image = rank_gaussian(values, draw, ties), rank_gaussian(values, draw, ties, "image")
    assert torch.equal(default, rank_gaussian(values, draw, ties, "channel"))
    assert torch.equal(default[:, 1].flatten(1).sort().values, draw[:, 1].flatten(1).sort().values)
    assert (image[:, 1].amin((1, 2)) > image[:, 0].amax((1, 2))).all()
    alone = rank_gaussian(values[1:], draw[1:], ties[1:], "image")
    assert torch.equal(alone, image[1:])  # never ranked across samples


@pytest.mark.parametrize(
    "transform",
    [torch.exp, torch.atan, lambda v: v**3, lambda v: 1e-20 * v, lambda v: 1e6 * v + 5e6],
    ids=["exp", "atan", "cube", "tiny", "affine"],
)
def test_rank_gaussian_ignores_increasing_transforms(
    transform: Callable[[Tensor], Tensor],
) -> None:
    """Only the order counts: the size of a gradient, 1e-20 included, must not matter."""
    values, draw, ties = rank_inputs(2, 3, 6, 6)
    values = values.double()
    assert torch.equal(
        rank_gaussian(transform(values), draw, ties), rank_gaussian(values, draw, ties)
    )
    assert not torch.equal(rank_gaussian(-values, draw, ties), rank_gaussian(values, draw, ties))


def test_an_all_equal_input_gives_a_random_order_and_no_ramp() -> None:
    """A dead ReLU or G = 0 has only ties. Were they broken by position, every channel would hold
    the same ramp: an image feature no Gaussian has."""
    _, draw, ties = rank_inputs(4, 3, 8, 8)
    result = rank_gaussian(torch.zeros(4, 3, 8, 8), draw, ties).flatten(2)
    position = torch.arange(64.0)
    for channel in result.flatten(0, 1):
        assert abs(torch.corrcoef(torch.stack((channel, position)))[0, 1]) < 5 / 8
    assert len({tuple(order) for order in result.argsort(-1).flatten(0, 1).tolist()}) == 12


@pytest.mark.parametrize(
    ("values", "orders"),
    [
        ([0.0, 0.0, 0.0], list(itertools.permutations(range(3)))),
        ([2.0, 1.0, 2.0, 1.0], [(2, 0, 3, 1), (2, 1, 3, 0), (3, 0, 2, 1), (3, 1, 2, 0)]),
    ],
    ids=["all-equal", "two-pairs"],
)
def test_equal_values_are_ordered_uniformly(
    values: list[float], orders: list[tuple[int, ...]]
) -> None:
    """Every order that agrees with the values, and no other, equally often (chi-square)."""
    count, size = 6000, len(values)
    like = torch.empty(count, 1, 1, size)
    tied = torch.tensor(values).expand_as(like)
    draw = torch.arange(float(size)).expand_as(like)
    ranks = rank_gaussian(tied, draw, rows(count).uniform(Purpose.TIES, like)).reshape(count, size)
    found = [tuple(int(rank) for rank in row) for row in ranks.tolist()]
    assert set(found) == set(orders)
    assert stats.chisquare([found.count(order) for order in orders]).pvalue > 1e-3


def test_rank_gaussian_of_anything_is_standard_normal() -> None:
    """The whole point: a gradient with heavy tails becomes exact Gaussian noise."""
    values, draw, ties = rank_inputs(40, 1, 30, 30)
    result = rank_gaussian(values**5, draw, ties)
    assert stats.kstest(result.flatten().numpy(), "norm").pvalue > 1e-3


def test_rank_gaussian_is_not_differentiated() -> None:
    values, draw, ties = rank_inputs(1, 1, 3, 3)
    result = rank_gaussian(values.requires_grad_(), draw.requires_grad_(), ties)
    assert not result.requires_grad


# --- strength and mixing ---


def test_perturbation_ratio_has_the_numbers_of_the_spec() -> None:
    """SPEC section 3: the cap of .3 for t <= 26, .0877 at 100, .0087 at 500."""
    ratio = perturbation_ratio(LEVELS)
    assert (ratio == 0.3).nonzero().flatten().tolist() == list(range(27))
    assert float(ratio[100]) == pytest.approx(0.0877, abs=5e-5)
    assert float(ratio[500]) == pytest.approx(0.0087, abs=5e-5)
    assert (ratio.diff() <= 0).all()
    assert (ratio > 0).all()


def test_perturbation_has_constant_strength_in_pixels_off_the_cap() -> None:
    """lambda_t sqrt(1-abar) eps_delta is what is added to sqrt(abar) x0: in units of x0 its
    standard deviation is `scale` at every t off the cap, and less on it."""
    for scale, cap in ((0.03, 0.3), (0.01, 0.5)):
        ratio = perturbation_ratio(LEVELS, scale, cap)
        pixels = ratio * (1 - LEVELS).sqrt() / LEVELS.sqrt()
        free = ratio < cap
        assert 0 < int(free.sum()) < 1000
        torch.testing.assert_close(pixels[free], torch.full_like(pixels[free], scale))
        assert (pixels[~free] <= scale).all()
        assert (ratio[~free] == cap).all()


def test_mixing_is_variance_preserving_and_has_the_share_of_the_perturbation() -> None:
    """Exact on unit vectors: the squares of the two weights are 1 - lambda^2 and lambda^2; and
    one ratio a sample."""
    ratio = torch.tensor([0.0, 0.3, 0.6, 1.0]).double().reshape(-1, 1, 1, 1)
    one, zero = torch.ones(4, 1, 1, 1).double(), torch.zeros(4, 1, 1, 1).double()
    share = mix_noise(zero, one, ratio)
    rest = mix_noise(one, zero, ratio)
    assert torch.equal(share, ratio)
    torch.testing.assert_close(share**2 + rest**2, one)
    assert float(mix_noise(one, one, ratio)[2]) == pytest.approx(0.8 + 0.6)


def test_mixing_two_gaussians_gives_a_gaussian() -> None:
    noise, like = rows(1), torch.empty(1, 1, 150, 150)
    mixed = mix_noise(
        noise.normal(Purpose.TRAINING, like),
        noise.normal(Purpose.PERTURBATION, like),
        torch.tensor([0.3]),
    )
    assert stats.kstest(mixed.flatten().numpy(), "norm").pvalue > 1e-3


# --- CGPO ---


def tiny_unet(seed: int = 0) -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            add_attention=False,
        ).eval()


def linear_guide(seed: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))


def batch(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x0, labels, timesteps, ratio) in float64."""
    noise = Noise.of(8, Stream.PROBE).on(torch.arange(count))
    x0 = 2 * noise.uniform(Purpose.FORWARD, torch.empty(count, 3, 8, 8).double()) - 1
    timesteps = noise.integers(Purpose.TIMESTEP, 1000)
    ratio = perturbation_ratio(SCHEDULE.alphas_at(timesteps, x0))
    return x0, noise.integers(Purpose.START, CLASSES), timesteps, ratio


def test_the_last_perturbation_is_rbgm_of_the_summed_gradients() -> None:
    """CGPO of SPEC section 3 line by line, with a network whose gradient is written by hand: an
    eps-network of zeros has x0_hat = x_t / sqrt(abar), and a linear guide W has
    dL/d delta = lambda sqrt(1-abar)/sqrt(abar) W^T (softmax - onehot) / 2 (pixels)."""
    x0, labels, timesteps, ratio = batch(3)
    guide = linear_guide().double()
    weight, bias = (parameter.detach() for parameter in guide.parameters())
    noise = rows(3)

    class Zero(nn.Module):
        def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
            return 0 * x

    alpha = SCHEDULE.alphas_at(timesteps, x0)
    delta = noise.normal(Purpose.PERTURBATION, x0)
    total = torch.zeros_like(x0)
    for k in (1, 2, 3):
        mixed = (1 - ratio**2).sqrt() * noise.normal(Purpose.TRAINING, x0, repeat=k) + ratio * delta
        pixels = (x0 + ((1 - alpha) / alpha).sqrt() * mixed + 1) / 2
        probabilities = (pixels.flatten(1) @ weight.T + bias).softmax(-1)
        error = probabilities - F.one_hot(labels, CLASSES)
        total += ratio * ((1 - alpha) / alpha).sqrt() * (error @ weight).reshape(x0.shape) / 2
        delta = rank_gaussian(
            total,
            noise.normal(Purpose.RANK, x0, repeat=k),
            noise.uniform(Purpose.TIES, x0, repeat=k),
        )
    denoiser = Denoiser(Zero(), SCHEDULE)
    found = optimise_perturbation(denoiser, guide, x0, labels, timesteps, ratio, noise, steps=3)
    assert torch.equal(found, delta)


def run_cgpo(denoiser: Denoiser, guide: Guide, **options: Any) -> Tensor:
    return optimise_perturbation(denoiser, guide, *batch(4), rows(4), **options)


def test_no_gradient_reaches_the_weights() -> None:
    """SPEC section 6, defect 7: gradients of the inner loop that leak into the weight update."""
    denoiser, guide = Denoiser(tiny_unet().double(), SCHEDULE), linear_guide().double()
    parameters = [*denoiser.parameters(), *guide.parameters()]
    perturbation = run_cgpo(denoiser, guide)
    assert all(parameter.requires_grad for parameter in parameters)
    assert all(parameter.grad is None for parameter in parameters)
    assert not perturbation.requires_grad


def test_frozen_networks_can_guide() -> None:
    """The guide's weights are frozen in training; the result must not depend on that."""
    denoiser, guide = Denoiser(tiny_unet().double(), SCHEDULE), linear_guide().double()
    free = run_cgpo(denoiser, guide)
    denoiser.requires_grad_(False)
    guide.requires_grad_(False)
    assert torch.equal(run_cgpo(denoiser, guide), free)


def test_a_perturbation_does_not_depend_on_the_batch_around_it() -> None:
    x0, labels, timesteps, ratio = batch(4)
    denoiser, guide = Denoiser(tiny_unet().double(), SCHEDULE), linear_guide().double()
    together = run_cgpo(denoiser, guide)
    for i in range(4):
        noise = Noise.of(0, Stream.TRAIN).on(torch.tensor([i]))
        row = slice(i, i + 1)
        alone = optimise_perturbation(
            denoiser, guide, x0[row], labels[row], timesteps[row], ratio[row], noise
        )
        assert torch.equal(alone, together[row])


def test_each_step_and_the_ranking_group_change_the_perturbation() -> None:
    """Otherwise K or `per` would be options without effect. Five steps are the default; without
    any, the perturbation is its own random start."""
    denoiser, guide = Denoiser(tiny_unet().double(), SCHEDULE), linear_guide().double()
    results = [run_cgpo(denoiser, guide, steps=steps) for steps in (0, 1, 4, 5)]
    results.append(run_cgpo(denoiser, guide, per="image"))
    for first, second in itertools.combinations(results, 2):
        assert not torch.equal(first, second)
    assert torch.equal(results[3], run_cgpo(denoiser, guide))
    assert torch.equal(results[0], rows(4).normal(Purpose.PERTURBATION, results[0]))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_perturbation_raises_the_guides_loss(prediction: PredictionType) -> None:
    """On fresh noise, against random perturbations of the same strength: per sample, averaged
    over draws. Were the sign wrong, the mean difference would be negative."""
    count = 12
    x0, labels, timesteps, _ = batch(count)
    timesteps = timesteps % 300  # where the one-step prediction still knows the image
    x0, ratio = x0.float(), perturbation_ratio(SCHEDULE.alphas_at(timesteps, x0.float()))
    denoiser, guide = Denoiser(tiny_unet(), SCHEDULE, prediction), linear_guide()
    found = optimise_perturbation(denoiser, guide, x0, labels, timesteps, ratio, rows(count))
    alpha = SCHEDULE.alphas_at(timesteps, x0)

    def loss(perturbation: Tensor, draw: RowNoise) -> Tensor:
        mixed = mix_noise(draw.normal(Purpose.TRAINING, x0), perturbation, ratio)
        x0_hat, _ = denoiser.predict(add_noise(x0, alpha, mixed), timesteps)
        return F.cross_entropy(guide((x0_hat + 1) / 2), labels, reduction="none")

    with torch.no_grad():
        gains = [
            loss(found, draw) - loss(draw.normal(Purpose.PERTURBATION, x0), draw)
            for draw in (rows(count, seed=1, index=k) for k in range(20))
        ]
    gain = torch.stack(gains).mean(0)
    assert (gain > 0).float().mean() > 0.8
    assert float(gain.mean()) > 3 * float(gain.std()) / math.sqrt(count)


# --- the training loss ---


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_denoising_loss_is_that_computed_by_hand(prediction: PredictionType) -> None:
    """Unweighted, one number a sample, at every t alike; the network says what x_t is."""

    class Half(nn.Module):
        def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
            return x / 2

    x0 = torch.tensor([[1.0, -1.0], [0.5, 0.0]]).reshape(2, 1, 1, 2)
    noise = torch.tensor([[2.0, 0.0], [-1.0, 1.0]]).reshape(2, 1, 1, 2)
    timesteps = torch.tensor([700, 0])
    expected = []
    for row, t in enumerate(timesteps.tolist()):
        signal = math.sqrt(SCHEDULE.alphas_cumprod[t])
        spread = math.sqrt(1 - SCHEDULE.alphas_cumprod[t])
        squares = []
        for x, n in zip(x0[row].flatten().tolist(), noise[row].flatten().tolist(), strict=True):
            goal = {"epsilon": n, "sample": x, "v_prediction": signal * n - spread * x}
            squares.append(((signal * x + spread * n) / 2 - goal[prediction]) ** 2)
        expected.append(sum(squares) / 2)
    losses = denoising_loss(Denoiser(Half(), SCHEDULE, prediction), x0, timesteps, noise)
    assert losses.tolist() == pytest.approx(expected)


def test_without_perturbation_the_loss_is_plain_ddpm_loss() -> None:
    """lambda = 0 is clean fine-tuning, whatever the perturbation: the ablation's control."""
    x0, labels, timesteps, _ = batch(4)
    denoiser, guide = Denoiser(tiny_unet().double(), SCHEDULE), linear_guide().double()
    alpha = SCHEDULE.alphas_at(timesteps, x0)
    ratio = perturbation_ratio(alpha, scale=0.0)
    noise = rows(4)
    perturbation = optimise_perturbation(denoiser, guide, x0, labels, timesteps, ratio, noise)
    fresh = noise.normal(Purpose.TRAINING, x0)
    mixed = mix_noise(fresh, perturbation, ratio)
    assert perturbation.isfinite().all()
    assert torch.equal(mixed, fresh)

    x_t = alpha.sqrt() * x0 + (1 - alpha).sqrt() * fresh
    plain = F.mse_loss(denoiser.network(x_t, timesteps).sample, fresh)
    losses = denoising_loss(denoiser, x0, timesteps, mixed)
    assert losses.shape == (4,)
    assert losses.mean().item() == pytest.approx(plain.item(), rel=1e-6)


def test_the_training_loss_reaches_every_weight() -> None:
    """The network learns the mixed noise; the perturbation itself is a constant to it."""
    x0, labels, timesteps, ratio = batch(2)
    denoiser, guide = Denoiser(tiny_unet().double(), SCHEDULE), linear_guide().double()
    noise = rows(2)
    perturbation = optimise_perturbation(denoiser, guide, x0, labels, timesteps, ratio, noise)
    mixed = mix_noise(noise.normal(Purpose.TRAINING, x0), perturbation, ratio)
    denoising_loss(denoiser, x0, timesteps, mixed).mean().backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in guide.parameters())
