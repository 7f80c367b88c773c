"""Gradient noise, report noise, and what is left."""

import json

import pytest
from torch import Tensor

from hetpure.analysis import Randomness
from hetpure.analysis.randomness import BOTH, GRADIENT, MORE, REPORT, WHITE
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.evaluation.protocol import Block, Protocol
from hetpure.purifiers import UniformPurifier
from hetpure.samplers import DDPM
from tests.hetpure.analysis.subjects import SAMPLES, halves, pgd, subject
from tests.hetpure.attacks.defenses import LABELS

ANALYSIS = Randomness(more_eot=2)


def test_a_defence_whose_robustness_is_report_noise_alone() -> None:
    """The white box finds nothing, with any number of draws; who knows the coin finds all."""
    summary = ANALYSIS.summarise({"row": ANALYSIS.examine(*halves())})
    values = {line.quantity: line.value for line in summary.lines}
    assert (values[WHITE], values[MORE], values[BOTH]) == (1, 1, 0)
    assert (values[GRADIENT], values[REPORT]) == (0, 1)
    assert all(line.n == 4 for line in summary.lines)


def test_a_deterministic_row_has_no_noise(linear_classifier: Classifier, images: Tensor) -> None:
    block = Block(images, LABELS, SAMPLES)
    row = subject(Defense(linear_classifier))
    assert list(ANALYSIS.cells(row)) == [WHITE], "nothing is attacked twice"
    summary = ANALYSIS.summarise({"row": ANALYSIS.examine(row, block)})
    values = {line.quantity: line.value for line in summary.lines}
    shares = {line.quantity: line for line in summary.lines}
    for name in (GRADIENT, REPORT):  # by definition, whatever n is
        assert (shares[name].value, shares[name].low, shares[name].high) == (0, 0, 0)
    assert values[WHITE] == values[BOTH]
    (note,) = summary.notes
    assert note.startswith("row: it draws no noise")


def test_shares_add_up_and_intervals_are_none_of_one_image() -> None:
    records = [
        {
            "sample": k,
            "label": 0,
            "stochastic": True,
            "right": {
                "clean": [True] * 4,
                WHITE: [k < 7] * 4,
                MORE: [k < 5, k < 5, True, k < 5],
                BOTH: [k < 2],
            },
        }
        for k in range(10)
    ]
    summary = ANALYSIS.summarise({"row": records})
    values = {line.quantity: line.value for line in summary.lines}
    assert values[GRADIENT] + values[REPORT] + values[BOTH] == pytest.approx(values[WHITE])
    assert values[WHITE] == 0.7 and values[BOTH] == 0.2
    for line in summary.lines:
        assert line.low is not None and line.high is not None
        assert line.low <= line.value <= line.high
    alone = ANALYSIS.summarise({"row": records[:1]})
    assert {line.low for line in alone.lines} == {None}
    assert "n = 1: there are no intervals" in alone.notes
    json.dumps(records)


def test_the_attackers_are_those_that_are_named() -> None:
    row, _ = halves()
    found = Randomness(more_eot=3).cells(subject(row.defense, pgd(eot_samples=2)))
    assert {name: (cell.attack.eot_samples, cell.known) for name, cell in found.items()} == {
        WHITE: (2, ()),
        MORE: (6, ()),
        BOTH: (2, ("forward", "reverse")),
    }


def test_a_share_can_be_negative_and_what_is_0_by_chance_is_said() -> None:
    """More draws found less on one image of ten; DW-both finds six."""
    records = [
        {
            "stochastic": True,
            "right": {"clean": [True], WHITE: [k < 8], MORE: [k < 9], BOTH: [k < 3]},
        }
        for k in range(10)
    ]
    summary = ANALYSIS.summarise({"row": records})
    values = {line.quantity: line.value for line in summary.lines}
    assert (values[GRADIENT], values[REPORT]) == pytest.approx((-0.1, 0.6))
    (said,) = summary.finding
    gradient, report = said.split("white box, ")[1].split(" points ")[0], said.split("more, ")[1]
    assert gradient.startswith("-10.0 [") and gradient.endswith("(cannot be told from 0)")
    assert report.startswith("60.0 [") and "cannot be told" not in report


def test_network_calls_are_those_that_were_said(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    purifier = UniformPurifier(strength=0.1, steps=20, sampler=DDPM())
    defense = Defense(classifier, purifier, denoiser, policy="tape")
    row = subject(defense, pgd(steps=1, eot_samples=1), protocol=Protocol(2, 1))
    with count_network_calls(defense) as calls:
        ANALYSIS.examine(row, Block(images[:1], LABELS[:1], SAMPLES[:1]))
    assert sum(calls) == ANALYSIS.work(row).calls
