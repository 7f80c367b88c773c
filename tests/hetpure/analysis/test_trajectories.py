"""Paths of attacks, and cosines between their steps."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hetpure.analysis import Trajectories
from hetpure.analysis.lines import Line
from hetpure.analysis.paths import attack_path
from hetpure.analysis.trajectories import (
    BETWEEN,
    ENDS,
    EOT,
    KNOWN,
    OFF,
    SINGLE,
    TO_KNOWN,
    WITHIN,
    _between_ends,
    _mean,
    principal_plane,
    step_cosines,
)
from hetpure.attacks import Addresses, Target
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Block
from hetpure.noise import Noise, Stream
from hetpure.purifiers import UniformPurifier
from hetpure.samplers import DDPM
from tests.hetpure.analysis.subjects import SAMPLES, halves, pgd, subject
from tests.hetpure.attacks.defenses import LABELS


def test_paths_on_a_linear_classifier_are_one(
    linear_classifier: Classifier, images: Tensor
) -> None:
    analysis = Trajectories(paths=3, height_draws=1)
    row = subject(Defense(linear_classifier), pgd(step_size=0.04))
    records = analysis.examine(row, Block(images, LABELS, SAMPLES))
    for record in records:
        for kind in (EOT, SINGLE):
            for quantity in (WITHIN, BETWEEN, TO_KNOWN, ENDS):
                assert record["cosines"][kind][quantity] == pytest.approx(1)
        assert record["cosines"][KNOWN] == pytest.approx({WITHIN: 1})
    assert [record["sample"] for record in records if "picture" in record] == [31]
    assert records[0]["picture"]["explained"] == pytest.approx(1)
    summary = analysis.summarise({"row": records})
    assert any("all paths coincide" in note for note in summary.notes)


def test_a_coin_makes_paths_differ_and_its_knowledge_makes_them_straight() -> None:
    """Without EOT every step sees one half: cosines are 1 or 0, and 1/2 in the mean."""
    row, block = halves()
    row = subject(row.defense, pgd(norm="l2", epsilon=1.0, step_size=0.2, steps=16, eot_samples=64))
    analysis = Trajectories(paths=8, height_draws=2)
    records = analysis.examine(row, block)
    cosines = [record["cosines"] for record in records]
    for found in cosines:
        assert found[KNOWN][WITHIN] == pytest.approx(1)
        for quantity in (WITHIN, BETWEEN):
            assert found[SINGLE][quantity] == pytest.approx(0.5, abs=0.12)
            assert found[EOT][quantity] > 0.95
        # DW-both moves one half, and the mean of many draws moves both alike.
        assert found[EOT][TO_KNOWN] == pytest.approx(0.5**0.5, abs=0.06)
        assert found[SINGLE][TO_KNOWN] == pytest.approx(0.5, abs=0.12)
    (off,) = summary_of(analysis, records, OFF, EOT)
    assert off.value == pytest.approx(0.5**0.5 - 1, abs=0.05) and off.n == 4
    picture = records[0]["picture"]
    assert {kind: len(paths) for kind, paths in picture["paths"].items()} == {
        KNOWN: 1,
        EOT: 8,
        SINGLE: 8,
    }
    for path in (path for paths in picture["paths"].values() for path in paths):
        assert len(path) == 17 and path[0][:2] == [0, 0], "the image is the plane's origin"
    (height,) = row.expected_loss(block.images[:1], block.take(torch.tensor([0])), 2).tolist()
    assert picture["paths"][EOT][0][0][2] == pytest.approx(height)
    (line,) = summary_of(analysis, records, BETWEEN, EOT)
    assert line.low is not None and line.low <= line.value and line.n == 4


def test_a_path_is_the_one_of_the_attack(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """Its last iterate is PGD's, bit for bit; network calls are those that were said."""
    purifier = UniformPurifier(strength=0.1, steps=20, sampler=DDPM())
    defense = Defense(classifier, purifier, denoiser, policy="tape")
    block = Block(images[:1], LABELS[:1], SAMPLES[:1])
    row = subject(defense, pgd(steps=2, step_size=0.04), first=-1)
    target = Target(
        defense, *block_parts(block), Addresses(block.samples, Noise.of(7, Stream.DW_BOX))
    )
    path = attack_path(row, row.attack, block)
    assert torch.equal(path.iterates[-1], row.attack(target)[0])
    assert torch.equal(path.iterates[0], block.images)
    other = attack_path(row, row.attack, block, number=1)
    assert not torch.equal(path.directions, other.directions)
    analysis = Trajectories(paths=2)
    with count_network_calls(defense) as calls:
        analysis.examine(row, block)
    assert sum(calls) == analysis.work(row).calls
    first = subject(defense, row.attack)  # whose picture is drawn
    with count_network_calls(defense) as calls:
        analysis.examine(first, block)
    assert sum(calls) == analysis.work(first).calls + analysis.first_work(first).calls


