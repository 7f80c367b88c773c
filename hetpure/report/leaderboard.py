"""The page of a comparison: a leaderboard of the defences of several runs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hetpure.evaluation.compare import Comparison
from hetpure.evaluation.protocol import CLEAN, NULL
from hetpure.evaluation.results import Counting
from hetpure.evaluation.statistics import in_points
from hetpure.numbers import counted
from hetpure.report.charts import strip
from hetpure.report.comparison import sheets
from hetpure.report.html import render
from hetpure.report.sheet import Sheet
from hetpure.report.table import audit_tally, interval


@dataclass(frozen=True)
class Contribution:
    """A run of the leaderboard. The addresses of its config and its page are relative to the
    leaderboard; None where there is none."""

    name: str
    data: str
    attack: str
    samples: int
    state: str
    weaker: int
    config: str | None
    page: str | None

    @classmethod
    def of(
        cls,
        name: str,
        results: Mapping[str, Any],
        config: str | None = None,
        page: str | None = None,
    ) -> "Contribution":
        """A run by its `results.json`."""
        missing = results["missing"]
        return cls(
            name,
            results["run"].get("data", ""),
            results["run"].get("attack", ""),
            results["samples"],
            f"not finished: {counted(missing, 'part')} missing" if missing else "finished",
            len(results["weaker_than_full"]),
            config,
            page,
        )


def compare_page(
    comparisons: Sequence[Comparison],
    counting: Counting,
    results: Mapping[str, Mapping[str, Any]],
    contributions: Sequence[Contribution],
    cautions: Sequence[str],
    notes: Sequence[str],
) -> str:
    """The page, whole in one file.

    Args:
        comparisons: of every defence with the baseline, on clean and on attacked images.
        counting: what counts as right in them.
        results: `results.json` of the runs, by their names.
        contributions: the runs.
        cautions: what differs beyond the defences.
        notes: what the numbers are, and the verdicts.
    """
    attacked = _attacked(comparisons)
    clean = {c.column.name: c for c in comparisons if c.kind == CLEAN}
    return render(
        "compare.html",
        finding=finding(attacked),
        cautions=cautions,
        notes=notes,
        strips=[
            strip(
                c.column.name, clean[c.column.name].accuracy.as_dict(), c.accuracy.as_dict(), c.kind
            )
            for c in attacked
        ],
        standings=standings(attacked, clean, results, counting),
        sheets=sheets(comparisons),
        contributions=contributions,
    )


def _attacked(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those under the attack that is compared, the most accurate first."""
    kind = comparisons[-1].kind
    attacked = [c for c in comparisons if c.kind == kind]
    return sorted(attacked, key=lambda c: -c.accuracy.accuracy)


def finding(attacked: Sequence[Comparison]) -> str:
    """One sentence: the most accurate defence, and its difference from the baseline."""
    best = attacked[0]
    numbers = interval(best.accuracy.as_dict()).replace(" ", "% ", 1)
    sentence = (
        f"Of {counted(len(attacked), 'defence')} {best.column.name} is right most often"
        f" ({best.kind}): on {numbers} of {counted(best.accuracy.n, 'image')}"
    )
    if best.difference is None:
        return f"{sentence}; it is the baseline."
    points = in_points(best.difference.as_dict())
    told = "" if best.difference.low > 0 else ", which does not tell them apart"
    return (
        f"{sentence}, {points} points from the baseline{told}. The highest of several numbers"
        " flatters: confirm it on other images."
    )


def standings(
    attacked: Sequence[Comparison],
    clean: Mapping[str, Comparison],
    results: Mapping[str, Mapping[str, Any]],
    counting: Counting,
) -> Sheet:
    """A row a defence: clean and attacked accuracy over the images that it shares with the
    baseline, its accuracy under each attack of its own run, what it cost, and its audit."""
    abouts = [results[c.column.run]["defenses"].get(c.column.defense, {}) for c in attacked]
    attacks = list(dict.fromkeys(name for about in abouts for name in about.get("attacks", {})))
    rows = []
    for c, about in zip(attacked, abouts, strict=True):
        own = about.get("attacks", {})
        rows.append(
            (
                c.column.defense,
                c.column.run,
                interval(clean[c.column.name].accuracy.as_dict()),
                interval(c.accuracy.as_dict()),
                "baseline" if c.difference is None else in_points(c.difference.as_dict()),
                str(c.accuracy.n),
                _counted(about.get("null_attack"), counting),
                *(_counted(own.get(name), counting) for name in attacks),
                str(about.get("purification_calls", "-")),
                f"{about['cost']['network_calls']:,}" if "cost" in about else "-",
                audit_tally(about.get("audit"), results[c.column.run]["run"]),
            )
        )
    kind = attacked[0].kind
    heads = ("defence", "run", CLEAN, kind, "difference, points", "n", f"{NULL} attack")
    costs = ("calls of one purification", "network calls", "audit")
    note = (
        f"Accuracy in % by {counting}, with 95% intervals. The columns of single attacks are over"
        " all images that the run has under them; where noise was known they are DW-box. A dash:"
        " not run, or not counted this way. Network calls: all of the run's, audit included."
    )
    return Sheet(
        "Defences, the most accurate first", (*heads, *attacks, *costs), rows, note, left=2
    )


def _counted(about: Mapping[str, Any] | None, counting: Counting) -> str:
    if not about:
        return "-"
    if "dw_box" in about:
        return f"{interval(about['dw_box'])} DW-box"
    return interval(about[counting]) if counting in about else "-"


def address(path: Path, target: Path) -> str | None:
    """Where a file lies, seen from the page at `target`; None where there is no such file."""
    if not path.is_file():
        return None
    return "./" + quote(os.path.relpath(path.resolve(), target.resolve().parent))
