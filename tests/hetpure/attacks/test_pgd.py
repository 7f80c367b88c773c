"""PGD and BPDA against answers in closed form; their random starts and draws."""

from dataclasses import replace
from functools import partial
from itertools import combinations, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from torch import Tensor

from hetpure.attacks import BPDA, PGD, Addresses
from hetpure.attacks.pgd import accumulated, neighbour
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.noise import BatchNoise, Purpose, Stream, attack_draw
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from tests.hetpure.attacks.defenses import (
    ADDRESSES,
    LABELS,
    NOISE,
    SAMPLES,
    Counter,
    Spy,
    linear,
    size,
    target_of,
    unit,
    uphill,
)

norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def pgd(**settings: Any) -> PGD:
    return PGD(
        **{"epsilon": 0.1, "steps": 2, "step_size": 0.04, "eot_samples": 2, "mask": "recomputed"}
        | settings
    )


@pytest.mark.parametrize("scale", [1.0, 1e-14, 1e-200], ids="slope {:g}".format)
@pytest.mark.parametrize("random_start", [False, True], ids=["from the image", "random start"])
@norms
def test_linear_classifier_in_closed_form(
    norm: str, random_start: bool, scale: float, linear_classifier: Classifier, images: Tensor
) -> None:
    """Linf ends in the corner of the ball, L2 at its rim in the direction of the gradient; a
    small slope must not slow it down, or a flat defence would look robust."""
    linear_classifier.network[1].weight.mul_(scale)
    away = uphill(linear_classifier) / scale
    attack = pgd(norm=norm, steps=60, step_size=0.1, random_start=random_start)
    last, _ = attack(target_of(Defense(linear_classifier), images))
    edge = away.sign() if norm == "linf" else unit(away)
    torch.testing.assert_close(last, images + 0.1 * edge, rtol=0, atol=1e-12)


@norms
def test_a_step_has_its_size_and_goes_along_the_gradient(
    norm: str, smooth_classifier: Classifier, images: Tensor
) -> None:
    """L2 PGD of the published code stepped along the sign."""
    point = images.clone().requires_grad_()
    loss = F.cross_entropy(smooth_classifier(point), LABELS, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, point)
    attack = pgd(norm=norm, steps=1, epsilon=0.2, step_size=0.05, random_start=False)
    last, _ = attack(target_of(Defense(smooth_classifier), images))
    moved = gradient.sign() if norm == "linf" else unit(gradient)
    torch.testing.assert_close(last - images, 0.05 * moved, rtol=0, atol=1e-12)


@norms
def test_random_start_is_uniform_in_the_ball(norm: str, linear_classifier: Classifier) -> None:
    """Kolmogorov-Smirnov: of every pixel for Linf, of the radius to the 64th power for L2."""
    defense = Spy(linear_classifier)
    images = torch.full((512, 1, 8, 8), 0.5, dtype=torch.float64)
    samples, labels = torch.arange(512), torch.zeros(512, dtype=torch.int64)
    pgd(norm=norm, steps=1, restarts=2)(
        target_of(defense, images, labels, Addresses(samples, NOISE))
    )
    starts = [(call.images - images) / 0.1 for call in defense.calls]
    for start in starts:
        uniform = (start.flatten() + 1) / 2 if norm == "linf" else size(start, norm) ** 64
        assert kstest(uniform.numpy(), "uniform").pvalue > 1e-3
        assert abs(start.mean()) < 5 * start.std() / start.numel() ** 0.5
    assert not torch.isclose(*starts).all((1, 2, 3)).any()  # restarts differ, sample by sample


