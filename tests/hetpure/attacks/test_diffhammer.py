"""DiffHammer: posteriors by hand, draws that cancel for plain EOT, and what grafting computes."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.attacks import PGD, DiffHammer
from hetpure.attacks.diffhammer import posterior
from hetpure.attacks.gradient import Ascent
from hetpure.attacks.losses import criterion
from hetpure.attention import AttentionMask
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.errors import FieldError
from hetpure.gradients import GradientError
from hetpure.noise import BatchNoise, Group, Noise, Purpose, Stream
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from hetpure.samplers import DDPM
from tests.hetpure.attacks.defenses import (
    ADDRESSES,
    SAMPLES,
    Counter,
    linear,
    size,
    target_of,
)

LABELS = torch.tensor([0, 1, 2, 3])
NOBODY = torch.zeros(4, dtype=torch.int64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class Torn(Defense):
    """Two classes, and two groups of draws of equal size that pull the first half of the pixels
    apart: around grey, the margin of the wrong class is

        -1 + 4 s sum_first (x - 1/2) / n + 0.5 sum_second (x - 1/2) / n

    on a draw of sign s. The other half of the pixels helps all draws, and never enough."""

    groups = frozenset[Group]({"reverse"})

    def __init__(self) -> None:
        super().__init__(linear(torch.zeros(2, 64, dtype=torch.float64)))

    def sign(self, noise: BatchNoise, images: Tensor) -> Tensor:
        return noise.normal(Purpose.REVERSE, images[:, :1, :1, :1])[:, 0, 0, 0].sign()

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Tensor:
        first, second = (half.mean(1) for half in (images - 0.5).flatten(1).chunk(2, 1))
        margin = -1 + 4 * self.sign(noise, images) * first + 0.5 * second
        return torch.stack([0 * margin, margin], 1)


@pytest.mark.parametrize("grafted", [False, True])
def test_draws_that_cancel_for_plain_eot_are_broken_by_halves(grafted: bool) -> None:
    """Antithetic draws are as many of each group, so that their mean gradient in the first half of
    the pixels is exactly zero: PGD ends where every draw is right. DiffHammer takes a side, and
    every draw of that group is wrong: the margin is -1 + 2 + 0.25."""
    defense, images = Torn(), torch.full((4, 1, 8, 8), 0.5, dtype=torch.float64)
    settings: Any = {
        "epsilon": 0.5, "steps": 10, "step_size": 0.1, "eot_samples": 4, "antithetic": True,
        "random_start": False, "loss": "margin",
    }  # fmt: skip
    fresh = [Noise.of(7, Stream.REPORT, k).on(SAMPLES) for k in range(100)]
    signs = torch.stack([defense.sign(noise, images) for noise in fresh])

    def wrong(candidate: Tensor) -> Tensor:
        """(100, 4)"""
        return torch.stack([defense(candidate, noise).argmax(1) == 1 for noise in fresh])

    for candidate in PGD(**settings)(target_of(defense, images, NOBODY)):
        first, second = (candidate - images).flatten(1).chunk(2, 1)
        assert not first.any() and not wrong(candidate).any()
    assert torch.allclose(second, torch.tensor(0.5).double()), "it does what it can"
    hammer = DiffHammer(**settings, grafted=grafted)
    for candidate in hammer(target_of(defense, images, NOBODY)):
        broken = wrong(candidate)
        side = (candidate - images).flatten(1)[:, 0].sign()
        assert torch.equal(broken, signs == side)
        assert (broken.double().mean(0) > 0.3).all()


def test_where_all_draws_pull_one_way_plain_eot_is_found_again() -> None:
    """A gradient of zero is the one thing that plain EOT cannot step along."""

    class Even(Torn):
        def sign(self, noise: BatchNoise, images: Tensor) -> Tensor:
            return 0 * super().sign(noise, images) + 1

    images = torch.full((4, 1, 8, 8), 0.5, dtype=torch.float64)
    settings: Any = {"epsilon": 0.1, "steps": 3, "random_start": False, "loss": "margin"}
    ours, theirs = (
        kind(**settings)(target_of(Even(), images, NOBODY)) for kind in (DiffHammer, PGD)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_posterior_of_three_draws_by_hand() -> None:
    """One pixel, so that u(r) is a sign. Draw 0 leads: elu(0) + elu(-1.5) + elu(2.5) is larger than
    what draw 1 promises. Then all r have the sign of draw 0."""
    losses = torch.tensor([[-1.0], [-1.0], [1.0]])
    gradients = torch.tensor([2.0, -1.0, 3.0]).reshape(3, 1, 1, 1, 1)
    weights = posterior(losses, gradients, 0.5, "linf", 2.0, 10)
    each = [sigmoid(2 * 0.0), sigmoid(2 * -1.5), sigmoid(2 * 2.5)]
    expected = torch.tensor(each, dtype=torch.float64)[:, None] / sum(each)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_posterior_by_its_definition(norm: Any, rounds: int) -> None:
    """Draw by draw and image by image, in plain loops; every round goes on from the one before."""
    generator = torch.Generator().manual_seed(1)
    losses = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    gradients = torch.randn(5, 3, 2, 3, 3, generator=generator, dtype=torch.float64)
    weights = posterior(losses, gradients, 0.8, norm, 3.0, rounds)

    def steepest(r: Tensor) -> Tensor:
        return r.sign() if norm == "linf" else r / r.norm()

    for image in range(3):
        l, g = losses[:, image].tolist(), list(gradients[:, image])  # noqa: E741
        promised = []
        for i in range(5):
            reached = [l[j] + 0.8 * float((steepest(g[i]) * g[j]).sum()) for j in range(5)]
            promised.append(sum(x if x > 0 else math.exp(x) - 1 for x in reached))
        r = g[promised.index(max(promised))]
        for _ in range(rounds):
            gained = [0.8 * float((steepest(r) * g[j]).sum()) for j in range(5)]
            w = [sigmoid(3 * (l[j] + gained[j])) for j in range(5)]
            r = sum(w[j] / sum(w) * g[j] for j in range(5))
        expected = torch.tensor(w, dtype=torch.float64) / sum(w)
        torch.testing.assert_close(weights[:, image], expected, rtol=1e-9, atol=1e-300)
    once = posterior(losses, gradients, 0.8, norm, 3.0, 1)
    assert torch.equal(weights, once) == (rounds == 1), "a round changes the next"


def test_posteriors_of_hopeless_draws_are_finite() -> None:
    """Far below the border sigmoids are 0 in any precision; their ratios are not."""
    losses = torch.tensor([[-5000.0], [-5001.0]])
    gradients = torch.ones(2, 1, 1, 1, 1)
    weights = posterior(losses, gradients, 0.1, "linf", 1.0, 3)
    expected = torch.tensor([[math.e / (1 + math.e)], [1 / (1 + math.e)]]).double()
    torch.testing.assert_close(weights, expected)


@pytest.fixture
def masked(denoiser: Denoiser, classifier: Classifier) -> Defense:
    purifier = HeterogeneousPurifier(steps=4, sampler=DDPM(clip_x0=False))
    return Defense(classifier, purifier, denoiser, AttentionMask(threshold=0.5), "tape")


def ascent_of(defense: Defense, images: Tensor) -> Ascent:
    target = target_of(defense, images, LABELS)
    return Ascent(target, 0, criterion("margin", LABELS), defense.mask(images, SAMPLES))


@pytest.mark.parametrize("mask", ["frozen", "recomputed", "soft"])
def test_a_gradient_is_the_weighted_mean_of_the_draws(
    mask: Any, masked: Defense, images: Tensor
) -> None:
    """Each draw's as PGD takes it from that draw alone, in a soft mask too."""
    settings: Any = {"epsilon": 0.3, "eot_samples": 4, "loss": "margin", "mask": mask}
    run, noises = ascent_of(masked, images), ADDRESSES.draws(0, 0, 4)
    moved = (images + 0.02).clamp(0, 1)
    single = [PGD(**settings).gradient_at(run, moved, [noise]) for noise in noises]
    losses = torch.stack([answer.loss for answer in single])
    gradients = torch.stack([answer.gradient for answer in single])
    weights = posterior(losses, gradients, 0.3, "linf", 400.0, 5)
    assert (weights.amax(0) > 1.2 / 4).any(), "no plain mean"
    answer = DiffHammer(**settings, sharpness=400.0, rounds=5).gradient_at(run, moved, noises)
    expected = (weights[..., None, None, None] * gradients).sum(0)
    torch.testing.assert_close(answer.gradient, expected, rtol=1e-9, atol=1e-13)
    objective = F.softplus(400 * losses).mean(0) / 400
    torch.testing.assert_close(answer.loss, objective, rtol=1e-12, atol=0)
    logits = torch.cat([answer.logits for answer in single])
    torch.testing.assert_close(answer.logits, logits, rtol=1e-12, atol=1e-14)
    halves = [(weights[half][..., None, None, None] * gradients[half]).sum(0).flatten(1)
              for half in (slice(0, 2), slice(2, 4))]  # fmt: skip
    torch.testing.assert_close(answer.agreement, F.cosine_similarity(*halves))


