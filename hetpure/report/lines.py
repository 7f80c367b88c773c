"""What a report says in lines, beside its tables."""

from collections.abc import Mapping
from typing import Any

from hetpure.numbers import counted


def state(results: Mapping[str, Any]) -> list[str]:
    """What is still to be computed, in one line; nothing of a finished run."""
    if not results["missing"]:
        return []
    return [
        f"NOT FINISHED: {counted(results['missing'], 'part')} missing; the tables hold the images"
        " that all cells of a row have. Start the same command again to go on"
    ]


def provenance_lines(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every fact of the provenance, as `packages torch: 2.13.0`."""
    lines = []
    for key, value in content.items():
        if isinstance(value, dict):
            lines.extend(provenance_lines(value, f"{prefix}{key} "))
        else:
            lines.append(f"{prefix}{key}: {value}")
    return lines
