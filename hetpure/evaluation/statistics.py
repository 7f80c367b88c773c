"""Accuracies with 95% intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import hypot
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

CONFIDENCE = 0.95
RESAMPLES, CHUNK = 10_000, 500  # a chunk keeps the memory of large runs small
FEW = 5


@dataclass(frozen=True)
class Estimate:
    """A mean accuracy, its 95% interval, the samples and the noise draws a sample behind it."""

    accuracy: float
    low: float
    high: float
    n: int
    draws: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def wilson(correct: int, n: int, draws: int = 1) -> Estimate:
    """A proportion with Wilson's score interval."""
    interval = binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(correct / n, float(interval.low), float(interval.high), n, draws)


@dataclass(frozen=True)
class Difference:
    """A difference of two mean accuracies on the same n samples, with its 95% interval."""

    difference: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def mean_accuracy(correct: NDArray[np.bool_], seed: int = 0) -> Estimate:
    """Protocol `single`: the mean of correct (n, draws) over samples and draws.

    Percentile bootstrap over samples and, within each, over draws. Where every sample's draws
    agree the draws say nothing more and the interval is Wilson's. Where fewer than five samples
    are ever wrong, or ever right, a bootstrap cannot see the tail: its interval is widened to
    Wilson's at the nearest count of samples.
    """
    n, draws = correct.shape
    if (correct == correct[:, :1]).all():
        return wilson(int(correct[:, 0].sum()), n, draws)
    rates = correct.mean(1)
    low, high = _interval(_resampled_means([correct], seed)[0])
    if min((rates < 1).sum(), (rates > 0).sum()) < FEW:
        floor = wilson(round(float(rates.sum())), n)
        low, high = min(low, floor.low), max(high, floor.high)
    return Estimate(float(correct.mean()), float(low), float(high), n, draws)


def paired_difference(
    correct: NDArray[np.bool_], baseline: NDArray[np.bool_], seed: int = 0
) -> Difference:
    """Mean of correct (n, draws) minus mean of baseline (n, draws of its own), the same samples.

    Percentile bootstrap: both take the same resampled samples, each its own resampled draws. Where
    fewer than five samples do better, or worse, a bootstrap cannot see the tail: its interval is
    widened to the one that Wilson's intervals of both shares make (after Newcombe 1998: their
    distances from the shares, added as squares), at the nearest counts of samples. Draws are
    resampled independently for both, though they share noise: the interval is conservative.
    """
    if len(correct) != len(baseline):
        raise ValueError(f"{len(correct)} and {len(baseline)} samples cannot be paired")
    n = len(correct)
    ours, theirs = _resampled_means([correct, baseline], seed)
    low, high = _interval(ours - theirs)
    gain = correct.mean(1) - baseline.mean(1)
    difference = float(gain.mean())
    if min((gain > 0).sum(), (gain < 0).sum()) < FEW:
        up = wilson(round(float(gain.clip(min=0).sum())), n)
        down = wilson(round(float(-gain.clip(max=0).sum())), n)
        below = hypot(up.accuracy - up.low, down.high - down.accuracy)
        above = hypot(up.high - up.accuracy, down.accuracy - down.low)
        low, high = min(low, difference - below), max(high, difference + above)
    return Difference(difference, max(low, -1.0), min(high, 1.0), n)


def _resampled_means(observed: Sequence[NDArray[np.bool_]], seed: int) -> list[NDArray[np.float64]]:
    """Means over resampled samples, the same for every (n, draws) array given, and draws."""
    generator = np.random.default_rng(seed)
    n = len(observed[0])
    means: list[list[NDArray[np.float64]]] = [[] for _ in observed]
    for _ in range(RESAMPLES // CHUNK):
        rows = generator.integers(n, size=(CHUNK, n))
        for correct, found in zip(observed, means, strict=True):
            # A resampled sample's draws are a resample of its draws: binomial with its own rate.
            draws = correct.shape[1]
            found.append(generator.binomial(draws, correct.mean(1)[rows]).mean(1) / draws)
    return [np.concatenate(found) for found in means]


def _interval(means: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def majority(predictions: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, draws) predicted classes to the (n,) most frequent ones; -1 where two classes tie."""
    winners = np.full(len(predictions), -1, dtype=np.int64)
    for row, votes in enumerate(predictions):
        classes, counts = np.unique(votes, return_counts=True)
        best = counts == counts.max()
        if best.sum() == 1:
            winners[row] = classes[best][0]
    return winners


def vote_accuracy(predictions: NDArray[np.int64], labels: NDArray[np.int64]) -> Estimate:
    """Protocol `vote`: the majority of the draws; a tie counts as wrong."""
    correct = majority(predictions) == labels
    return wilson(int(correct.sum()), len(labels), predictions.shape[1])