def test_every_query_has_its_own_draws(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """Never the same numbers in two iterations, EOT samples or restarts, nor the report's."""
    defense = Spy(classifier, UniformPurifier(steps=3), denoiser)
    pgd(steps=3, eot_samples=2, restarts=2)(target_of(defense, images))
    draws = []
    for noise in (call.noise for call in defense.calls):
        assert noise.samples.tolist() == SAMPLES.tolist() * 2
        assert set(noise.forward[:, 0].tolist()) == {Stream.ATTACK}
        assert torch.equal(noise.forward[:, 0], noise.reverse[:, 0])
        assert torch.equal(noise.forward[:, 1], noise.reverse[:, 1])
        draws += noise.forward[::4, 1].tolist()  # noise-major: four images a draw
    queries = product(range(2), range(3), range(2))
    assert draws == [attack_draw(0, *query).index for query in queries]
    assert len(set(draws)) == 12


@pytest.mark.parametrize("kind", [PGD, BPDA])
def test_eot_gradient_is_the_mean_of_single_draws(
    kind: type[PGD], denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """In one batch: seen in the direction of an L2 step. That of BPDA is the classifier's at the
    purified images, without a backward pass through the purifier."""
    purifier = HeterogeneousPurifier(steps=3)
    defense = Defense(smooth_classifier, purifier, denoiser, policy="tape")
    mask, singles = defense.mask(images), []
    for k in range(3):
        noise = NOISE.redraw(attack_draw(0, 0, 0, k)).on(SAMPLES)
        point = images.clone() if kind is PGD else defense.purify(images, noise, mask)
        logits = partial(defense, noise=noise, mask=mask) if kind is PGD else smooth_classifier
        loss = F.cross_entropy(logits(point.requires_grad_()), LABELS, reduction="sum")
        singles.append(torch.autograd.grad(loss, point)[0])
    mean = torch.stack(singles).mean(0)
    settings: Any = {"epsilon": 9.0, "steps": 1, "eot_samples": 3, "random_start": False}
    attack = kind(**settings, norm="l2", step_size=0.05, mask="recomputed")
    with count_network_calls(defense) as calls:
        last, _ = attack(target_of(defense, images))
    torch.testing.assert_close((last - images) / 0.05, unit(mean), rtol=0, atol=1e-10)
    assert sum(calls) == 4 * 3 * defense.network_calls
    cosine = F.cosine_similarity(singles[0].flatten(1), mean.flatten(1))
    assert (cosine < 0.999).all()  # the draws differ enough to tell a mean from one of them


class Quadratic(Defense):
    """Two classes: the second one's logit is -a |x - c|^2, the first one's is 0. Labels of 0 make
    that the margin, whose gradient -2 a (x - c) differs from place to place."""

    def __init__(self, a: Tensor, c: Tensor) -> None:
        super().__init__(linear(torch.zeros(2, 64, dtype=torch.float64)))
        self.a, self.c = a, c

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Tensor:
        height = -(self.a * (images - self.c).square()).sum((1, 2, 3))
        return torch.stack([0 * height, height], 1)


@pytest.fixture
def quadratic() -> Quadratic:
    generator = torch.Generator().manual_seed(5)
    a, c = torch.rand(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    return Quadratic(1 + 4 * a, c)


@pytest.mark.parametrize("neighbours", [0, 1, 3])
@pytest.mark.parametrize("momentum", [0.0, 0.7, 1.0])
@norms
def test_momentum_and_variance_by_their_algorithms(
    norm: str, momentum: float, neighbours: int, quadratic: Quadratic, images: Tensor
) -> None:
    """Wang & He's Algorithm 1, and Dong et al.'s where there are no neighbours, written out."""
    labels = torch.zeros(4, dtype=torch.int64)
    attack = pgd(
        norm=norm, epsilon=0.5, steps=4, step_size=0.03, random_start=False, loss="margin",
        momentum=momentum, neighbours=neighbours, neighbourhood=0.2,
    )  # fmt: skip
    counter = Counter()
    last, _ = attack(target_of(quadratic, images, labels, ADDRESSES, counter))

    def slope(x: Tensor) -> Tensor:
        return -2 * quadratic.a * (x - quadratic.c)

    x, g, v = images, torch.zeros_like(images), torch.zeros_like(images)
    for t in range(4):
        total = slope(x) + v
        g = momentum * g + total / total.abs().sum((1, 2, 3), keepdim=True)
        if neighbours:
            noise, around = ADDRESSES.own_noise(0, t), []
            for k in range(neighbours):
                if norm == "linf":
                    r = 2 * noise.uniform(Purpose.PERTURBATION, x, step=k) - 1
                else:
                    r = unit(noise.normal(Purpose.PERTURBATION, x, step=k))
                around.append(slope((x + 0.1 * r).clamp(0, 1)))
            v = torch.stack(around).mean(0) - slope(x)
        x = x + 0.03 * (g.sign() if norm == "linf" else unit(g))
    torch.testing.assert_close(last, x, rtol=0, atol=1e-12)
    assert sum(counter.gradients) == 4 * (4 + 3 * neighbours)
    assert len(counter.iterations) == 4, "neighbours are no iterates"
    if norm == "l2" and (momentum or neighbours):
        usual, _ = replace(attack, momentum=0.0, neighbours=0)(target_of(quadratic, images, labels))
        assert (last - usual).abs().max() > 1e-5


def test_neighbours_are_drawn_anew_for_every_iterate_run_and_number(images: Tensor) -> None:
    """Uniform in the ball; on the draws of the iterate itself."""
    addresses = Addresses(torch.arange(512), NOISE)
    many = torch.full((512, 1, 8, 8), 0.5, dtype=torch.float64)
    offsets = [
        neighbour(addresses.own_noise(run, iteration), many, 0.2, "linf", number) - many
        for run, iteration, number in product(range(2), range(2), range(2))
    ]
    for offset in offsets:
        uniform = (offset.flatten() / 0.2 + 1) / 2
        assert kstest(uniform.numpy(), "uniform").pvalue > 1e-3
    for first, second in combinations(offsets, 2):
        correlation = F.cosine_similarity(first.flatten(), second.flatten(), dim=0)
        assert abs(correlation) < 5 / first.numel() ** 0.5
    sphere = neighbour(addresses.own_noise(0), many, 0.2, "l2", 0) - many
    torch.testing.assert_close(size(sphere, "l2"), torch.full((512,), 0.2).double())


def test_neighbours_are_asked_on_the_iterates_draws(
    denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """So the variance is that of the images alone."""
    defense = Spy(smooth_classifier, UniformPurifier(steps=2), denoiser)
    pgd(steps=2, eot_samples=2, neighbours=2)(target_of(defense, images))
    draws = [call.noise.forward[:, 1].tolist() for call in defense.calls]
    assert draws[0] == draws[1] == draws[2] != draws[3]
    assert len(defense.calls) == 4
    assert not torch.equal(defense.calls[1].images, defense.calls[2].images)


def test_accumulated_gradients_of_any_scale_by_hand() -> None:
    g = torch.tensor([[3.0, -1.0], [0.0, 0.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    total = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    expected = torch.tensor([[1.25, 0.25], [0.5, -0.5]], dtype=torch.float64)
    for scale in (1.0, 1e-200, 1e200):
        torch.testing.assert_close(
            accumulated(total, scale * g, 0.5), expected.reshape(2, 1, 1, 2), rtol=0, atol=1e-15
        )
