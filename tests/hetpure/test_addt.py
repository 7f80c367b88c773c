"""CGPO and the training loss, line by line, and what must not leak out of the search."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from hetpure.addt import (
    Batch,
    Perturbation,
    RankGaussian,
    denoising_loss,
    rank_gaussian,
)
from hetpure.addt_variants import Ball, RandomOrder
from hetpure.denoiser import Denoiser, PredictionType
from hetpure.levels import ContinuousLevels, LogNormalLevels
from hetpure.noise import BatchNoise, Noise, Purpose, Stream
from hetpure.numbers import Number
from hetpure.schedule import linear_schedule
from tests.hetpure.networks import rows, seeded_unet

SCHEDULE = linear_schedule()
CLASSES = 4


# --- CGPO ---


def linear_guide(seed: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))


def batch(count: int, update: int = 0) -> Batch:
    """Images in float64 at levels of the whole schedule, with the noise of one update."""
    noise = Noise.of(8, Stream.PROBE).on(torch.arange(count))
    x0 = 2 * noise.uniform(Purpose.FORWARD, torch.empty(count, 3, 8, 8).double()) - 1
    level = SCHEDULE.level(noise.integers(Purpose.TIMESTEP, 1000), x0)
    return Batch(x0, noise.integers(Purpose.START, CLASSES), level, rows(count, index=update))


def test_the_last_perturbation_is_rbgm_of_the_summed_gradients() -> None:
    """CGPO of SPEC section 3 line by line, with a network whose gradient is written by hand: an
    eps-network of zeros has x0_hat = x_t / sqrt(abar), and a linear guide W has
    dL/d delta = lambda sqrt(1-abar)/sqrt(abar) W^T (softmax - onehot) / 2 (pixels)."""
    data, perturbation = batch(3), RankGaussian(steps=3)
    guide = linear_guide().double()
    weight, bias = (parameter.detach() for parameter in guide.parameters())
    ratio, noise, x0 = perturbation.ratio(data.level), data.noise, data.x0

    class Zero(nn.Module):
        def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
            return 0 * x

    sigma = data.level.spread / data.level.signal
    delta = noise.normal(Purpose.PERTURBATION, x0)
    total = torch.zeros_like(x0, dtype=torch.float32)
    losses = []
    for k in (1, 2, 3):
        mixed = (1 - ratio**2).sqrt() * noise.normal(Purpose.TRAINING, x0, repeat=k) + ratio * delta
        logits = ((x0 + sigma * mixed + 1) / 2).flatten(1) @ weight.T + bias
        losses.append(F.cross_entropy(logits, data.labels, reduction="none"))
        error = logits.softmax(-1) - F.one_hot(data.labels, CLASSES)
        total += (ratio * sigma * (error @ weight).reshape(x0.shape) / 2).float()
        delta = rank_gaussian(
            total,
            noise.normal(Purpose.RANK, x0, repeat=k),
            noise.uniform(Purpose.TIES, x0, repeat=k),
        )
    denoiser = Denoiser(Zero(), SCHEDULE)
    assert torch.equal(perturbation.find(denoiser, guide, data), delta)
    before = perturbation.score(denoiser, guide, data, perturbation.start(data))
    torch.testing.assert_close(before, losses[0].float())
    same_noise = noise.normal(Purpose.TRAINING, x0, repeat=1)
    mixed = (1 - ratio**2).sqrt() * same_noise + ratio * delta
    logits = ((x0 + sigma * mixed + 1) / 2).flatten(1) @ weight.T + bias
    after = perturbation.score(denoiser, guide, data, delta)
    expected = F.cross_entropy(logits, data.labels, reduction="none").float()
    torch.testing.assert_close(after, expected)
    assert (after > before).all() and not after.requires_grad


@pytest.mark.parametrize("where", ["value", "gradient"])
@pytest.mark.parametrize("kind", [RankGaussian(), Ball()], ids=["ranks", "ball"])
def test_a_guide_without_numbers_is_not_ranked_into_noise(kind: Perturbation, where: str) -> None:
    """Sorted, NaN would give noise that looks like any other: random order, unnoticed."""
    data, linear = batch(4), linear_guide().double()

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Tensor) -> Tensor:
            return logits.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient.index_fill(0, torch.tensor([1]), torch.nan)

    def guide(images: Tensor) -> Tensor:
        logits: Tensor = linear(images)
        if where == "gradient":
            broken: Tensor = Broken.apply(logits)  # type: ignore[no-untyped-call]
            return broken
        return logits.index_fill(0, torch.tensor([1]), torch.nan)

    denoiser = Denoiser(seeded_unet().double(), SCHEDULE)
    delta = kind.find(denoiser, guide, data)
    assert delta.flatten(1).isfinite().all(1).tolist() == [True, False, True, True]
    mixed = kind.mix(torch.zeros_like(delta), delta, data.level)
    losses = denoising_loss(denoiser, data.x0, data.level, mixed)
    assert losses.isnan().tolist() == [False, True, False, False], "the training stops"


def search(perturbation: Perturbation, data: Batch | None = None) -> Tensor:
    denoiser = Denoiser(seeded_unet().double(), SCHEDULE)
    return perturbation.find(denoiser, linear_guide().double(), data or batch(4))


EVERY = [
    RankGaussian(),
    RankGaussian(objective="denoising"),
    RankGaussian(ranks="image", eot_samples=2),
    RandomOrder(),
    Ball(),
    Ball(objective="denoising"),
]


@pytest.mark.parametrize("perturbation", EVERY, ids=str)
def test_a_search_leaves_no_trace_and_each_image_stands_alone(perturbation: Perturbation) -> None:
    """SPEC section 6, defect 7: gradients of the inner loop that leak into the weight update."""
    denoiser, guide = Denoiser(seeded_unet().double(), SCHEDULE), linear_guide().double()
    parameters, data = [*denoiser.parameters(), *guide.parameters()], batch(3)
    together = perturbation.find(denoiser, guide, data)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters)
    assert not together.requires_grad
    for parameter in parameters:  # as the weights of a guide are in training
        parameter.requires_grad_(False)
    for i in range(3):
        alone = perturbation.find(denoiser, guide, data.take(torch.tensor([i])))
        assert torch.equal(alone, together[i : i + 1])


def test_a_guide_that_is_sure_still_orders_the_perturbation() -> None:
    """The gradient is a multiple of sum_j exp(z_j) (w_j - w_y), however large z_y; in float32 the
    1 - p of logits 30 apart is 0, and w_y would drop out of it."""
    data, guide = batch(4), linear_guide()
    margin = 30 * F.one_hot(data.labels, CLASSES).float()

    def sure(pixels: Tensor) -> Tensor:
        logits: Tensor = guide(pixels)
        return logits + margin

    x0 = data.x0.float()
    data = Batch(x0, data.labels, SCHEDULE.level(data.level.time % 300, x0), data.noise)
    denoiser = Denoiser(seeded_unet(), SCHEDULE)
    ours = RankGaussian(steps=1).find(denoiser, sure, data)
    theirs = RankGaussian(steps=1).find(denoiser, guide, data)
    for pair in zip(ours.flatten(1), theirs.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack(pair))[0, 1] > 0.99


def test_every_option_changes_the_perturbation() -> None:
    changes: list[dict[str, Any]] = [{}, {"steps": 1}, {"steps": 4}, {"eot_samples": 2}]
    changes += [{"ranks": "image"}, {"objective": "denoising"}, {"scale": 0.06}, {"cap": 0.01}]
    results = [search(RankGaussian(**change)) for change in changes]
    for first, second in itertools.combinations(results, 2):
        assert not torch.equal(first, second)
    assert torch.equal(results[0], search(RankGaussian(steps=5)))


def test_images_below_a_threshold_are_random_and_cost_no_call() -> None:
    """The others are those that all would have had."""
    data = batch(6)
    ratio = RankGaussian().ratio(data.level).flatten()
    threshold = float(ratio.sort().values[2:4].mean())
    skipped = ratio < threshold
    assert 0 < int(skipped.sum()) < 6

    calls: list[int] = []

    def counted(perturbation: RankGaussian) -> Tensor:
        denoiser = Denoiser(seeded_unet().double(), SCHEDULE)
        denoiser.network.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
        return perturbation.find(denoiser, linear_guide().double(), data)

    whole, some = counted(RankGaussian()), counted(RankGaussian(skip_below=threshold))
    assert calls == [6] * 5 + [int((~skipped).sum())] * 5
    start = data.noise.normal(Purpose.PERTURBATION, data.x0)
    assert torch.equal(some[skipped], start[skipped])
    assert torch.equal(some[~skipped], whole[~skipped])
    nothing = counted(RankGaussian(scale=1e-6, skip_below=0.3))
    assert len(calls) == 10 and torch.equal(nothing, start)


PREDICTIONS: list[PredictionType] = ["epsilon", "sample", "v_prediction", "edm"]


@pytest.mark.parametrize(
    ("kind", "prediction"),
    [*((RankGaussian(), prediction) for prediction in PREDICTIONS), (Ball(), "epsilon")],
    ids=str,
)
def test_the_perturbation_raises_the_guides_loss(
    kind: RankGaussian | Ball, prediction: PredictionType
) -> None:
    """On fresh noise, against random perturbations of the same strength: per sample, averaged
    over draws. Were the sign wrong, the mean difference would be negative."""
    count, data = 12, batch(12)
    x0 = data.x0.float()
    # Where the one-step prediction still knows the image.
    level = SCHEDULE.level(data.level.time % 300, x0)
    data = Batch(x0, data.labels, level, data.noise)
    denoiser, guide = Denoiser(seeded_unet(), SCHEDULE, prediction), linear_guide()
    found = kind.find(denoiser, guide, data)

    def loss(perturbation: Tensor, draw: BatchNoise) -> Tensor:
        mixed = kind.mix(draw.normal(Purpose.TRAINING, x0), perturbation, level)
        x0_hat, _ = denoiser.predict(level.diffuse(x0, mixed), level)
        return F.cross_entropy(guide((x0_hat + 1) / 2), data.labels, reduction="none")

    def random(draw: BatchNoise) -> Tensor:
        drawn = draw.normal(Purpose.PERTURBATION, x0)
        return drawn if isinstance(kind, RankGaussian) else found.abs().max() * drawn.sign()

    with torch.no_grad():
        draws = [rows(count, seed=1, index=k) for k in range(20)]
        gains = [loss(found, draw) - loss(random(draw), draw) for draw in draws]
    gain = torch.stack(gains).mean(0)
    assert (gain > 0).float().mean() > 0.8
    assert float(gain.mean()) > 3 * float(gain.std()) / math.sqrt(count)


def test_without_a_classifier_the_networks_own_loss_is_raised() -> None:
    """Neither guide nor labels are asked. A network that always answers with one picture errs most
    where the noise is that picture's negative."""
    data, kind = batch(12), RankGaussian(objective="denoising", steps=20)
    picture = rows(1, seed=5).normal(Purpose.START, data.x0[:1])

    class Stubborn(nn.Module):
        def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
            return picture + 0 * x

    denoiser = Denoiser(Stubborn(), SCHEDULE)
    found = kind.find(denoiser, None, data)
    other = kind.find(denoiser, None, replace(data, labels=(data.labels + 1) % CLASSES))
    assert torch.equal(found, other)
    for perturbation in found:
        pair = torch.stack((perturbation.flatten(), picture.flatten()))
        assert torch.corrcoef(pair)[0, 1] < -0.8