def test_grafting_takes_the_weighted_gradient_back_through_one_draw(
    masked: Defense, images: Tensor
) -> None:
    """g is the weighted mean of the classifier's gradients at the purified images; each image's own
    draw of the largest posterior takes it back: J^T g. The others are queries."""
    attack = DiffHammer(epsilon=0.3, eot_samples=4, mask="recomputed", grafted=True)
    run, noises = ascent_of(masked, images), ADDRESSES.draws(0, 0, 4)
    mask = masked.mask(images, SAMPLES)
    losses, gradients, purified = [], [], []
    for noise in noises:
        point = images.clone().requires_grad_()
        result = masked.purify(point, noise.on(SAMPLES), mask)
        loose = result.detach().requires_grad_()
        margin = criterion("margin", LABELS)(masked.classifier(loose), torch.arange(4))
        gradients.append(torch.autograd.grad(margin.sum(), loose)[0])
        losses.append(margin.detach())
        purified.append((point, result))
    weights = posterior(torch.stack(losses), torch.stack(gradients), 0.3, "linf", 1.0, 10)
    together = (weights[..., None, None, None] * torch.stack(gradients)).sum(0)
    back = [torch.autograd.grad(result, point, together)[0] for point, result in purified]
    chosen = weights.argmax(0)
    assert len(set(chosen.tolist())) > 1, "images differ in their draws"
    expected = torch.stack([back[draw][image] for image, draw in enumerate(chosen.tolist())])
    with count_network_calls(masked) as calls:
        answer = attack.gradient_at(run, images, noises)
    torch.testing.assert_close(answer.gradient, expected, rtol=1e-9, atol=1e-14)
    assert sum(calls) == (4 * 4 + 4) * masked.network_calls
    cost = attack.cost(masked)
    assert (cost.gradients, cost.queries, cost.draws) == (20, 80, 1)


