"""Progressive gradients: which iterations follow which purifier, and which iterates may be best."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.attacks import PGD, Progressive
from hetpure.attacks.gradient import Ascent
from hetpure.attention import AttentionMask
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.errors import FieldError
from hetpure.evaluation.defense_check import check_defense_gradient
from hetpure.expectation import Answer
from hetpure.noise import Group, Noise, attack_draw
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from tests.hetpure.attacks.defenses import (
    ADDRESSES,
    BOTH,
    NOISE,
    SAMPLES,
    Counter,
    size,
    target_of,
)

LABELS = torch.tensor([0, 1, 2, 3])
FINE, COARSE = UniformPurifier(steps=50), UniformPurifier(steps=20)


def attack(kind: type[Progressive] = Progressive, **settings: Any) -> Progressive:
    usual: dict[str, Any] = {
        "epsilon": 0.2, "steps": 5, "step_size": 0.05, "eot_samples": 2, "mask": "recomputed",
        "coarse": COARSE, "exact_steps": 2,
    }  # fmt: skip
    return kind(**usual | settings)


@pytest.fixture
def defense(denoiser: Denoiser, smooth_classifier: Classifier) -> Defense:
    return Defense(smooth_classifier, FINE, denoiser, policy="tape")


def loss_and_gradient(defense: Defense, images: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy (B,) over the two draws of an iteration, and its gradient."""
    point = images.clone().requires_grad_()
    losses = []
    for k in range(2):
        noise = NOISE.redraw(attack_draw(0, 0, iteration, k)).on(SAMPLES)
        losses.append(F.cross_entropy(defense(point, noise), LABELS, reduction="none"))
    mean = torch.stack(losses).mean(0)
    return mean.detach(), torch.autograd.grad(mean.sum(), point)[0]


