"""RBGM, the perturbation's strength and mixing, against the paper's numbers."""

import itertools
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from scipy import stats
from torch import Tensor

from hetpure.addt import mix_noise, perturbation_ratio, rank_gaussian
from hetpure.noise import Purpose
from hetpure.schedule import linear_schedule
from tests.hetpure.networks import rows

SCHEDULE = linear_schedule()
LEVELS = torch.tensor(SCHEDULE.alphas_cumprod, dtype=torch.float64)
GAMMA = (LEVELS / (1 - LEVELS)).sqrt()


def rank_inputs(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """(values, draw, tie breaker) of one shape, all addressed."""
    noise, like = rows(shape[0]), torch.empty(shape)
    return (
        noise.normal(Purpose.PERTURBATION, like),
        noise.normal(Purpose.RANK, like),
        noise.uniform(Purpose.TIES, like),
    )


# --- RBGM ---


def test_rank_gaussian_gives_the_worked_example() -> None:
    """SPEC section 3, one row of seven values."""
    values = torch.tensor([0.5, -2.2, -1.4, 7.2, 5.1, -0.6, 1.1]).reshape(1, 1, 1, 7)
    draw = torch.tensor([1.2, 0.0, -1.6, 0.8, -0.6, 0.4, -0.2]).reshape(1, 1, 1, 7)
    expected = torch.tensor([0.0, -1.6, -0.6, 1.2, 0.8, -0.2, 0.4]).reshape(1, 1, 1, 7)
    assert torch.equal(rank_gaussian(values, draw, torch.zeros(1, 1, 1, 7)), expected)


@pytest.mark.parametrize("per", ["channel", "image"])
def test_rank_gaussian_is_the_exact_multiset_in_the_order_of_the_input(
    per: Literal["channel", "image"],
) -> None:
    values, draw, ties = rank_inputs(3, 2, 4, 5)
    start = 2 if per == "channel" else 1
    result = rank_gaussian(values, draw, ties, per)
    assert result.shape == values.shape
    flat = result.flatten(start)
    assert torch.equal(flat.sort(-1).values, draw.flatten(start).sort(-1).values)
    assert torch.equal(flat.argsort(-1), values.flatten(start).argsort(-1))


def test_rank_gaussian_ranks_channels_apart_by_default_and_images_whole_on_request() -> None:
    """A second channel far above the first: per channel it gets its own draw, per image the
    larger half of all numbers."""
    values, draw, ties = rank_inputs(2, 2, 4, 4)
    values[:, 1] += 100
    default, image = rank_gaussian(values, draw, ties), rank_gaussian(values, draw, ties, "image")
    assert torch.equal(default, rank_gaussian(values, draw, ties, "channel"))
    assert torch.equal(default[:, 1].flatten(1).sort().values, draw[:, 1].flatten(1).sort().values)
    assert (image[:, 1].amin((1, 2)) > image[:, 0].amax((1, 2))).all()
    alone = rank_gaussian(values[1:], draw[1:], ties[1:], "image")
    assert torch.equal(alone, image[1:])  # never ranked across samples


@pytest.mark.parametrize(
    "transform",
    [torch.exp, torch.atan, lambda v: v**3, lambda v: 1e-20 * v, lambda v: 1e6 * v + 5e6],
    ids=["exp", "atan", "cube", "tiny", "affine"],
)
def test_rank_gaussian_ignores_increasing_transforms(
    transform: Callable[[Tensor], Tensor],
) -> None:
    """Only the order counts: the size of a gradient, 1e-20 included, must not matter."""
    values, draw, ties = rank_inputs(2, 3, 6, 6)
    values = values.double()
    assert torch.equal(
        rank_gaussian(transform(values), draw, ties), rank_gaussian(values, draw, ties)
    )
    assert not torch.equal(rank_gaussian(-values, draw, ties), rank_gaussian(values, draw, ties))


@pytest.mark.parametrize(
    ("values", "orders"),
    [
        ([0.0, 0.0, 0.0], list(itertools.permutations(range(3)))),
        ([2.0, 1.0, 2.0, 1.0], [(2, 0, 3, 1), (2, 1, 3, 0), (3, 0, 2, 1), (3, 1, 2, 0)]),
    ],
    ids=["all-equal", "two-pairs"],
)
def test_equal_values_are_ordered_uniformly(
    values: list[float], orders: list[tuple[int, ...]]
) -> None:
    """Every order that agrees with the values, and no other, equally often (chi-square)."""
    count, size = 6000, len(values)
    like = torch.empty(count, 1, 1, size)
    tied = torch.tensor(values).expand_as(like)
    draw = torch.arange(float(size)).expand_as(like)
    ranks = rank_gaussian(tied, draw, rows(count).uniform(Purpose.TIES, like)).reshape(count, size)
    found = [tuple(int(rank) for rank in row) for row in ranks.tolist()]
    assert set(found) == set(orders)
    assert stats.chisquare([found.count(order) for order in orders]).pvalue > 1e-3


# --- strength and mixing ---


def test_perturbation_ratio_has_the_numbers_of_the_spec() -> None:
    """SPEC section 3: the cap of .3 for t <= 26, .0877 at 100, .0087 at 500."""
    ratio = perturbation_ratio(GAMMA)
    assert (ratio == 0.3).nonzero().flatten().tolist() == list(range(27))
    assert float(ratio[100]) == pytest.approx(0.0877, abs=5e-5)
    assert float(ratio[500]) == pytest.approx(0.0087, abs=5e-5)
    assert (ratio.diff() <= 0).all()
    assert (ratio > 0).all()


def test_perturbation_has_constant_strength_in_pixels_off_the_cap() -> None:
    """lambda_t sqrt(1-abar) eps_delta is what is added to sqrt(abar) x0: in units of x0 its
    standard deviation is `scale` at every t off the cap, and less on it."""
    for scale, cap in ((0.03, 0.3), (0.01, 0.5)):
        ratio = perturbation_ratio(GAMMA, scale, cap)
        pixels = ratio * (1 - LEVELS).sqrt() / LEVELS.sqrt()
        free = ratio < cap
        assert 0 < int(free.sum()) < 1000
        torch.testing.assert_close(pixels[free], torch.full_like(pixels[free], scale))
        assert (pixels[~free] <= scale).all()
        assert (ratio[~free] == cap).all()


def test_mixing_is_variance_preserving_and_has_the_share_of_the_perturbation() -> None:
    """Exact on unit vectors: the squares of the two weights are 1 - lambda^2 and lambda^2; and
    one ratio a sample."""
    ratio = torch.tensor([0.0, 0.3, 0.6, 1.0]).double().reshape(-1, 1, 1, 1)
    one, zero = torch.ones(4, 1, 1, 1).double(), torch.zeros(4, 1, 1, 1).double()
    share = mix_noise(zero, one, ratio)
    rest = mix_noise(one, zero, ratio)
    assert torch.equal(share, ratio)
    torch.testing.assert_close(share**2 + rest**2, one)
    assert float(mix_noise(one, one, ratio)[2]) == pytest.approx(0.8 + 0.6)
