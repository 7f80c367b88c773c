"""Budgets, radii, classes and masks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hetpure.analysis import Convergence
from hetpure.analysis.convergence import (
    ACCURACY,
    CLASS,
    EOT,
    LOSS,
    LOST,
    MASK,
    RADIUS,
    RESTARTS,
    STEPS,
    marks,
    overlap,
)
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Block, Protocol
from hetpure.noise import BatchNoise, Noise, Stream
from hetpure.purifiers import HeterogeneousPurifier
from tests.hetpure.analysis.subjects import SAMPLES, first_pixels, halves, pgd, subject
from tests.hetpure.attacks.defenses import LABELS, Noisy, linear


def test_a_linear_classifier_falls_at_the_radius_of_its_margin() -> None:
    """All 64 pixels count alike, and images are 0.1 in each pixel from the boundary: a radius below
    breaks none, one above breaks all, in as many steps as it takes."""
    weight = torch.zeros(2, 64, dtype=torch.float64)
    weight[0], weight[1] = 0.5, -0.5
    classifier = linear(weight, torch.tensor([-16.0, 16.0], dtype=torch.float64))
    block = Block(
        torch.full((4, 1, 8, 8), 0.6, dtype=torch.float64),
        torch.zeros(4, dtype=torch.int64),
        SAMPLES,
    )
    attack = pgd(loss="margin", epsilon=0.16, step_size=0.04, steps=4)
    row = subject(Defense(classifier), attack)
    analysis = Convergence(restarts=(1,), radii=(0.5, 1.0), draws=1)
    summary = analysis.summarise({"row": analysis.examine(row, block)})

    def curve(quantity: str, varied: str) -> dict[float | None, float]:
        return {line.at: line.value for line in summary.of("row", quantity, varied)}

    assert curve(ACCURACY, STEPS) == {0: 1, 1: 1, 2: 1, 4: 0}
    expected = {step: 6.4 * (-1 + 0.4 * step) for step in (0, 1, 2, 4)}
    assert curve(LOSS, STEPS) == pytest.approx(expected)
    assert curve(ACCURACY, RADIUS) == {0.08: 1, 0.16: 0}
    assert curve(ACCURACY, EOT) == {}, "it draws no noise"
    assert curve(ACCURACY, RESTARTS) == {1: 0}
    assert [line.value for line in summary.of("row", LOST, STEPS)] == [1]
    assert [line.value for line in summary.of("row", CLASS)] == [0]
    assert summary.of("row", MASK, STEPS) == []


def test_more_draws_of_the_coin_find_less() -> None:
    """A single draw moves one half and breaks the defence where that half is looked at."""
    row, block = halves()
    row = subject(row.defense, pgd(norm="l2", epsilon=1.0, step_size=1.0, steps=1, eot_samples=64))
    analysis = Convergence(eot=(0, 4), restarts=(), radii=(), draws=64)
    summary = analysis.summarise({"row": analysis.examine(row, block)})
    single, many = summary.of("row", ACCURACY, EOT)
    assert (single.at, many.at) == (1, 256)
    assert single.value < many.value == 1


def test_masks_and_network_calls_of_a_masked_row(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    purifier = HeterogeneousPurifier(t_large=0.1, t_small=0.05, steps=20)
    defense = Defense(classifier, purifier, denoiser, policy="tape")
    row = subject(defense, pgd(steps=2, eot_samples=1), protocol=Protocol(1, 1))
    analysis = Convergence(eot=(1,), restarts=(), radii=(1.0,), draws=1)
    with count_network_calls(defense) as calls:
        (record,) = analysis.examine(row, Block(images[:1], LABELS[:1], SAMPLES[:1]))
    assert sum(calls) <= analysis.work(row).calls
    assert record["iou"][0] == 1 and len(record["iou"]) == 3
    assert all(0 <= value <= 1 for value in record["iou"])


def test_losses_are_the_attacks_and_radii_that_are_none_are_said() -> None:
    """Of mean logits where the attack takes the loss of these; no Linf ball is above 1."""
    row, block = halves()
    of_logits = replace(row, attack=pgd(average="logits"))
    logits = torch.tensor([[[9.0, 0]] * 4, [[0, 3.0]] * 4])  # (draws, images, classes)
    expected = torch.nn.functional.cross_entropy(logits.mean(0), block.labels, reduction="none")
    assert of_logits.loss_of(logits, block) == pytest.approx(expected)
    assert of_logits.loss_of(logits, block) != pytest.approx(row.loss_of(logits, block))
    analysis = Convergence(eot=(), restarts=(), radii=(1.0, 20.0), draws=1)
    row = subject(row.defense, pgd(steps=1))
    summary = analysis.summarise({"row": analysis.examine(row, block)})
    assert [line.at for line in summary.of("row", ACCURACY, RADIUS)] == [0.1]
    assert "row: radii above 1 are left out" in summary.notes


def test_one_thing_of_the_budget_is_changed_at_a_time() -> None:
    """A single draw has no antithetic partner; steps are as long as their ball is large."""
    attack = pgd(epsilon=0.1, step_size=0.04, eot_samples=4, antithetic=True)
    row = subject(halves()[0].defense, attack)
    found = Convergence(eot=(0, 1), restarts=(2,), radii=(1.0, 2.0)).attacks(row)
    assert found[EOT] == {1: replace(attack, eot_samples=1, antithetic=False), 4: attack}
    assert found[RESTARTS] == {2: replace(attack, restarts=2, random_start=True)}
    own, wide = found[RADIUS].values()
    assert own == attack and list(found[RADIUS]) == [0.1, 0.2]
    assert (wide.epsilon, wide.step_size) == pytest.approx((0.2, 0.08))
    assert replace(wide, epsilon=attack.epsilon, step_size=attack.step_size) == attack


def test_classes_are_those_of_the_attack_as_it_is_and_ends_are_paired() -> None:
    """The attack as it is breaks both images of class 1. The last point of the curve breaks one of
    class 0 too: three of four are lost."""

    def point(at: int, right: bool) -> dict[str, Any]:
        return {"at": at, "right": [right], "loss": 1.0}

    fates = ((0, True, True), (0, True, False), (1, False, False), (1, False, False))
    records = [
        {
            "label": label,
            "stochastic": True,
            "own": [own],
            "curves": {STEPS: [point(0, True), point(4, last)]},
        }
        for label, own, last in fates
    ]
    summary = Convergence(radii=()).summarise({"row": records})
    assert [(line.at, line.value, line.n) for line in summary.of("row", CLASS)] == [
        (0, 1, 2),
        (1, 0, 2),
    ]
    (lost,) = summary.of("row", LOST, STEPS)
    assert (lost.value, lost.n) == (0.75, 4)
    assert lost.low is not None and lost.low < 0.75


def test_losses_use_fresh_draws_and_accuracies_report_draws(images: Tensor) -> None:
    """Each fresh draw is asked of the image that is reported and of the iterates 0, 1, 2 and 3: the
    attack asks it no more often."""
    defense = Noisy(linear(torch.eye(2, 64, dtype=torch.float64)))
    row, block = subject(defense), Block(images[:1], LABELS[:1], SAMPLES[:1])
    Convergence(eot=(1,), restarts=(), radii=(), draws=4).examine(row, block)
    asked = [number for call in defense.calls for number in first_pixels(call.noise)]
    fresh = first_pixels(BatchNoise.stack(row.probes(4), SAMPLES[:1]))
    assert [asked.count(number) for number in fresh] == [5] * 4
    reported = [Noise.of(7, Stream.REPORT, draw) for draw in range(3)]
    assert set(first_pixels(BatchNoise.stack(reported, SAMPLES[:1]))) <= set(asked)


def test_marks_overlap_and_what_is_refused() -> None:
    assert marks(10) == [0, 1, 2, 4, 8, 10]
    assert marks(1) == [0, 1]
    a, b = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    a[0, 0, 0], b[0, 0, :, 0] = 1, 1
    assert overlap(a, b).tolist() == pytest.approx([1 / 3, 1])
    with pytest.raises(InputError, match="restarts"):
        Convergence(restarts=(0,))
