"""Accuracies and their paired differences, with 95% intervals."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import hypot, sqrt
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are used: stats takes half a second
from numpy.typing import NDArray

CONFIDENCE = 0.95
TAILS = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
RESAMPLES, CHUNK = 10_000, 500  # a chunk keeps the memory of large runs small
FEW = 5
BETS = np.arange(0.05, 1, 0.05)  # shares of what is owned


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
    interval = scipy.stats.binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
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


def mean_accuracy(correct: NDArray[np.bool_]) -> Estimate:
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
    low, high = np.quantile(_resampled_means(correct)[0], TAILS).tolist()
    if min((rates < 1).sum(), (rates > 0).sum()) < FEW:
        floor = wilson(round(float(rates.sum())), n)
        low, high = min(low, floor.low), max(high, floor.high)
    return Estimate(float(correct.mean()), low, high, n, draws)


def paired_difference(correct: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> Difference:
    """Mean of correct (n, draws) minus mean of baseline (n, draws of its own), the same samples.

    Percentile bootstrap: both take the same resampled samples, each its own resampled draws. Where
    fewer than five samples do better, or worse, a bootstrap cannot see the tail: its interval is
    widened to the one that Wilson's intervals of both shares make (after Newcombe 1998: their
    distances from the shares, added as squares), at the nearest counts of samples. Draws are
    resampled independently for both, though they share noise: the interval is conservative.

    There is no p-value: a bootstrap resamples what was seen, not what would be seen were there no
    difference.
    """
    if len(correct) != len(baseline):
        raise ValueError(f"{len(correct)} and {len(baseline)} samples cannot be paired")
    n = len(correct)
    ours, theirs = _resampled_means(correct, baseline)
    low, high = np.quantile(ours - theirs, TAILS).tolist()
    gain = correct.mean(1) - baseline.mean(1)
    difference = float(gain.mean())
    if min((gain > 0).sum(), (gain < 0).sum()) < FEW:
        up = wilson(round(float(gain.clip(min=0).sum())), n)
        down = wilson(round(float(-gain.clip(max=0).sum())), n)
        below = hypot(up.accuracy - up.low, down.high - down.accuracy)
        above = hypot(up.high - up.accuracy, down.accuracy - down.low)
        low, high = min(low, difference - below), max(high, difference + above)
    return Difference(difference, max(low, -1.0), min(high, 1.0), n)


def evidence(values: NDArray[np.float64], bound: float, low: float) -> float:
    """How much values (n,), none below `low`, speak against "their mean is at most `bound`".

    It is what a game pays that is fair, or worse, where the claim is true: whoever owns 1 and bets
    the share b of it on every value x ends with the product of 1 + b (x - bound) / (bound - low).
    The result is the mean over several shares, an e-value. Under the claim it reaches 1 / alpha
    with a probability of at most alpha, however many values there are and however often it is
    looked at while they come (Ville 1939; Waudby-Smith & Ramdas, JRSS B 86, 2024).
    """
    stakes = (np.asarray(values, dtype=np.float64) - bound) / (bound - low)
    wealth = np.log1p(BETS[:, None] * stakes).sum(1)
    highest = float(wealth.max())
    return float(np.exp(np.minimum(highest, 700))) * float(np.exp(wealth - highest).mean())


def visible(n: int, needed: float, bound: float, low: float = -1.0) -> float | None:
    """The smallest mean at which n values reach the `needed` evidence against `bound`, where as few
    as possible of them are 1 and the others 0; None where n values are too few for any."""
    for ones in range(n + 1):
        if evidence((np.arange(n) < ones).astype(float), bound, low) >= needed:
            return ones / n
    return None


def holm(evidences: Mapping[str, float], level: float, weights: Mapping[str, float]) -> set[str]:
    """Which claims are rejected, by the evidence against each: the probability that any true one is
    among them is at most `level`, whatever they have to do with one another (Holm 1979, section 4,
    with 1 over the evidence for a p-value). A claim of a larger weight asks for less evidence."""
    rejected: set[str] = set()
    left = sum(weights[name] for name in evidences)
    for name in sorted(evidences, key=lambda name: -evidences[name] * weights[name]):
        if evidences[name] * weights[name] < left / level:
            break
        rejected.add(name)
        left -= weights[name]
    return rejected


def in_points(difference: Mapping[str, Any]) -> str:
    """A `Difference` as a dictionary, in points with its interval; what rounds to 0 is +0.0."""
    keys = ("difference", "low", "high")
    middle, low, high = (round(100 * difference[key], 1) + 0.0 for key in keys)
    return f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"


def _resampled_means(*observed: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Means over resampled samples, the same for every (n, draws) array given, and draws."""
    generator = np.random.default_rng(0)
    n = len(observed[0])
    means: list[list[NDArray[np.float64]]] = [[] for _ in observed]
    for _ in range(RESAMPLES // CHUNK):
        rows = generator.integers(n, size=(CHUNK, n))
        for correct, chunks in zip(observed, means, strict=True):
            # Draws of a resampled sample are resampled too: binomial, with the sample's rate.
            draws = correct.shape[1]
            chunks.append(generator.binomial(draws, correct.mean(1)[rows]).mean(1) / draws)
    return [np.concatenate(chunks) for chunks in means]


def attack_success(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Estimate:
    """Of the samples that are right before the attack, the share that is wrong after it.

    Both are (n,), one outcome a sample: of several draws their majority vote (a tie is wrong). A
    mean over draws has no clean-correct samples to speak of. Where nothing was right before,
    nothing is known: n is 0 and the interval [0, 1].
    """
    lost = ~after[before]
    return wilson(int(lost.sum()), lost.size) if lost.size else Estimate(0.0, 0.0, 1.0, 0, 1)


@dataclass(frozen=True)
class McNemar:
    """Samples that only the first, or only the second, has right; and the two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Exact McNemar test of two (n,) outcomes on the same samples.

    Were both equally good, each sample that only one of them has right would be the first's with
    probability 1/2: a binomial test of these. No such sample is no evidence: p = 1.
    """
    _, b, c, _ = _pairs(first, second)
    return McNemar(b, c, float(scipy.stats.binomtest(b, b + c).pvalue) if b + c else 1.0)


def paired_proportions(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Difference:
    """Share of `first` minus share of `second`, both (n,) outcomes on the same samples.

    Newcombe's paired score interval (Statistics in Medicine 17, 1998, 2635-2650, method 10). With
    both right a times, the first only b, the second only c and none d times, p1 = (a + b)/n and
    p2 = (a + c)/n have Wilson's intervals [l1, u1] and [l2, u2], and

        low  = p1 - p2 - sqrt((p1 - l1)^2 - 2 phi (p1 - l1)(u2 - p2) + (u2 - p2)^2)
        high = p1 - p2 + sqrt((u1 - p1)^2 - 2 phi (u1 - p1)(p2 - l2) + (p2 - l2)^2)

    where phi is the outcomes' correlation, its numerator ad - bc taken n/2 nearer to 0 where it is
    positive, but not below 0; phi is 0 where a marginal is. At small n it covers more than 95%, but
    down to 88% where the truth is that a few in a hundred differ, all one way: McNemar's exact
    p-value is the stricter of the two there.
    """
    a, b, c, d = _pairs(first, second)
    n = a + b + c + d
    ours, theirs = wilson(a + b, n), wilson(a + c, n)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    agreement = float(a * d - b * c)
    if agreement > 0:
        agreement = max(agreement - n / 2, 0.0)
    phi = agreement / sqrt(margins) if margins else 0.0

    def joint(x: float, y: float) -> float:
        return sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    difference = (b - c) / n
    low = difference - joint(ours.accuracy - ours.low, theirs.high - theirs.accuracy)
    high = difference + joint(ours.high - ours.accuracy, theirs.accuracy - theirs.low)
    return Difference(difference, max(low, -1.0), min(high, 1.0), n)


def _pairs(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Samples that both have right, the first only, the second only, none."""
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} and {len(second)} samples cannot be paired")
    counts = (first & second, first & ~second, ~first & second, ~first & ~second)
    a, b, c, d = (int(count.sum()) for count in counts)
    return a, b, c, d


def exchangeable(
    claimed: NDArray[np.bool_], counted: NDArray[np.bool_], level: float
) -> tuple[float, float]:
    """The lowest and the highest mean of `claimed` (n, R) that agree with `counted` (n, S), draws
    of the same n samples, at a level as 0.95.

    Were the draws of both alike, each split of a sample's R + S answers would be equally likely, so
    that its right answers among the R are hypergeometric given how many of all are right. The sum
    over samples is a convolution. A claim outside the central interval of that sum has a
    probability of at most 1 - level. It is the exact test of Cochran, Mantel and Haenszel, each
    sample a stratum, and McNemar's where R = S = 1. Which samples are hard plays no part.
    """
    draws, total = claimed.shape[1], claimed.shape[1] + counted.shape[1]
    right, samples = np.unique(claimed.sum(1) + counted.sum(1), return_counts=True)
    answers = claimed.size
    spectrum = np.ones((answers + 1) // 2 + 1, dtype=np.complex128)
    for count, repeats in zip(right, samples, strict=True):
        chances = scipy.stats.hypergeom(total, count, draws).pmf(np.arange(draws + 1))
        spectrum *= np.fft.rfft(chances, answers + 1) ** repeats
    below = np.fft.irfft(spectrum, answers + 1).clip(min=0).cumsum()
    tail = (1 - level) / 2
    low, high = np.searchsorted(below, tail, "right"), np.searchsorted(below, 1 - tail, "left")
    return float(low) / answers, min(float(high), answers) / answers
