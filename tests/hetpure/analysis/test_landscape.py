"""Losses in the plane of two directions, and their curvature."""

from typing import Any

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
from hetpure.noise import BatchNoise, Stream
from hetpure.numbers import Number
from hetpure.purifiers import UniformPurifier
from hetpure.samplers import DDPM
from tests.hetpure.analysis.subjects import SAMPLES, first_pixels, halves, pgd, subject
from tests.hetpure.attacks.defenses import LABELS, Noisy, linear


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


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_unit_is_the_radius_and_points_are_not_cut(norm: str) -> None:
    """Images are 0.05 from 1, and the attack goes down: the point -1 lies above 1, and a cut there
    would make the loss bend. In L2 the unit is the radius, in Linf the norm of its corner."""
    weight = torch.zeros(2, 64, dtype=torch.float64)
    weight[0], weight[1] = 0.5, -0.5
    block = Block(
        torch.full((4, 1, 8, 8), 0.95, dtype=torch.float64),
        torch.zeros(4, dtype=torch.int64),
        SAMPLES,
    )
    row = subject(Defense(linear(weight)), pgd(loss="margin", norm=norm, epsilon=0.8))
    for record in Landscape(points=3, draws=1).examine(row, block):
        unit = 0.8 if norm == "l2" else 0.8 * 8
        assert record[RISE] == pytest.approx(8 * unit), "the slope's norm is 8"
        assert record[CURVATURE] == pytest.approx(0, abs=1e-9)


def test_rows_are_compared_image_by_image() -> None:
    """Images differ a lot, and each is flatter by 2 in the second row: paired it is told."""

    def records(less: float) -> list[dict[str, Any]]:
        found = []
        for k, curved in enumerate((3.0, 30.0, 300.0)):
            bent = curved - less * (1 + 0.01 * k)
            losses = [[bent * a * a / 2] * 3 for a in (-1, 0, 1)]
            numbers = {CURVATURE: bent, OTHER: 0.0, RISE: bent / 2}
            found.append({"stochastic": True, "losses": losses} | numbers)
        return found

    analysis = Landscape(points=3)
    summary = analysis.summarise({"plain": records(0), "addt": records(2)})
    for name in (CURVATURE, BEND):
        (line,) = summary.of("addt", f"{name}, less that of plain")
        assert (line.value, line.n) == (pytest.approx(-2.02), 3)
        assert line.high is not None and line.high < -1.9
        assert not summary.of("plain", f"{name}, less that of plain")
    (bent,) = summary.of("plain", BEND)
    assert bent.low == 0, "a mean size is not below 0"


def test_losses_use_fresh_draws_that_all_points_share(images: Tensor) -> None:
    defense = Noisy(linear(torch.eye(2, 64, dtype=torch.float64)))
    row, block = subject(defense), Block(images[:1], LABELS[:1], SAMPLES[:1])
    analysis = Landscape(points=3, draws=4)
    analysis.examine(row, block)
    asked = [number for call in defense.calls for number in first_pixels(call.noise)]
    assert asked[-36:] == 9 * first_pixels(BatchNoise.stack(row.probes(4), SAMPLES[:1]))
    assert {noise.reverse.stream for noise in row.probes(4)} == {Stream.PROBE}


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
