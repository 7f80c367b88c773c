"""Distances between clean and adversarial images at each stage."""

import pytest
import torch
from torch import Tensor

from hetpure.analysis import Gap
from hetpure.analysis.gap import (
    ADVERSARIAL,
    BEFORE,
    DRAWS,
    FEATURES,
    NEARER,
    PIXELS,
    PURIFIED,
    SHIFT,
    START,
    distances,
    levels_of,
    scaled,
    start,
    strength,
)
from hetpure.classifiers import Classifier, LastFeatures
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Block, Protocol
from hetpure.noise import Noise, Stream
from hetpure.purifiers import HeterogeneousPurifier, LikelihoodPurifier, UniformPurifier
from hetpure.schedule import linear_schedule
from tests.hetpure.analysis.subjects import SAMPLES, pgd, subject
from tests.hetpure.attacks.defenses import LABELS, linear
from tests.hetpure.networks import Optimal


def test_a_planted_gap_is_found_at_every_stage(images: Tensor) -> None:
    """The attack ends in a corner of the ball, 0.1 in each of 64 pixels: a distance of 0.8. The
    same noise leaves sqrt(abar) of it; the best denoiser of Gaussian data, in one step from t, is
    linear: of a difference in the state it leaves sqrt(abar) S^2 / v."""
    schedule = linear_schedule()
    denoiser = Denoiser(Optimal(schedule), schedule).double()
    weight = torch.ones(2, 64, dtype=torch.float64)
    weight[1] = -1
    defense = Defense(
        linear(weight), UniformPurifier(strength=0.1, steps=1), denoiser, policy="tape"
    )
    row = subject(defense, pgd(steps=1))
    block = Block(images, LABELS, SAMPLES)
    analysis = Gap(scales=(1.0, 2.0), draws=2)
    records = analysis.examine(row, block)
    summary = analysis.summarise({"row": records})

    def mean(stage: str, space: str) -> list[float]:
        return [line.value for line in summary.of("row", f"{stage}, {ADVERSARIAL}", space)]

    assert mean(BEFORE, PIXELS) == pytest.approx([0.8])
    assert mean(BEFORE, FEATURES) == pytest.approx([0.8]), "a flat image is its own features"
    alphas = [schedule.alpha_cumprod(index) for index in (100, 200)]
    assert mean(START, PIXELS) == pytest.approx([0.8 * alpha**0.5 for alpha in alphas])
    assert [line.at for line in summary.of("row", f"{START}, {DRAWS}", PIXELS)] == [0.1, 0.2]
    # Of x = sqrt(a) x0 + sqrt(1 - a) n in model units, which are twice the pixel's.
    shifts = [2 * 0.8 * (alpha / (1 - alpha)) ** 0.5 for alpha in alphas]
    assert mean(START, SHIFT) == pytest.approx(shifts)
    left = [a * 0.25**2 / (a * 0.25**2 + 1 - a) for a in alphas]
    assert mean(PURIFIED, PIXELS) == pytest.approx([0.8 * share for share in left], rel=1e-6)
    nearer = {line.at: line.value for line in summary.of("row", NEARER, PIXELS)}
    assert nearer == pytest.approx({0.1: 0.8 * (left[0] - 1), 0.2: 0.8 * (left[1] - 1)}, rel=1e-6)
    assert len(summary.of("row", NEARER, FEATURES)) == 2


