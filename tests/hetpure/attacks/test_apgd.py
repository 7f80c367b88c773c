"""Auto-PGD against its paper's step rule by hand, and against answers in closed form."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hetpure.attacks.apgd import APGD, checkpoints, condition_1, condition_2
from hetpure.attacks.attack import Addresses
from hetpure.attacks.gradient import Ascent
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.expectation import Answer
from tests.hetpure.attacks.defenses import LABELS, NOISE, SAMPLES, linear, target_of, unit, uphill

norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def auto(**settings: Any) -> APGD:
    return APGD(**{"epsilon": 0.1, "steps": 10, "eot_samples": 2, "mask": "recomputed"} | settings)


class Centred(Addresses):
    """Every start is the image itself."""

    def own_noise(self, restart: int, iteration: int = 0) -> Any:
        return SimpleNamespace(uniform=lambda purpose, like: torch.full_like(like, 0.5))


@dataclass(frozen=True, kw_only=True)
class Scripted(APGD):
    """Is given the loss (steps + 1) of each iterate and its slope; keeps the iterates."""

    loss_of: tuple[float, ...]
    slope_of: tuple[float, ...]
    wrong_at: frozenset[int] = frozenset()
    visited: list[Tensor] = field(default_factory=list)

    def ask(self, run: Ascent, adversarial: Tensor, iteration: int) -> Answer:
        self.visited.append(adversarial.clone())
        wrong = torch.tensor([[[0.0, 1.0]]] if iteration in self.wrong_at else [[[1.0, 0.0]]])
        gradient = torch.full_like(adversarial, self.slope_of[iteration])
        return Answer(gradient, torch.tensor([self.loss_of[iteration]]), wrong, None)


def follow(**script: Any) -> tuple[list[float], float]:
    """The iterates' offsets from an image of one pixel, and the candidate's, of a script."""
    attack = Scripted(epsilon=0.1, steps=len(script["loss_of"]) - 1, **script)
    image = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    defense = Defense(linear(torch.ones(2, 1, dtype=torch.float64)))
    target = target_of(defense, image, LABELS[:1], Centred(SAMPLES[:1], NOISE))
    (candidate,) = attack(target)
    return [round(float(x) - 0.5, 9) for x in attack.visited], round(float(candidate) - 0.5, 9)


def test_checkpoints_of_the_paper_and_of_the_published_rounding() -> None:
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(50) == [0, 11, 21, 30, 38, 45]
    assert checkpoints(10) == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert checkpoints(30) == [0, 6, 11, 15, 18, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30]
    assert checkpoints(1) == [0, 1]


def test_conditions_by_hand() -> None:
    """Three of four steps up are enough, two and no change are not. Only where the step was not
    halved last time and the best loss stayed what it was."""
    f = torch.tensor([[0, 0, 0], [1, 1, 1], [2, 1, 0], [3, 2, 1], [2, 2, 2]])
    assert condition_1(f).tolist() == [False, True, False]
    halved, now = torch.tensor([True, True, False, False]), torch.tensor([1.0, 2.0, 1.0, 2.0])
    assert condition_2(halved, torch.ones(4), now).tolist() == [False, False, True, False]


def test_momentum_by_hand() -> None:
    """x1 = P(0 + 0.2); x2 = x1 + 3/4 (P(x1 - 0.2) - x1) + 1/4 (x1 - x0); the loss grows."""
    offsets, _ = follow(loss_of=(0.0, 1.0, 2.0), slope_of=(1.0, -1.0, 1.0))
    assert offsets == [0.0, 0.1, pytest.approx(0.1 - 0.75 * 0.2 + 0.25 * 0.1)]


def test_halved_step_starts_again_from_the_best_point_and_its_gradient() -> None:
    """The loss falls from the start on: at the first checkpoint, 3 of 16, the search is back at the
    start, whose gradient was positive, with a step of 0.1 and the momentum of where it came from.
    """
    offsets, _ = follow(loss_of=tuple(-float(k) for k in range(17)), slope_of=(0.5, *[-0.5] * 16))
    second = 0.1 - 0.75 * 0.2 + 0.25 * 0.1
    third = -0.1  # projected
    assert offsets[:4] == [0.0, 0.1, pytest.approx(second), third]
    assert offsets[4] == pytest.approx(0.75 * 0.1 + 0.25 * (0.0 - second))


def test_steps_are_halved_at_each_checkpoint_that_finds_no_growth() -> None:
    """Back at the start each time with half the step: 0.1 after checkpoint 6 of 30, 0.05 after 11;
    from 20 on every iterate is a checkpoint, and the momentum is of a start that does not move."""
    offsets, _ = follow(loss_of=tuple(-float(k) for k in range(31)), slope_of=(1.0,) * 31)
    for k, eta, before in (
        (6, 0.1, offsets[5]),
        (11, 0.05, offsets[10]),
        (15, 0.025, offsets[14]),
        (20, 0.00625, offsets[19]),
        (21, 0.003125, 0.0),
    ):
        assert offsets[k + 1] == pytest.approx(0.75 * eta + 0.25 * (0.0 - before), abs=1e-8)


def test_steps_stay_where_the_loss_grows() -> None:
    """A full step of 0.2 reaches the far side of the ball from wherever it begins, so under a slope
    that turns each time x -> -x = x + 3/4 (-0.1 - x) + 1/4 (x + x) until the end."""
    slopes = tuple((-1.0) ** k for k in range(31))
    offsets, _ = follow(loss_of=tuple(float(k) for k in range(31)), slope_of=slopes)
    assert [abs(x) for x in offsets[-6:]] == pytest.approx([0.075 / 1.75] * 6, abs=1e-6)


def test_first_checkpoint_knows_condition_2() -> None:
    """The loss falls once and then grows, but not to where it began: no best iterate since."""
    loss = (9.0, *[float(k) for k in range(30)])
    offsets, candidate = follow(loss_of=loss, slope_of=(1.0, *[-1.0] * 30))
    assert checkpoints(30)[1] == 6
    assert offsets[6] < 0 < offsets[7]  # back at the start, whose slope was positive
    assert candidate == offsets[loss.index(29.0)]


def test_a_wrong_answer_beats_a_higher_loss() -> None:
    script = {"loss_of": (0.0, 1.0, 0.5, 3.0), "slope_of": (1.0, -1.0, -1.0, -1.0)}
    offsets, candidate = follow(**script, wrong_at=frozenset({1, 2}))
    assert candidate == offsets[1]
    offsets, candidate = follow(**script)
    assert candidate == offsets[3]


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@norms
def test_linear_classifier_in_closed_form(
    norm: str, loss: str, linear_classifier: Classifier, images: Tensor
) -> None:
    """Linf ends in the corner of the ball, L2 at its rim in the direction of the gradient."""
    away = uphill(linear_classifier)
    attack = auto(norm=norm, loss=loss, steps=100)
    (candidate,) = attack(target_of(Defense(linear_classifier), images))
    edge = away.sign() if norm == "linf" else unit(away)
    # A loss cannot tell points closer to an L2 optimum than the root of its rounding.
    tolerance = 1e-12 if norm == "linf" else 1e-7
    torch.testing.assert_close(candidate, images + 0.1 * edge, rtol=0, atol=tolerance)


@norms
def test_targets_in_closed_form(norm: str, images: Tensor) -> None:
    """Each run ends where z_t - z_y is largest, for the most likely wrong classes in turn."""
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    classifier, labels = linear(weight), torch.tensor([0, 1, 2, 4])
    attack = auto(norm=norm, epsilon=1e-6, loss="margin", targets=3, steps=60)
    candidates = attack(target_of(Defense(classifier), images, labels))
    logits = classifier(images).scatter(1, labels[:, None], -torch.inf)
    targets = logits.argsort(1, descending=True)[:, :3].T
    for candidate, target in zip(candidates, targets, strict=True):
        away = (weight[target] - weight[labels]).reshape(images.shape)
        tolerance = 1e-12 if norm == "linf" else 1e-10  # see above
        edge = 1e-6 * (away.sign() if norm == "linf" else unit(away))
        torch.testing.assert_close(candidate - images, edge, rtol=0, atol=tolerance)
