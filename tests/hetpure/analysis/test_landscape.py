"""Losses in the plane of two directions, and their curvature."""

import pytest
import torch
from torch import Tensor

from hetpure.analysis import Landscape
from hetpure.analysis.landscape import BEND, CURVATURE, OTHER, RISE, axes_of, bend, curvature
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Block
from hetpure.numbers import Number
from hetpure.purifiers import UniformPurifier
from hetpure.samplers import DDPM
from tests.hetpure.analysis.subjects import SAMPLES, halves, pgd, subject
from tests.hetpure.attacks.defenses import LABELS, linear


def test_the_margin_of_a_linear_classifier_is_flat(images: Tensor) -> None:
    """And rises by the corner's inner product with its slope: 0.1 times the sum of its sizes."""
    weight = torch.zeros(2, 64, dtype=torch.float64)
    weight[0], weight[1] = 0.5, -0.5
    labels = torch.zeros(4, dtype=torch.int64)
    row = subject(Defense(linear(weight)), pgd(loss="margin"))
    analysis = Landscape(points=5, draws=1)
    records = analysis.examine(row, Block(images, labels, SAMPLES))
    for record in records:
        assert record[CURVATURE] == pytest.approx(0, abs=1e-9)
        assert record[OTHER] == pytest.approx(0, abs=1e-9), "there is no rest"
        assert record[RISE] == pytest.approx(6.4)
        assert record["losses"][0] == pytest.approx([record["losses"][0][0]] * 5)
    summary = analysis.summarise({"row": records, "again": records})
    (difference,) = summary.of("again", f"{CURVATURE}, less that of row")
    assert (difference.value, difference.low, difference.high) == (0, None, None), "all equal"
    assert f"{difference.quantity} 0 (all equal)" in summary.finding[1]
    assert [line.value for line in summary.of("row", BEND)] == pytest.approx([0], abs=1e-9)
    assert summary.drawn["axis"] == [-1, -0.5, 0, 0.5, 1]
    assert [line.at for line in summary.of("row", RISE)] == [1]
    assert not any(note.startswith(RISE) for note in summary.notes)


def test_a_curved_loss_has_its_curvature() -> None:
    axis = torch.linspace(-1, 1, 9, dtype=torch.float64)
    assert curvature(3 * axis**2 + axis - 2, 0.25) == pytest.approx(6)
    assert curvature(axis.abs(), 0.25) == pytest.approx(2 / (7 * 0.25))
    waves = torch.tensor([0.0, 1, 0, 1, 0, 1])  # up and down alike: its ends' slopes are the same
    assert (curvature(waves, 1), bend(waves, 1)) == (0, 2)


def test_the_rise_says_where_it_is_taken(linear_classifier: Classifier, images: Tensor) -> None:
    analysis = Landscape(points=5, draws=1, extent=Number(1.5))
    records = analysis.examine(subject(Defense(linear_classifier)), Block(images, LABELS, SAMPLES))
    summary = analysis.summarise({"row": records})
    assert [line.at for line in summary.of("row", RISE)] == [0.75]
    assert f"{RISE} is at 0.75: no point is at 1" in summary.notes


def test_the_coins_attacker_knows_one_half_and_the_rest_is_the_other() -> None:
    row, block = halves()
    record = Landscape(points=3, draws=8).examine(row, block)[0]
    middle = record["losses"][1][1]
    assert record["losses"][2][1] > middle > record["losses"][0][1]
    assert record["losses"][1][2] > middle > record["losses"][1][0]


def test_axes_are_orthogonal_units() -> None:
    known, unknown = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    known[:, 0, 0, 0] = 2
    unknown[0, 0, 0, 0], unknown[0, 0, 1, 1], unknown[1, 0, 0, 0] = 5, 3, 7
    along, rest = axes_of(known, unknown)
    assert along[0, 0, 0, 0] == along[1, 0, 0, 0] == rest[0, 0, 1, 1] == 1
    assert rest[0, 0, 0, 0] == 0
    assert (rest[1] == 0).all(), "nothing is left of it"


def test_network_calls_are_those_that_were_said(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    purifier = UniformPurifier(strength=0.1, steps=20, sampler=DDPM())
    defense = Defense(classifier, purifier, denoiser, policy="tape")
    row = subject(defense, pgd(steps=1, eot_samples=1))
    analysis = Landscape(points=3, draws=1)
    with count_network_calls(defense) as calls:
        analysis.examine(row, Block(images[:1], LABELS[:1], SAMPLES[:1]))
    assert sum(calls) == analysis.work(row).calls
    with pytest.raises(InputError, match="odd"):
        Landscape(points=4)
