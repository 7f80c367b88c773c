"""The numbers of an analysis: one line each, with n and its 95% interval."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from math import inf, sqrt

import numpy as np
import scipy
from numpy.typing import NDArray

from hetpure.evaluation.statistics import TAILS, mean_accuracy, paired_difference


@dataclass(frozen=True)
class Line:
    """One number.

    Args:
        row: of the table.
        series: what tells curves of one quantity apart, as a sampler; empty where there is one.
        quantity: what it is.
        at: where on the horizontal axis it stands, if there is one.
        value: the number.
        low: end of its 95% interval; None where n = 1, and of a mean where all values are equal.
        high: the other end.
        n: images behind it.
    """

    row: str
    series: str
    quantity: str
    at: float | None
    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Place:
    """Where a number belongs: all that a line says of it but for the number itself."""

    row: str
    quantity: str
    series: str = ""
    at: float | None = None

    def line(self, value: float, low: float | None, high: float | None, n: int) -> Line:
        """The line of a number; of one image there is no interval."""
        if n < 2:
            low = high = None
        return Line(self.row, self.series, self.quantity, self.at, value, low, high, n)


def accuracy_line(place: Place, right: Sequence[Sequence[bool]]) -> Line:
    """Mean accuracy of outcomes (n, draws), with the interval of `mean_accuracy`."""
    estimate = mean_accuracy(np.array(right))
    return place.line(estimate.accuracy, estimate.low, estimate.high, estimate.n)


def difference_line(
    place: Place, right: Sequence[Sequence[bool]], less: Sequence[Sequence[bool]]
) -> Line:
    """Difference of two mean accuracies on the same images, with the interval of
    `paired_difference`."""
    found = paired_difference(np.array(right), np.array(less))
    return place.line(found.difference, found.low, found.high, found.n)


def mean_line(
    place: Place,
    values: Sequence[float] | NDArray[np.float64],
    least: float = -inf,
    most: float = inf,
) -> Line:
    """The mean of one value an image, with Student's interval: few images are the usual case, and
    there a bootstrap's intervals are too short. The interval is cut to what a value can be, `least`
    to `most`. Values that are all equal do not say how far others would lie from them: there is no
    interval."""
    found = np.asarray(values, dtype=np.float64)
    n, mean = len(found), float(found.mean())
    if n < 2 or (found == found[0]).all():
        return place.line(mean, None, None, n)
    half = float(scipy.stats.t.ppf(TAILS[1], n - 1) * found.std(ddof=1) / sqrt(n))
    return place.line(mean, max(mean - half, least), min(mean + half, most), n)


def csv_text(lines: Iterable[Line]) -> str:
    """All lines as a table for a spreadsheet."""
    text = io.StringIO()
    names = [field.name for field in fields(Line)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines)
    return text.getvalue()


def in_words(line: Line, scale: float = 1.0, digits: int | None = 2) -> str:
    """A number with its interval, as 0.25 [0.10, 0.40], or that all images have it; without
    `digits` behind the point three that count, for numbers of any size."""
    form = ".3g" if digits is None else f".{digits}f"
    value = f"{scale * line.value:{form}}"
    if line.low is None or line.high is None:
        return value if line.n == 1 else f"{value} (all equal)"
    return f"{value} [{scale * line.low:{form}}, {scale * line.high:{form}}]"
