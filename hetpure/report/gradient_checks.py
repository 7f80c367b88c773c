"""Gradient checks for people."""

from collections.abc import Mapping
from typing import Any

from hetpure.numbers import counted
from hetpure.report.sheet import Sheet

Checks = Mapping[str, Mapping[str, Any]]


def gradient_checks_sheet(gradient_checks: Checks, title: str = "") -> Sheet:
    """From what `results.json` says of each defence; columns that say nothing are left out."""
    rows = []
    for name, checks in gradient_checks.items():
        if "gradient_check" in checks:  # else it has no gradient
            rows.append(_cells(name, checks["gradient_check"]))
        if "surrogate_gradient_check" in checks:
            rows.append(_cells(f"{name} (surrogate)", checks["surrogate_gradient_check"]))
    heads = [head for head in next(iter(rows), ()) if any(row[head] != "-" for row in rows)]
    note = (
        "Of an approximation the first two checks are of the exact gradient beside it. Its own"
        " gradient is not judged: its cosine says how far it is."
    )
    return Sheet(
        title,
        heads,
        [[row[head] for head in heads] for row in rows],
        note if any("approximation" in row["verdict"] for row in rows) else "",
        left=len(heads),
    )


def _cells(name: str, check: Mapping[str, Any]) -> dict[str, str]:
    """By the head of their column."""
    extent = f"{counted(check['images'], 'image')}, {counted(check['directions'], 'direction')}"
    steps, of_steps = check.get("steps"), check.get("of_steps")
    if steps != of_steps:  # results that do not say had all
        extent += f", {steps} of {of_steps} steps"
    device = check.get("device", "cpu")
    equal = "yes: " if check["policies_equal"] else "NO: "
    bound = "" if check["approximation"] else f" ({check['cosine_bound']:g})"
    float32 = check["cosine_to_float32"]
    kind = check.get("kind")  # results of earlier versions do not say
    substitutes = check["substitute_cosines"].items()
    passed = "approximation" if check["approximation"] else "PASS"
    return {
        "defence": name,
        "gradient": check["policy"],
        "checked in float64": extent if device == "cpu" else f"{extent}, on {device}",
        "equal bit for bit": equal + "; ".join(check["compared"]),
        "finite differences (bound)": (
            f"{check['finite_difference_error']:.1e} ({check['bound']:.0e})"
            + (f": {kind}" if kind else "")
        ),
        "attack's cosine to exact (bound)": f"{check['cosine_to_exact']:.6f}{bound}",
        "cosine to float32 (lowest)": (
            "-" if float32 is None else f"{float32:.4f} ({check['lowest_cosine_to_float32']:.4f})"
        ),
        "cosine of what attacks follow in its place": (
            ", ".join(f"{name} {cosine:.3f}" for name, cosine in substitutes) or "-"
        ),
        "verdict": passed if check["passed"] else "FAIL",
    }
