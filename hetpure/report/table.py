"""The protocol table, for the terminal and for Markdown, from `results.json` alone."""

from typing import Any

from rich.table import Table

COLUMNS = (
    "defence",
    "network calls",
    "standard single",
    "standard vote",
    "robust single",
    "robust vote",
    "attended",
)


def title(results: dict[str, Any]) -> str:
    """One line: data, attack, budget and sample count."""
    run = results["run"]
    return f"{run['data']}: {run['attack']}; n = {results['samples']}"


def note(results: dict[str, Any]) -> str:
    """What the numbers are."""
    run = results["run"]
    return (
        "Accuracy in % with its 95% interval. single: mean over "
        f"{run['report_draws']} fresh noise draws; vote: their majority, a tie is wrong. "
        f"Adversarial examples are chosen on {run['selection_draws']} other draws. "
        "network calls: of one purification. attended: mean share of pixels in the mask, of "
        "clean / of adversarial images. "
        + (
            f"robust difference: single, in points from {run['baseline']!r}, paired by sample; its"
            " intervals are not corrected for their number. "
            if run.get("baseline")
            else ""
        )
        + _accelerated(run)
        + "Weaker than the full protocol: "
        + ("; ".join(results["weaker_than_full"]) or "nothing")
        + "."
    )


def columns(results: dict[str, Any]) -> tuple[str, ...]:
    """The table's heads; differences only where there is a baseline."""
    return COLUMNS + (("robust difference",) if results["run"].get("baseline") else ())


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's cells."""
    paired = bool(results["run"].get("baseline"))
    return [
        (
            name,
            str(defense["purification_calls"]),
            *(
                interval(defense[kind][protocol])
                for kind in ("clean", "robust")
                for protocol in ("single", "vote")
            ),
            _coverage(defense["mask_coverage"]),
            *([difference(defense.get("difference", {}).get("robust"))] if paired else []),
        )
        for name, defense in results["defenses"].items()
    ]


def markdown(results: dict[str, Any]) -> str:
    """A Markdown table under its title, with the note below."""
    lines = [f"**{title(results)}**", ""]
    heads = columns(results)
    lines.append("| " + " | ".join(heads) + " |")
    lines.append("|" + " --- |" * len(heads))
    lines.extend("| " + " | ".join(row) + " |" for row in rows(results))
    return "\n".join([*lines, "", note(results)])


def terminal(results: dict[str, Any]) -> Table:
    """The same as a rich table."""
    table = Table(title=title(results), caption=note(results), caption_justify="left")
    for column in columns(results):
        first = column == "defence"  # its end tells swept rows apart: never cut off
        table.add_column(
            column, justify="left" if first else "right", overflow="fold" if first else "ellipsis"
        )
    for row in rows(results):
        table.add_row(*row)
    return table


def _accelerated(run: dict[str, Any]) -> str:
    call = run.get("network_call", "float32")
    return "" if call == "float32" else f"The diffusion network's calls: {call}. "


def _coverage(shares: dict[str, float | None]) -> str:
    clean, adversarial = shares["clean"], shares["adversarial"]
    if clean is None or adversarial is None:
        return "-"
    return f"{100 * clean:.0f}% / {100 * adversarial:.0f}%"


def interval(estimate: dict[str, Any]) -> str:
    """An `Estimate` as a dictionary, in % with its interval."""
    accuracy, low, high = (100 * estimate[key] for key in ("accuracy", "low", "high"))
    return f"{accuracy:.1f} [{low:.1f}, {high:.1f}]"


def difference(found: dict[str, Any] | None) -> str:
    """A `Difference` as a dictionary, in points with its interval; `-` where there is none."""
    if found is None:
        return "-"
    points, low, high = (100 * found[key] for key in ("difference", "low", "high"))
    return f"{points:+.1f} [{low:+.1f}, {high:+.1f}]"
