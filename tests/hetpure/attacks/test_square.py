"""Square Attack against its paper's formulas, and the rules of its random search."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hetpure.attacks import Addresses
from hetpure.attacks.square import (
    Square,
    bump,
    eta,
    places,
    propose_l2,
    propose_linf,
    share_of_pixels,
    signs,
    stripes,
    tiles,
    window,
)
from hetpure.classifiers import Classifier
from hetpure.denoiser import Denoiser
from hetpure.noise import Purpose, Stream
from hetpure.purifiers import HeterogeneousPurifier
from tests.hetpure.attacks.defenses import NOISE, Counter, Noisy, Spy, target_of, templates

MANY = torch.arange(4000)
norms = pytest.mark.parametrize("norm", ["linf", "l2"])
FLAT = torch.zeros(1, dtype=torch.float64)


def square(**settings: Any) -> Square:
    return Square(**{"epsilon": 0.1, "steps": 60, "eot_samples": 2} | settings)


def test_share_of_pixels_by_hand() -> None:
    """Halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 steps."""
    shares = [share_of_pixels(0.8, step, 10_000) for step in range(1, 10_001)]
    assert shares == sorted(shares, reverse=True)
    changes = [step for step in range(1, 10_000) if shares[step] < shares[step - 1]]
    assert changes == [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    assert shares[0] == 0.8 and shares[-1] == 0.8 / 512
    assert [share_of_pixels(0.8, step, 100) for step in (1, 2, 4, 100)] == [
        0.8, 0.2, 0.1, 0.8 / 512
    ]  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (2, 5), (5, 5), (6, 13)])
def test_bump_is_the_sum_of_the_paper(height: int, width: int) -> None:
    """Squares around the centre, the k-th 2k + 1 wide and 1 / (k + 1)^2 high, cut at the sides."""
    expected = torch.zeros(height, width, dtype=torch.float64)
    for k in range(max(height, width) // 2 + 1):
        for r in range(height):
            for c in range(width):
                if max(abs(r - height // 2), abs(c - width // 2)) <= k:
                    expected[r, c] += 1 / (k + 1) ** 2
    torch.testing.assert_close(bump(height, width, FLAT), expected / expected.norm())


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_eta_is_two_opposite_bumps(size: int) -> None:
    pattern = eta(size, FLAT)
    assert float(pattern.norm()) == pytest.approx(1)
    assert (pattern[: size // 2] > 0).all() and (pattern[size // 2 :] < 0).all()
    if size % 2 == 0:
        assert torch.equal(pattern[: size // 2], -pattern[size // 2 :])


def test_squares_lie_anywhere_inside() -> None:
    """All four by three places, alike often: within five standard deviations."""
    images, noise = torch.zeros(4000, 1, 8, 7), NOISE.on(MANY)
    place = places(noise, images, 5, step=0)
    counts = torch.bincount(place[:, 0] * 3 + place[:, 1], minlength=12)
    assert len(counts) == 12
    assert ((counts - 4000 / 12).abs() < 5 * math.sqrt(4000 / 12)).all()
    assert not torch.equal(place, places(noise, images, 5, step=1))
    inside = window(place, 5, images)
    assert (inside.sum((1, 2, 3)) == 25).all()
    for row in range(20):
        (top, left) = place[row].tolist()
        assert inside[row, 0, top : top + 5, left : left + 5].all()


def test_start_is_stripes_or_tiles() -> None:
    images, noise = torch.zeros(4000, 2, 11, 10), NOISE.on(MANY)
    striped = stripes(noise, images)
    assert (striped == striped[:, :, :1]).all() and (striped.abs() == 1).all()
    share = (striped[:, :, 0] > 0).double().mean(0)
    assert ((share - 0.5).abs() < 5 * 0.5 / math.sqrt(4000)).all()
    tiled = tiles(noise, images)
    assert not tiled[:, :, 10:].any()  # five tiles of two rows, the rest below
    torch.testing.assert_close(tiled.square().sum((2, 3)), torch.full((4000, 2), 25.0))
    corner, pattern = tiled[:, 0, :2, :2], eta(2, images)
    kinds = torch.stack([pattern, -pattern, pattern.T, -pattern.T])
    counts = torch.stack([(corner == kind).all((1, 2)).sum() for kind in kinds])
    assert int(counts.sum()) == 4000 and ((counts - 1000).abs() < 5 * math.sqrt(1000)).all()


def test_a_step_in_linf_moves_one_square_to_the_side_of_the_ball() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(50, 3, 8, 8, generator=generator, dtype=torch.float64)
    x = (images + 0.2 * torch.rand(images.shape, generator=generator) - 0.1).clamp(0, 1)
    noise = NOISE.on(MANY[:50])
    moved = propose_linf(x, images, 0.1, 3, noise)
    inside = window(places(noise, images, 3, step=0), 3, images).expand_as(images)
    assert torch.equal(moved[~inside], x[~inside])
    up, down = (images + 0.1).clamp(0, 1), (images - 0.1).clamp(0, 1)
    is_up = torch.isclose(moved, up).flatten(2) | ~inside.flatten(2)
    is_down = torch.isclose(moved, down).flatten(2) | ~inside.flatten(2)
    assert (is_up.all(2) | is_down.all(2)).all()  # one side in each channel
    assert (signs(noise, Purpose.PERTURBATION, images[:, :, :1, :1], step=1) > 0)[:, :, 0, 0].equal(
        is_up.all(2)
    )


def test_a_step_in_l2_spends_two_windows_in_one() -> None:
    """The norm of the offset stays the radius, that of each channel what it was; the second window
    goes back to the image; elsewhere nothing changes."""
    images = torch.full((50, 3, 9, 9), 0.5, dtype=torch.float64)
    offset = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).double()
    offset *= 0.4 / offset.flatten(1).norm(dim=1)[:, None, None, None]
    noise = NOISE.on(MANY[:50])
    moved = propose_l2(images + offset, images, 0.4, 3, noise) - images
    first, second = (
        window(places(noise, images, 3, step=step), 3, images).expand_as(images) for step in (0, 1)
    )
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((50,), 0.4).double())
    torch.testing.assert_close(moved.flatten(2).norm(dim=2), offset.flatten(2).norm(dim=2))
    torch.testing.assert_close(moved[~first & ~second], offset[~first & ~second])
    assert (moved[second & ~first].abs() < 1e-12).all()
    assert not torch.isclose(moved[first], offset[first]).any()
    # What is not yet spent of the ball, 0.3 of 0.5, is spent too.
    moved = propose_l2(images + 0.75 * offset, images, 0.5, 3, noise) - images
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((50,), 0.5).double())


@norms
def test_nothing_finished_is_asked_again(norm: str) -> None:
    """An answer that is certain and wrong ends the search for its image, which stays as it is."""
    classifier, images, labels = templates()
    defense, count, ids = Spy(classifier), Counter(), torch.arange(40)
    attack = square(norm=norm, epsilon=0.15 if norm == "linf" else 1.2)
    (candidate,) = attack(target_of(defense, images, labels, Addresses(ids, NOISE), count))
    assert count.queries == [len(call.images) for call in defense.calls]
    assert count.queries[0] == 40 and len(count.queries) <= attack.cost(defense).queries == 61
    assert count.queries == sorted(count.queries, reverse=True)
    wrong = torch.zeros(40, dtype=torch.bool)
    for call in defense.calls:
        asked, noise = call.images, call.noise
        assert not wrong[noise.samples].any()
        now = classifier(asked).argmax(1) != labels[noise.samples]
        wrong[noise.samples] |= now
        assert torch.equal(asked[now], candidate[noise.samples[now]])
    assert torch.equal(classifier(candidate).argmax(1) != labels, wrong)
    assert 0 < int(wrong.sum()) < 40


def test_a_lucky_draw_is_not_kept() -> None:
    """An image and its proposal are compared on the same fresh draws, all told and counted."""
    classifier, images, labels = templates()
    defense, count, ids = Noisy(classifier), Counter(), torch.arange(40)
    attack = square(steps=5, eot_samples=3)
    attack(target_of(defense, images, labels, Addresses(ids, NOISE), count))
    assert sum(count.queries) == 40 * attack.cost(defense).queries == 40 * 5 * 2 * 3
    seen = set()
    for call in defense.calls:
        asked, noise = call.images, call.noise
        assert torch.equal(noise.samples, ids.repeat(2))
        assert len(noise.reverse[:, 1].unique()) == 1 and not torch.equal(asked[:40], asked[40:])
        assert set(noise.reverse[:, 0].tolist()) == {Stream.ATTACK}
        seen.add(int(noise.reverse[0, 1]))
    assert len(seen) == 5 * 3  # no two steps and no two draws share numbers


def test_mask_is_that_of_each_proposal(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    defense = Spy(classifier, HeterogeneousPurifier(steps=10), denoiser)
    square(epsilon=0.3, steps=2)(target_of(defense, images))
    for call in defense.calls:
        assert torch.equal(call.mask, defense.mask(call.images, call.noise.samples))