def test_random_order_is_gaussian_and_knows_nothing_of_image_or_label() -> None:
    data = batch(20)
    found = search(RandomOrder(), data)
    other = search(RandomOrder(), replace(data, x0=-data.x0, labels=(data.labels + 1) % CLASSES))
    assert torch.equal(found, other)
    assert stats.kstest(found.flatten().numpy(), "norm").pvalue > 1e-3


def test_a_ball_moves_the_image_and_the_target() -> None:
    """q(x0, level, eps + gamma delta) is q(x0 + delta, level, eps) where gamma is not capped."""
    ball = Ball(epsilon=Number(0.05), step_size=Number(0.02), steps=4, snr_cap=0.5)
    data = batch(6)
    found = search(ball, data)
    size = found.abs().flatten(1).amax(1)
    assert (size <= 0.1 + 1e-12).all() and (size > 0.05).all()  # model units are twice pixel units
    noise = data.noise.normal(Purpose.TRAINING, data.x0)
    moved = data.level.diffuse(data.x0, ball.mix(noise, found, data.level))
    direct = data.level.diffuse(data.x0 + found, noise)
    free = data.level.snr_root.flatten() <= 0.5
    assert 0 < int(free.sum()) < 6
    torch.testing.assert_close(moved[free], direct[free])
    capped = data.level.spread * 0.5 * found + data.level.diffuse(data.x0, noise)
    torch.testing.assert_close(moved[~free], capped[~free])


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
    level = SCHEDULE.level(timesteps, x0)
    losses = denoising_loss(Denoiser(Half(), SCHEDULE, prediction), x0, level, noise)
    assert losses.tolist() == pytest.approx(expected)