def test_two_draws_are_as_far_apart_as_their_noise(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    purifier = UniformPurifier(strength=0.1, steps=20)
    defense = Defense(classifier, purifier, denoiser, policy="tape")
    row = subject(defense, pgd(steps=1, eot_samples=1), protocol=Protocol(1, 1))
    analysis = Gap(scales=(0.5, 1.0), draws=2)
    with count_network_calls(defense) as calls:
        (record,) = analysis.examine(row, Block(images[:1], LABELS[:1], SAMPLES[:1]))
    assert sum(calls) <= analysis.work(row).calls, "one attack serves all levels"
    (noise,) = (
        gap["distance"]
        for gap in record["gaps"]
        if (gap["stage"], gap["space"], gap["pair"], gap["level"]) == (START, PIXELS, DRAWS, 0.1)
    )
    spread = (1 - linear_schedule().alpha_cumprod(100)) ** 0.5
    assert noise == pytest.approx(spread * (2 * 64) ** 0.5 / 2, rel=0.35), "half, in pixel units"


def test_without_a_purifier_there_is_one_stage(
    linear_classifier: Classifier, images: Tensor
) -> None:
    row = subject(Defense(linear_classifier))
    summary = Gap().summarise({"row": Gap().examine(row, Block(images, LABELS, SAMPLES))})
    assert {line.quantity for line in summary.lines} == {f"{BEFORE}, {ADVERSARIAL}"}
    assert "row: it has no purifier, so there is one stage" in summary.notes


def test_distances_by_hand(linear_classifier: Classifier) -> None:
    clean = torch.zeros(2, 1, 1, 8, 8, dtype=torch.float64)
    attacked = clean.clone()
    attacked[0, 0, 0, 0, 0], attacked[1, 0, 0, 0, 0], clean[1, 0, 0, 7, 7] = 3, 5, 2
    attacked[1, 0, 0, 7, 7] = 2
    found = {
        (space, pair): float(values)
        for space, pair, values in distances(clean, attacked, LastFeatures(linear_classifier))
    }
    assert found[PIXELS, ADVERSARIAL] == pytest.approx(4)
    assert found[PIXELS, DRAWS] == pytest.approx(2)


def test_levels_are_scaled_together_and_stay_below_one() -> None:
    purifier = HeterogeneousPurifier(t_large=0.4, t_small=0.2)
    assert levels_of(scaled(purifier, 1.5, "row")) == pytest.approx(
        {"t_large": 0.6, "t_small": 0.3}
    )
    with pytest.raises(InputError, match="above 1"):
        scaled(purifier, 3, "row")
    with pytest.raises(InputError, match="even"):
        Gap(draws=3)


def test_the_level_is_where_the_purification_starts(classifier: Classifier) -> None:
    """A fused jump of the published order goes up first; a likelihood begins with the image."""
    schedule = linear_schedule()
    denoiser = Denoiser(Optimal(schedule), schedule)
    published = HeterogeneousPurifier(steps=20, resampling="fused", known="departure")
    assert published.plan(schedule)[0].via > 200
    assert strength(Defense(classifier, published, denoiser)) == 0.2
    assert strength(Defense(classifier, LikelihoodPurifier(steps=1), denoiser)) == 0
    row = subject(Defense(classifier, LikelihoodPurifier(steps=1), denoiser))
    assert Gap().variants(row) == [(0, row)], "no field of it is a level"


def test_a_heterogeneous_start_is_the_stronger_noise_in_all_pixels(
    classifier: Classifier, denoiser: Denoiser, images: Tensor
) -> None:
    """And not x(t_l, t_s), which the gallery of a report shows."""
    noise = Noise.of(7, Stream.PROBE)
    uneven, even = (
        start(Defense(classifier, purifier, denoiser), images, SAMPLES, noise)
        for purifier in (
            HeterogeneousPurifier(t_large=0.2, t_small=0.1, steps=20),
            UniformPurifier(strength=0.2, steps=20),
        )
    )
    assert torch.equal(uneven, even)


def test_the_shift_is_counted_at_the_size_that_is_purified(images: Tensor) -> None:
    """A flat difference of 0.1 has twice the norm on 16 x 16 pixels, and their noise is as strong:
    it is told apart twice as well."""
    schedule = linear_schedule()
    denoiser = Denoiser(Optimal(schedule), schedule).double()
    weight = torch.ones(2, 64, dtype=torch.float64)
    weight[1] = -1
    labels, alpha = torch.zeros(4, dtype=torch.int64), schedule.alpha_cumprod(100)
    defense = Defense(
        linear(weight),
        UniformPurifier(strength=0.1, steps=1),
        denoiser,
        policy="tape",
        purified_size=16,
    )
    analysis = Gap(scales=(1.0,), draws=2)
    records = analysis.examine(subject(defense, pgd(steps=1)), Block(images, labels, SAMPLES))
    summary = analysis.summarise({"row": records})
    (shift,) = summary.of("row", f"{START}, {ADVERSARIAL}", SHIFT)
    assert shift.value == pytest.approx(2 * 1.6 * (alpha / (1 - alpha)) ** 0.5)
    (pixels,) = summary.of("row", f"{START}, {ADVERSARIAL}", PIXELS)
    assert pixels.value == pytest.approx(0.8 * alpha**0.5), "at the size of the images"


def test_distances_are_paired_and_their_intervals_hold_none_below_zero() -> None:
    """Images differ a lot, and each gets nearer by 1: the paired interval says so, the two
    distances' own do not."""

    def gap(stage: str, level: float | None, distance: float) -> dict[str, object]:
        place = {"space": FEATURES, "pair": ADVERSARIAL, "stage": stage, "level": level}
        return place | {"distance": distance}

    records = [
        {
            "stochastic": True,
            "gaps": [gap(BEFORE, None, far), gap(PURIFIED, 0.1, far - 1 + 0.01 * k)],
        }
        for k, far in enumerate((2.0, 1.0, 30.0))
    ]
    summary = Gap().summarise({"row": records})
    (before,) = summary.of("row", f"{BEFORE}, {ADVERSARIAL}", FEATURES)
    assert (before.value, before.low, before.n) == (11, 0, 3)
    (nearer,) = summary.of("row", NEARER, FEATURES)
    assert (nearer.value, nearer.at, nearer.n) == (pytest.approx(-0.99), 0.1, 3)
    assert nearer.high is not None and nearer.high < -0.9
