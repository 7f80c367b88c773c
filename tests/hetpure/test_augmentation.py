"""Augmentations: which images they can give, how often, and that they are addressed."""

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from hetpure.augmentation import flip, shift
from hetpure.noise import BatchNoise, Noise, Stream


def rows(samples: Tensor, update: int = 0) -> BatchNoise:
    return Noise.of(3, Stream.TRAIN, update).on(samples)


def image(height: int = 4, width: int = 5, channels: int = 2) -> Tensor:
    """Every pixel has its own positive value, so no two moves give the same image."""
    values = torch.arange(1.0, 1 + channels * height * width)
    return values.reshape(1, channels, height, width)


def moved_by_hand(source: Tensor, down: int, right: int) -> Tensor:
    """One image (C, H, W) moved pixel by pixel; what comes in is 0."""
    result = torch.zeros_like(source)
    _, height, width = source.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[:, y, x] = source[:, y - down, x - right]
    return result


def test_flip_mirrors_half_of_the_images_left_right() -> None:
    count = 4000
    images = image().expand(count, -1, -1, -1)
    flipped = flip(images, rows(torch.arange(count)))
    mirrored = (flipped == images.flip(-1)).all((1, 2, 3))
    kept = (flipped == images).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert stats.binomtest(int(mirrored.sum()), count).pvalue > 1e-3


@pytest.mark.parametrize("pixels", [1, 2])
def test_shift_gives_every_move_equally_often_and_no_other(pixels: int) -> None:
    """Both directions, the ends of the range and zeros at the border, against a plain loop."""
    count, side = 4000, 2 * pixels + 1
    moves = [(down, right) for down in range(side) for right in range(side)]
    possible = torch.stack([moved_by_hand(image()[0], d - pixels, r - pixels) for d, r in moves])
    shifted = shift(image().expand(count, -1, -1, -1), rows(torch.arange(count)), pixels)
    matches = (shifted[:, None] == possible[None]).flatten(2).all(-1)
    assert (matches.sum(1) == 1).all()
    assert stats.chisquare(matches.sum(0).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("augment", [flip, lambda x, n: shift(x, n, 2)], ids=["flip", "shift"])
def test_augmentation_depends_on_the_sample_and_the_update_only(
    augment: Callable[[Tensor, BatchNoise], Tensor],
) -> None:
    """Whatever batch and rank a sample is in it looks the same, and differs in the next epoch."""
    samples = torch.arange(40)
    images = image().expand(40, -1, -1, -1)
    whole = augment(images, rows(samples))
    parts = [augment(images[: len(part)], rows(part)) for part in samples.split([1, 30, 9])]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(augment(images, rows(samples.flip(0))), whole.flip(0))
    assert not torch.equal(augment(images, rows(samples, update=1)), whole)


def test_flip_and_shift_of_one_update_are_independent() -> None:
    """They share a purpose: were their addresses equal, flipped images would all move one way."""
    count = 4000
    noise = rows(torch.arange(count))
    marker = torch.zeros(1, 1, 3, 3)
    marker[..., 1, 1] = 1  # flip keeps the centre: where it stands is the move
    moved = shift(marker.expand(count, -1, -1, -1), noise, 1).flatten(1).argmax(1)
    mirrored = (flip(image().expand(count, -1, -1, -1), noise)[:, 0, 0, 0] != 1).long()
    table = torch.bincount(2 * moved + mirrored, minlength=18).reshape(9, 2)
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3
    down, right = moved // 3, moved % 3
    table = torch.bincount(3 * down + right, minlength=9).reshape(3, 3)
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3