def test_edms_loss_is_the_papers_weighted_one() -> None:
    """(sigma^2 + sd^2) / (sigma sd)^2 |D(x0 + sigma n) - x0|^2 (Karras et al. 2022, eq. 2 and
    table 1), D written here from the paper."""
    network, x0 = seeded_unet().double(), batch(5).x0
    noise = rows(5).normal(Purpose.TRAINING, x0)
    level = LogNormalLevels().draw(SCHEDULE, rows(5), x0)
    sigma, sd = level.time.reshape(-1, 1, 1, 1), 0.5
    y = x0 + sigma * noise
    output = network(y / (sigma**2 + sd**2).sqrt(), sigma.flatten().log() / 4).sample
    skip = sd**2 / (sigma**2 + sd**2)
    image = skip * y + sigma * sd / (sigma**2 + sd**2).sqrt() * output
    weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
    expected = (weight * (image - x0) ** 2).flatten(1).mean(1)
    denoiser = Denoiser(network, SCHEDULE, "edm", sd)
    found = denoising_loss(denoiser, x0, level, noise)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("levels", "prediction"), [(ContinuousLevels(), "epsilon"), (LogNormalLevels(), "edm")]
)
def test_other_processes_have_lambda_of_their_own_level(
    levels: ContinuousLevels | LogNormalLevels, prediction: PredictionType
) -> None:
    """VP-SDE: mean / std in place of gamma; EDM: clip(.03 / sigma, 0, .3)."""
    data = batch(8)
    level = levels.draw(SCHEDULE, data.noise, data.x0)
    if prediction == "edm":
        expected = (0.03 / level.time).clamp(max=0.3)
    else:
        t = level.time / 999
        mean = torch.exp(-0.25 * t**2 * 19.9 - 0.5 * t * 0.1)  # Song et al. 2021, eq. 29
        expected = (0.03 * mean / (1 - mean**2).sqrt()).clamp(max=0.3)
    torch.testing.assert_close(RankGaussian().ratio(level).flatten(), expected)
    denoiser = Denoiser(seeded_unet().double(), SCHEDULE, prediction)
    data = replace(data, level=level)
    assert RankGaussian().find(denoiser, linear_guide().double(), data).isfinite().all()
