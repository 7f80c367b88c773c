"""Gradient checks for people."""

from collections.abc import Mapping
from typing import Any

from hetpure.numbers import counted
from hetpure.report.sheet import Sheet

Checks = Mapping[str, Mapping[str, Any]]
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


def gradient_checks_sheet(gradient_checks: Checks, title: str = "") -> Sheet:
    """From what `results.json` says of each defence; columns that say nothing are left out."""
    rows = []
    for name, checks in gradient_checks.items():
        if "gradient_check" in checks:  # else it has no gradient
            rows.append((name, *_cells(checks["gradient_check"])))
        if "surrogate_gradient_check" in checks:
            rows.append((f"{name} (surrogate)", *_cells(checks["surrogate_gradient_check"])))
    kept = [k for k in range(len(HEADS)) if any(row[k] != "-" for row in rows)]
    note = (
        "Of an approximation the first two checks are of the exact gradient beside it. Its own"
        " gradient is not judged: its cosine says how far it is."
    )
    return Sheet(
        title,
        [HEADS[k] for k in kept],
        [[row[k] for k in kept] for row in rows],
        note if any("approximation" in row[-1] for row in rows) else "",
        left=len(kept),
    )


def _cells(check: Mapping[str, Any]) -> tuple[str, ...]:
    approximation = check["approximation"]
    accelerated = check["cosine_to_float32"]
    substitutes = check["substitute_cosines"].items()
    return (
        check["policy"],
        _extent(check),
        ("yes: " if check["policies_equal"] else "NO: ") + "; ".join(check["compared"]),
        f"{check['finite_difference_error']:.1e} ({check['bound']:.0e})",
        f"{check['cosine_to_exact']:.6f}"
        + ("" if approximation else f" ({check['cosine_bound']:g})"),
        "-"
        if accelerated is None
        else f"{accelerated:.4f} ({check['lowest_cosine_to_float32']:.4f})",
        ", ".join(f"{name} {cosine:.3f}" for name, cosine in substitutes) or "-",
        ("approximation" if approximation else "PASS") if check["passed"] else "FAIL",
    )


def _extent(check: Mapping[str, Any]) -> str:
    """How much was checked: results that do not say of how many steps had all."""
    parts = [counted(check["images"], "image"), counted(check["directions"], "direction")]
    steps, of_steps = check.get("steps"), check.get("of_steps")
    if steps != of_steps:
        parts.append(f"{steps} of {of_steps} steps")
    if (device := check.get("device", "cpu")) != "cpu":
        parts.append(f"on {device}")
    return ", ".join(parts)
