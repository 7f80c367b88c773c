"""Control masks: as many pixels as the attended one, elsewhere, and nothing but the sample id and
the seed says where. The statistical tests have a fixed seed: they are never flaky."""

from dataclasses import replace
from itertools import combinations, product
from typing import get_args

import pytest
import torch
from scipy import stats
from torch import Tensor

from hetpure.attention import AttentionMask, Placement
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.noise import BatchNoise, Noise, Stream
from hetpure.purifiers import HeterogeneousPurifier

AREA = AttentionMask(selection="area", threshold=0.3)
RULES = {"area": AREA, "value": AttentionMask(threshold=0.6)}
IDS = torch.tensor([11, 3, 40, 7])
NOISED: tuple[Placement, ...] = ("random", "shifted")
noised = pytest.mark.parametrize("placement", NOISED)
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def scores_without_ties(images: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    shuffled = [torch.randperm(height * width, generator=generator) for _ in range(images)]
    return torch.stack(shuffled).reshape(images, height, width).double() / (height * width)


def counts(mask: Tensor) -> list[float]:
    return mask.flatten(1).sum(1).tolist()


def placed(placement: Placement, mask: Tensor, ids: Tensor, seed: int = 0) -> Tensor:
    """The control of a mask that random and shifted see without any scores."""
    return AttentionMask(placement=placement, seed=seed).place(mask, torch.zeros(mask.shape), ids)


@every_rule
@pytest.mark.parametrize("placement", get_args(Placement))
def test_every_placement_has_as_many_pixels_an_image(
    placement: Placement, rule: AttentionMask, classifier: Classifier, images: Tensor
) -> None:
    attended = rule(classifier, images)
    mask = replace(rule, placement=placement)(classifier, images, IDS)
    assert (mask.shape, mask.dtype) == (attended.shape, attended.dtype)
    assert counts(mask) == counts(attended)
    assert min(counts(mask)) > 0
    assert torch.equal(mask, attended) == (placement == "attended")
    assert not mask.requires_grad


@pytest.mark.parametrize("placement", get_args(Placement))
def test_counts_differ_between_the_images_of_a_batch(placement: Placement) -> None:
    """From no pixel to all; also where all scores are equal."""
    scores = scores_without_ties(4, 5, 7)
    attended = torch.stack([scores[k] >= t for k, t in enumerate((2.0, 0.9, 0.3, 0.0))])
    for given in (scores, torch.zeros_like(scores)):
        mask = AttentionMask(placement=placement).place(attended, given, IDS)
        assert counts(mask) == counts(attended)


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.8])
def test_inverted_takes_the_lowest_scores(coverage: float) -> None:
    scores = scores_without_ties(4, 6, 8)
    rule = AttentionMask(selection="area", threshold=coverage, placement="inverted")
    attended = rule.select(scores)
    inverted = rule.place(attended, scores, None)
    for image, chosen, top in zip(scores, inverted, attended, strict=True):
        lowest = image.flatten().sort().values[: round(coverage * 48)]
        assert torch.equal(image[chosen].sort().values, lowest)
        assert (chosen & top).any() == (coverage > 0.5)


@noised
def test_place_depends_on_sample_id_and_seed_only(placement: Placement) -> None:
    """Not on position, batch, order or dtype of the scores."""
    attended = AREA.select(scores_without_ties(1, 8, 8)).expand(4, -1, -1)
    whole = placed(placement, attended, IDS)
    for order in ([2], [3, 0], [1, 3, 2, 0]):
        assert torch.equal(placed(placement, attended[order], IDS[order]), whole[order])
    rule = AttentionMask(placement=placement)
    for scores in (scores_without_ties(4, 8, 8), torch.ones(4, 8, 8)):
        assert torch.equal(rule.place(attended, scores, IDS), whole)
    assert all(not torch.equal(one, other) for one, other in combinations(whole, 2))
    other_seed = placed(placement, attended, IDS, seed=1)
    assert not any(torch.equal(one, other) for one, other in zip(whole, other_seed, strict=True))


@noised
def test_placements_that_draw_need_sample_ids(
    placement: Placement, classifier: Classifier, images: Tensor
) -> None:
    with pytest.raises(InputError, match=f"placed {placement} needs the images' sample ids"):
        replace(AREA, placement=placement)(classifier, images)


@noised
@pytest.mark.parametrize("count", [1, 2])
def test_sample_ids_of_another_batch_are_refused(count: int, placement: Placement) -> None:
    """One id would broadcast: every image's mask would move by the same shift."""
    with pytest.raises(ValueError, match=f"{count} sample ids given for a batch of 4"):
        placed(placement, torch.ones(4, 8, 8, dtype=torch.bool), IDS[:count])


def test_shifted_is_a_circular_shift_of_the_attended_mask() -> None:
    """On images that are not square: each axis has its own period. Four images, four shifts."""
    attended = AttentionMask(selection="area", threshold=0.3).select(scores_without_ties(4, 5, 9))
    moved = placed("shifted", attended, IDS)
    shifts = [
        [s for s in product(range(5), range(9)) if torch.equal(one.roll(s, (0, 1)), other)]
        for one, other in zip(attended, moved, strict=True)
    ]
    assert all(len(found) == 1 for found in shifts)
    assert len({found[0] for found in shifts}) == 4


def test_shifts_are_uniform_and_independent_in_both_directions() -> None:
    ids = torch.arange(20_000)
    corner = torch.zeros(len(ids), 5, 8, dtype=torch.bool)
    corner[:, 0, 0] = True
    landed = placed("shifted", corner, ids).flatten(1).double().argmax(1)
    assert stats.chisquare(torch.bincount(landed, minlength=40).numpy()).pvalue > 1e-3


def test_random_subsets_are_all_equally_likely() -> None:
    """Two pixels of 4x4: 120 subsets, 24,000 images."""
    ids = torch.arange(24_000)
    pair = torch.zeros(len(ids), 4, 4, dtype=torch.bool)
    pair[:, 0, :2] = True
    subset = placed("random", pair, ids).flatten(1).long() @ (2 ** torch.arange(16))
    seen = torch.unique(subset, return_counts=True)[1]
    assert len(seen) == 120
    assert stats.chisquare(seen.numpy()).pvalue > 1e-3


@noised
def test_a_defence_places_its_mask_by_the_noises_samples(
    placement: Placement, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """Whatever the draw, and for several draws of each sample in one batch."""
    rule = replace(AREA, placement=placement)
    defense = Defense(classifier, HeterogeneousPurifier(steps=10), denoiser, rule)
    mask, other = (rule(classifier, images, ids) for ids in (IDS, IDS + 1))
    noise = BatchNoise.stack([Noise.of(7, Stream.REPORT, k) for k in (0, 1)], IDS)
    twice = images.repeat(2, 1, 1, 1)
    purified, expected, wrong = (
        defense.purify(twice, noise, given if given is None else given.repeat(2, 1, 1, 1))
        for given in (None, mask, other)
    )
    assert torch.equal(purified, expected) and not torch.equal(purified, wrong)