def test_first_iterations_follow_the_coarse_purifier_and_the_last_the_defence(
    defense: Defense, denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """Step by step, written out. Another purifier at one of the steps ends somewhere else."""
    coarse = Defense(smooth_classifier, COARSE, denoiser, policy="tape")

    def ascend(kinds: str) -> tuple[Tensor, Tensor]:
        """The last image, and of the exact iterates the one with the largest loss."""
        x, best = images, images
        highest = torch.full((4,), -torch.inf, dtype=torch.float64)
        for iteration, kind in enumerate(kinds):
            asked = defense if kind == "e" else coarse
            loss, gradient = loss_and_gradient(asked, x, iteration)
            better = (kind == "e") & (loss > highest)
            best = torch.where(better[:, None, None, None], x, best)
            highest = torch.where(better, loss, highest)
            # Along the gradient itself, in L2: a sign would hide which purifier it is of.
            along = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
            x = (x + 0.05 * along).clamp(0, 1)
        return x, best

    found = attack(norm="l2", epsilon=9.0, random_start=False)(target_of(defense, images, LABELS))
    torch.testing.assert_close(found, torch.stack(ascend("cccee")), rtol=0, atol=1e-12)
    for other in ("ccccc", "eeeee", "cceee", "eeecc"):
        assert (found[0] - ascend(other)[0]).abs().max() > 1e-6, other


class Boasting(Progressive):
    """Its coarse iterations report huge losses, and answers that are all wrong."""

    def gradient_at(self, run: Ascent, adversarial: Tensor, noises: Sequence[Noise]) -> Answer:
        answer = super().gradient_at(run, adversarial, noises)
        if run.target.defense.purifier == FINE:
            return answer
        wrong = F.one_hot((LABELS + 1) % 4, 4).expand_as(answer.logits)
        return replace(answer, loss=answer.loss + 1e6, logits=wrong.to(answer.logits))


@pytest.mark.parametrize("known", [(), BOTH], ids=["white box", "deterministic"])
@pytest.mark.parametrize("resubmissions", [0, 3])
def test_no_coarse_iterate_is_the_best(
    resubmissions: int, known: tuple[Group, ...], defense: Defense, images: Tensor
) -> None:
    """With one exact step the best image is the iterate of that step, whatever a coarse step says;
    where answers are certain, being wrong would beat any loss."""
    target = target_of(defense, images, LABELS, replace(ADDRESSES, known=known))
    settings = {
        "exact_steps": 1, "resubmissions": resubmissions,
        "norm": "l2", "epsilon": 9.0, "random_start": False,
    }  # fmt: skip
    last, best = attack(Boasting, **settings)(target)
    assert torch.equal(torch.stack([last, best]), attack(**settings)(target))
    torch.testing.assert_close(size(last - best, "l2"), torch.full((4,), 0.05).double())


def test_calls_and_iterations_that_are_told(defense: Defense, images: Tensor) -> None:
    """Three coarse and two exact iterations on two draws; neighbours follow what they correct."""
    fine, coarse = 5, 2
    monitor = Counter()
    made = attack(resubmissions=3)
    with count_network_calls(defense) as calls:
        made(target_of(defense, images, LABELS, monitor=monitor))
    assert sum(calls) == 4 * (2 * (3 * coarse + 2 * fine) + 3 * 2 * fine)
    cost = made.cost(defense)
    assert sum(monitor.gradients) == 4 * cost.gradients == 4 * 10
    assert sum(monitor.queries) == 4 * 3 * 2 <= 4 * cost.queries
    assert [number for number, _ in monitor.iterations] == [3, 4]
    with count_network_calls(defense) as calls:
        attack(neighbours=1)(target_of(defense, images, LABELS))
    assert sum(calls) == 4 * 2 * (2 * 3 * coarse + (2 + 1) * fine)


def test_without_a_purifier_it_is_pgd(smooth_classifier: Classifier, images: Tensor) -> None:
    plain = Defense(smooth_classifier)
    made = attack()
    settings: Any = {"epsilon": 0.2, "steps": 5, "step_size": 0.05, "mask": "recomputed"}
    target = target_of(plain, images, LABELS)
    assert torch.equal(made(target), PGD(**settings)(target))
    assert made.substitute(plain) is None
    made.check(plain, SAMPLES)


def test_its_cosine_is_that_of_a_surrogate(
    defense: Defense, denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """As a row with the coarse purifier for a surrogate would tell it."""
    coarse = Defense(smooth_classifier, COARSE, denoiser, policy="tape")
    block: Any = (images[:2], SAMPLES[:2], 7)
    attacks = [attack(), PGD()]
    check = check_defense_gradient(defense, *block, bound=1e-5, attacks=attacks)
    surrogate = check_defense_gradient(coarse, *block, bound=1e-5, evaluated=defense)
    assert check.passed and surrogate.cosine_to_exact < 1 - 1e-9
    cosine = pytest.approx(surrogate.cosine_to_exact, abs=1e-12)
    assert check.substitute_cosines == {"coarse schedule": cosine}


def test_what_it_follows_has_a_name_and_is_named_as_weaker(
    defense: Defense, denoiser: Denoiser, smooth_classifier: Classifier
) -> None:
    full = attack(steps=200, exact_steps=50, eot_samples=20, mask="all")
    assert full.weaker_than_full() == [
        "progressive_linf: 150 of 200 iterations follow a purifier with fewer steps"
    ]
    purifier, mask = HeterogeneousPurifier(steps=20), AttentionMask(threshold=0.5)
    masked = Defense(smooth_classifier, purifier, denoiser, mask)
    soft = attack(mask="soft", coarse=HeterogeneousPurifier(steps=10))
    assert soft.substitute(masked) == "coarse schedule and soft mask"
    assert attack(approximation="bpda").substitute(defense) == "bpda"


def test_stronger_ones_keep_the_share_of_exact_steps() -> None:
    more = attack().stronger()
    assert [(a.steps, a.exact_steps, a.eot_samples) for a in more.values()] == [  # type: ignore[attr-defined]
        (10, 4, 2),
        (5, 2, 4),
    ]


def test_what_is_refused(defense: Defense) -> None:
    with pytest.raises(FieldError, match=r"exact_steps must be < steps, 5, got 5"):
        attack(exact_steps=5)
    with pytest.raises(FieldError, match=r"exact_steps must be >= 1, got 0"):
        attack(exact_steps=0)
    with pytest.raises(FieldError, match=r"coarse is a Het.*the defence has a UniformPurifier"):
        attack(coarse=HeterogeneousPurifier()).check(defense, SAMPLES)
    with pytest.raises(FieldError, match=r"coarse takes 5 network calls, the defence itself 5"):
        attack(coarse=FINE).check(defense, SAMPLES)
