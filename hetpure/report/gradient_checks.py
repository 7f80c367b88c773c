"""Gradient checks for people: a table for the terminal, one for Markdown, a line where one
fails."""

from collections.abc import Iterable
from typing import Any

from rich.table import Table

from hetpure.evaluation.extent import said

HEADS = (
    "defence",
    "gradient",
    "checked in float64",
    "equal bit for bit",
    "finite differences (bound)",
    "attack's cosine to exact (bound)",
    "cosine to float32 (lowest)",
    "cosine of what attacks follow in its place",
    "",
)


def rows(gradient_checks: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table's cells, from what `results.json` says of each defence."""
    found = []
    for name, defense in gradient_checks.items():
        if "gradient_check" not in defense:  # it has no gradient
            continue
        found.append((name, *_cells(defense["gradient_check"])))
        if "surrogate_gradient_check" in defense:
            found.append((f"{name} (surrogate)", *_cells(defense["surrogate_gradient_check"])))
    return found


def gradient_checks_markdown(gradient_checks: dict[str, dict[str, Any]]) -> str:
    """As a Markdown table."""
    lines = [_line(HEADS), "|" + " --- |" * len(HEADS)]
    return "\n".join([*lines, *(_line(row) for row in rows(gradient_checks))])


def gradient_checks_table(gradient_checks: dict[str, dict[str, Any]]) -> Table:
    """As a rich table; columns that say nothing of any row are left out."""
    found = rows(gradient_checks)
    kept = [k for k in range(len(HEADS)) if any(row[k] != "-" for row in found)]
    note = (
        "Of an approximation the first two checks are of the exact gradient beside it; its own is"
        " not judged, its cosine says how far it is."
    )
    own = any("approximation" in row[-1] for row in found)
    table = Table(title="Gradient checks", caption=note if own else None)
    for k in kept:
        table.add_column(HEADS[k], overflow="fold")
    for row in found:
        table.add_row(*(row[k] for k in kept))
    return table


def _cells(found: dict[str, Any]) -> tuple[str, ...]:
    approximation = found["approximation"]
    return (
        found["policy"],
        _checked(found),
        ("yes: " if found["policies_equal"] else "NO: ") + "; ".join(found["compared"]),
        f"{found['finite_difference_error']:.1e} ({found['bound']:.0e})",
        f"{found['cosine_to_exact']:.6f}"
        + ("" if approximation else f" ({found['cosine_bound']:g})"),
        "-"
        if found["cosine_to_float32"] is None
        else f"{found['cosine_to_float32']:.4f} ({found['lowest_cosine_to_float32']:.4f})",
        ", ".join(f"{name} {cosine:.3f}" for name, cosine in found["substitute_cosines"].items())
        or "-",
        ("approximation" if approximation else "PASS") if found["passed"] else "FAIL",
    )


def _checked(found: dict[str, Any]) -> str:
    """How much was: results that do not say of how many steps had all."""
    steps = found.get("steps")
    words = said(found["images"], found["directions"], steps, found.get("of_steps"))
    device = found.get("device", "cpu")
    return words if device == "cpu" else f"{words}, on {device}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
