"""Charts of a page as numbers in percent of their width and height: the templates draw them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hetpure.report.table import interval


@dataclass(frozen=True)
class Dot:
    """An accuracy with its interval on an axis from 0 to 100, in percent.

    Args:
        kind: what it is, as `clean`; the style sheet knows it.
        name: the same for people.
        accuracy: the dot.
        low: where its interval begins.
        high: where it ends.
        text: the number with its interval and n.
    """

    kind: str
    name: str
    accuracy: float
    low: float
    high: float
    text: str

    @classmethod
    def of(cls, kind: str, name: str, estimate: Mapping[str, Any]) -> "Dot":
        """From an `Estimate` as a dictionary."""
        accuracy, low, high = (100 * estimate[key] for key in ("accuracy", "low", "high"))
        return cls(kind, name, accuracy, low, high, f"{interval(estimate)}, n = {estimate['n']}")


@dataclass(frozen=True)
class Strip:
    """A line of a dot plot: one defence. `title` says in words what is drawn."""

    name: str
    dots: Sequence[Dot]

    @property
    def title(self) -> str:
        numbers = "; ".join(f"{dot.name} {dot.text}" for dot in self.dots)
        return f"{self.name}: accuracy in percent with 95% intervals: {numbers}"


def strip(name: str, clean: Mapping[str, Any], robust: Mapping[str, Any], attack: str) -> Strip:
    """Clean accuracy above, accuracy under `attack` below; both are estimates as dictionaries."""
    return Strip(name, [Dot.of("clean", "clean", clean), Dot.of("robust", attack, robust)])


@dataclass(frozen=True)
class Curve:
    """What an attack said at each of its iterations.

    Args:
        defense: that was attacked.
        attack: its name.
        what: `loss`, or the accuracy of iterates in percent.
        points: of a polyline in a square of side 100, whose origin is the upper left corner.
        top: the value at the upper edge.
        bottom: the value at the lower edge.
        iterations: how many there were.
        title: in words what is drawn.
    """

    defense: str
    attack: str
    what: str
    points: str
    top: str
    bottom: str
    iterations: int
    title: str


def curves(results: Mapping[str, Any]) -> list[Curve]:
    """Of every attack that told of more than one iteration: its loss, and the accuracy of its
    iterates where it told that."""
    drawn = []
    for name, defense in results["defenses"].items():
        for attack, about in defense["attacks"].items():
            told = about.get("iterations") or {}
            if len(loss := told.get("loss", [])) > 1:
                drawn.append(_curve(name, attack, "loss", loss, min(loss), max(loss)))
            if len(right := told.get("right", [])) > 1:
                percent = [100 * share for share in right]
                drawn.append(_curve(name, attack, "accuracy of iterates, %", percent, 0, 100))
    return drawn


def _curve(
    defense: str, attack: str, what: str, values: Sequence[float], bottom: float, top: float
) -> Curve:
    last, height = len(values) - 1, top - bottom or 1.0
    points = " ".join(
        f"{100 * place / last:.2f},{100 * (top - value) / height:.2f}"
        for place, value in enumerate(values)
    )
    title = (
        f"{what} of {defense} under {attack}: {values[0]:.2f} at the first of {len(values)}"
        f" iterations, {values[-1]:.2f} at the last"
    )
    ends = (f"{top:.4g}", f"{bottom:.4g}")
    return Curve(defense, attack, what, points, *ends, len(values), title)
