"""How an attack went: loss and accuracy along its iterations."""

from collections.abc import Mapping, Sequence
from typing import Any

from hetpure.report.sheet import Sheet

PARTS = 4


def convergence_sheet(results: Mapping[str, Any]) -> Sheet:
    """A row an attack on a defence that told of its iterations: at the first of them, after each
    quarter, and at the last."""
    rows = []
    for name, defense in results["defenses"].items():
        for attack, about in defense["attacks"].items():
            told = about.get("iterations") or {}
            if loss := told.get("loss"):
                losses = " ".join(f"{value:.2f}" for value in _quarters(loss))
                right = _quarters([100 * share for share in told.get("right", [])])
                accuracies = " ".join(f"{value:.0f}" for value in right)
                rows.append((name, attack, str(len(loss)), losses, accuracies or "-"))
    heads = ("defence", "attack", "iterations", "loss", "accuracy of iterates, %")
    note = (
        "From the first iteration by quarters to the last: means over images and runs, on the draws"
        " of each iteration, which no earlier one saw. Losses are what the attack maximises."
    )
    return Sheet("", heads, rows, note, left=2)


def _quarters(values: Sequence[float]) -> list[float]:
    """The first value, those after each quarter, and the last; of few values all."""
    if len(values) <= PARTS:
        return list(values)
    return [values[k * (len(values) - 1) // PARTS] for k in range(PARTS + 1)]