def summary_of(
    analysis: Trajectories, records: list[dict[str, Any]], quantity: str, kind: str
) -> list[Line]:
    return analysis.summarise({"row": records}).of("row", quantity, kind)


def block_parts(block: Block) -> tuple[Tensor, Tensor]:
    return block.images, block.labels


def test_cosines_and_planes_by_hand() -> None:
    directions = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [-1.0, 0.0]]])
    within, between = step_cosines(directions)
    torch.testing.assert_close(within, torch.tensor([[1.0, -0.5], [-0.5, 1.0]]).double())
    assert between is not None
    torch.testing.assert_close(between, torch.tensor([[1.0, -0.5], [-0.5, 0.0]]).double())
    assert _mean(within) == _mean(between) == -0.5, "of different steps alone"
    assert _between_ends(torch.tensor([[1.0, 0], [0, 2], [3, 0]])) == pytest.approx(1 / 3)
    assert step_cosines(directions[:1])[1] is None
    points = torch.tensor([[0.0, 0, 0], [4, 0, 0], [0, 1, 0], [4, 1, 0]]).double()
    places, explained = principal_plane(points)
    assert explained == pytest.approx(1)
    torch.testing.assert_close(places, points[:, :2])


def test_one_step_is_no_path(linear_classifier: Classifier) -> None:
    with pytest.raises(InputError, match="steps >= 2"):
        Trajectories().check(subject(Defense(linear_classifier), pgd(steps=1)))
    with pytest.raises(InputError, match="eot_samples >= 2"):
        Trajectories().check(subject(halves()[0].defense, pgd(eot_samples=1)))
    Trajectories().check(subject(Defense(linear_classifier), pgd(eot_samples=1)))


def test_a_step_without_a_direction_is_left_out_of_means() -> None:
    """Three equal steps and one of zero length: those that have a direction agree wholly."""
    steps = torch.ones(1, 4, 5)
    steps[0, 2] = 0
    within, _ = step_cosines(steps)
    assert _mean(within) == pytest.approx(1.0)
    ends = torch.ones(3, 5)
    ends[1] = 0
    assert _between_ends(ends) == pytest.approx(1.0)
    assert _between_ends(torch.zeros(2, 5)) is None


def test_means_are_over_what_has_a_direction() -> None:
    """Of two images one has no cosine: it is left out, said, and in no matrix a 0."""
    cosines = {WITHIN: 0.5, BETWEEN: 0.25, ENDS: 0.5, TO_KNOWN: 0.5}
    kinds = (KNOWN, EOT, SINGLE)
    some, none = (
        {
            "stochastic": True,
            "cosines": {kind: {name: value and c for name, c in cosines.items()} for kind in kinds},
            "within": {kind: [[1.0, value], [value, 1.0]] for kind in kinds},
            "between": {kind: [[None, value], [value, None]] for kind in kinds},
        }
        for value in (0.5, None)
    )
    summary = Trajectories().summarise({"row": [some, none]})
    (line,) = summary.of("row", BETWEEN, EOT)
    assert (line.value, line.n) == (0.25, 1)
    (off,) = summary.of("row", OFF, EOT)
    assert (off.value, off.n) == (0, 1)
    assert f"row, {EOT}, {BETWEEN}: 1 image without a direction left out" in summary.notes
    assert summary.drawn["row"]["within"][EOT] == [[1.0, 0.5], [0.5, 1.0]]
    assert summary.drawn["row"]["between"][EOT] == [[None, 0.5], [0.5, None]]