@pytest.mark.parametrize("grafted", [False, True])
def test_without_unknown_noise_it_is_pgd(
    grafted: bool, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """Bit for bit: of a plain classifier, of a transfer attack, and where all noise is known."""
    settings: Any = {"epsilon": 0.1, "steps": 2, "loss": "margin", "mask": "recomputed"}
    plain = Defense(classifier)
    ours, theirs = DiffHammer(**settings, grafted=grafted), PGD(**settings)
    target = target_of(plain, images, LABELS)
    assert torch.equal(ours(target), theirs(target))
    assert ours.cost(plain) == theirs.cost(plain)
    purified = Defense(classifier, UniformPurifier(steps=2, sampler=DDPM()), denoiser)
    transferred = ours.transferred()
    assert isinstance(transferred, DiffHammer)
    target = target_of(purified, images, LABELS)
    expected = PGD(**settings, approximation="classifier_only")(target)
    assert torch.equal(transferred(target), expected)


def test_a_single_draw_may_be_flat_and_all_may_not() -> None:
    """A draw whose answer does not hang on the image takes no part; where none does, an attack has
    nothing to follow."""

    class Flat(Torn):
        half = True

        def forward(self, images: Tensor, *rest: Any, **settings: Any) -> Tensor:
            answers = super().forward(images, *rest, **settings)
            ignored = self.sign(rest[0], images) < 0 if self.half else answers[:, 0] == 0
            return torch.where(ignored[:, None], answers.detach() + 0 * answers, answers)

    images = torch.full((4, 1, 8, 8), 0.5, dtype=torch.float64)
    attack = DiffHammer(epsilon=0.5, steps=3, step_size=0.2, eot_samples=4, antithetic=True)
    defense = Flat()
    _, best = attack(target_of(defense, images, NOBODY))
    assert (size(best - images, "linf") > 0.4).all()
    defense.half = False
    with pytest.raises(GradientError, match="zero for 4 of 4 images"):
        attack(target_of(defense, images, NOBODY))


def test_its_loss_is_above_zero_where_an_answer_is_wrong() -> None:
    with pytest.raises(FieldError, match="DiffHammer.loss is 'cross_entropy', allowed are margin"):
        DiffHammer(loss="cross_entropy")
    with pytest.raises(FieldError, match="grafted True goes with approximation none, got bpda"):
        DiffHammer(grafted=True, approximation="bpda")


def test_monitor_hears_an_iteration_as_of_any_attack(masked: Defense, images: Tensor) -> None:
    counter = Counter()
    attack = DiffHammer(epsilon=0.1, steps=2, eot_samples=2, mask="frozen", grafted=True)
    attack(target_of(masked, images, LABELS, ADDRESSES, counter))
    assert (counter.gradients, counter.queries) == ([4, 4], [8, 8])
    keys = {"run", "loss", "right", "agreement"}
    assert [set(values) for _, values in counter.iterations] == [keys, keys]
