"""APGD and Square against the published code (package pyautoattack, not a line of it is ours): the
same classifier, images, radius and budget, and the same robust accuracy.

Radii were chosen on validation images, where the published attack leaves 30 to 70% right.
"""

import time
from dataclasses import dataclass
from typing import Literal, Protocol

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.square import SquareAttack
from torch import Tensor

from datamodules.fashion_mnist import read_packaged
from hetpure.attacks.apgd import APGD
from hetpure.attacks.attack import Addresses, Attack, check_candidates
from hetpure.attacks.square import Square
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.evaluation.statistics import mcnemar, wilson
from hetpure.geometry import Norm
from hetpure.report.table import interval
from hetpure.weights import load_classifier
from tests.hetpure.attacks.defenses import (
    NOISE,
    target_of,
)


class Published(Protocol):
    def perturb(self, x: Tensor, y: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Case:
    """One attack at one radius: `steps` iterations of each run, or queries."""

    kind: Literal["apgd_ce", "apgd_t", "square"]
    norm: Norm
    epsilon: float
    steps: int
    targets: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.norm} {self.epsilon}, {self.steps} steps"

    @property
    def block(self) -> int:
        """Images attacked together. The published Square gives them all the same squares: few
        share one lucky or unlucky sequence."""
        return 25 if self.kind == "square" else 100

    def ours(self) -> Attack:
        ball = {"epsilon": self.epsilon, "norm": self.norm, "steps": self.steps, "eot_samples": 1}
        if self.kind == "square":
            return Square(**ball)
        loss = "dlr" if self.targets else "cross_entropy"
        return APGD(**ball, loss=loss, targets=self.targets)

    def published(self, classifier: Classifier, seed: int) -> Published:
        norm = {"linf": "Linf", "l2": "L2"}[self.norm]
        ball = {"eps": self.epsilon, "norm": norm, "seed": seed, "device": "cpu"}
        if self.kind == "square":
            return SquareAttack(classifier, n_queries=self.steps, **ball)
        if self.targets:
            return APGDAttack_targeted(
                classifier, n_iter=self.steps, n_target_classes=self.targets, **ball
            )
        return APGDAttack(classifier, n_iter=self.steps, loss="ce", **ball)


@dataclass(frozen=True)
class Outcome:
    """Which of the test images (N,) stay right under either attack, and CPU seconds of both."""

    ours: Tensor
    published: Tensor
    seconds: tuple[float, float]

    @property
    def points(self) -> tuple[float, float]:
        """Robust accuracies in percent."""
        return 100 * float(self.ours.double().mean()), 100 * float(self.published.double().mean())

    def __str__(self) -> str:
        both = [outcome.numpy() for outcome in (self.published, self.ours)]
        published, ours = (interval(wilson(int(one.sum()), len(one)).as_dict()) for one in both)
        test = mcnemar(*both)
        return (
            f"published {published}% in {self.seconds[1]:.0f} s, ours {ours}% in"
            f" {self.seconds[0]:.0f} s; broken by ours alone {test.only_first}, by theirs"
            f" {test.only_second}, p = {test.p_value:.2g}"
        )


def compare(case: Case, count: int) -> Outcome:
    """Both attacks on the first test images, in the same blocks; images that are wrong to begin
    with are left out of both."""
    classifier, data = load_classifier("fashion_mnist_wrn"), read_packaged("test")
    defense, attack = Defense(classifier), case.ours()
    stays = torch.zeros(2, count, dtype=torch.bool)
    seconds = [0.0, 0.0]
    for first in range(0, count, case.block):
        rows = torch.arange(first, min(first + case.block, count))
        images, labels = data.images[rows].float() / 255, data.labels[rows]
        right = classifier(images).argmax(1) == labels
        rows, images, labels = rows[right], images[right], labels[right]
        samples = data.samples[rows]
        start = time.process_time()
        found = attack(target_of(defense, images, labels, Addresses(samples, NOISE)))
        between = time.process_time()
        with torch.random.fork_rng(devices=[]):  # theirs seeds the global generator
            theirs = case.published(classifier, first).perturb(images, labels)[None]
        seconds[0] += between - start
        seconds[1] += time.process_time() - between
        check_candidates(found, images, samples, attack.threat)
        for number, candidates in enumerate((found, theirs)):
            kept = [classifier(candidate).argmax(1) == labels for candidate in candidates]
            stays[number, rows] = torch.stack(kept).all(0)
    outcome = Outcome(stays[0], stays[1], (seconds[0], seconds[1]))
    print(f"{case}, {count} images: {outcome}")
    return outcome


FULL = [
    Case("apgd_ce", "linf", 0.015, 50),
    Case("apgd_ce", "l2", 0.22, 50),
    Case("apgd_t", "linf", 0.015, 20, targets=9),
    Case("apgd_t", "l2", 0.22, 20, targets=9),
    Case("square", "linf", 0.02, 1000),
    Case("square", "l2", 0.4, 1000),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL, ids=str)
def test_robust_accuracy_is_that_of_the_published_code(case: Case) -> None:
    """Within a point on 500 images."""
    ours, published = compare(case, 500).points
    assert 30 <= published <= 70
    assert abs(ours - published) <= 1.0
