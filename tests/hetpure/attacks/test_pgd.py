"""PGD and BPDA against answers in closed form; their random starts and draws."""

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from torch import Tensor

from hetpure.attacks import BPDA, PGD, Addresses
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.noise import Stream, attack_draw
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from tests.hetpure.attacks.defenses import (
    LABELS,
    NOISE,
    SAMPLES,
    Spy,
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
