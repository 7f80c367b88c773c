"""`report.md`: one page for people, drawn from the results of a run."""

from pathlib import Path
from typing import Any

from hetpure.disk import write_whole
from hetpure.evaluation.reading import earlier_results
from hetpure.evaluation.run_results import write_results
from hetpure.evaluation.store import REPORT, RUN, Store
from hetpure.numbers import counted
from hetpure.report.convergence import convergence_sheet
from hetpure.report.gradient_checks import gradient_checks_sheet
from hetpure.report.sheet import wide_console
from hetpure.report.table import protocol_sheets

FIGURE = "figure.png"


def report(run: Path, results: dict[str, Any] | None = None) -> None:
    """Writes the results of a run, finished or not, into its folder and prints them; they are
    computed where they are not given. Of a run of an earlier version the tables of its records are
    printed, and nothing is written."""
    console = wide_console()
    if (run / RUN).exists():
        results = results or write_results(Store(run))
        write_page(run, results)
        last = f"run folder: {run} (report.md, results.json)"
    else:
        results = earlier_results(run)
        last = f"{run} is of an earlier version: its gradient checks are in its own report"
    for sheet in protocol_sheets(results, every=False):
        console.print(sheet.terminal())
    for line in (*state(results), last):
        console.print(line, soft_wrap=True)


def write_page(run: Path, results: dict[str, Any]) -> None:
    """Writes `report.md`, with the figure where there is one."""
    text = page(results, FIGURE if (run / FIGURE).is_file() else None)
    write_whole(run / REPORT, text.encode())


def state(results: dict[str, Any]) -> list[str]:
    """What is still to be computed, in one line; nothing of a finished run."""
    if not results["missing"]:
        return []
    return [
        f"NOT FINISHED: {counted(results['missing'], 'part')} missing; the tables hold the images"
        " that all cells of a row have. Start the same command again to go on"
    ]


def page(results: dict[str, Any], figure: str | None) -> str:
    """The whole of `report.md`."""
    sections = ["# Robustness report", *state(results)]
    sections += [sheet.markdown() for sheet in protocol_sheets(results)]
    if figure is not None:
        sections.append(f"![clean, adversarial, mask and purified images]({figure})")
        sections.append(
            "Under a clean image its label, under an adversarial one the plain classifier's answer,"
            " under a mask its share of the image, under a purified image the defence's answer on"
            " the first report draw."
        )
    if (convergence := convergence_sheet(results)).rows:
        sections += ["## Convergence", convergence.markdown()]
    sections += ["## Weaker than the full protocol", _bullets(results["weaker_than_full"])]
    sections += ["## Gradient checks", gradient_checks_sheet(results["defenses"]).markdown()]
    sections += ["## Cost", _costs(results)]
    sections += ["## Provenance", _bullets(_provenance(results["provenance"]))]
    return "\n\n".join(sections) + "\n"


def _costs(results: dict[str, Any]) -> str:
    lines = []
    for name, defense in results["defenses"].items():
        cost = defense["cost"]
        line = (
            f"{name}: {cost['network_calls']:,} network calls, {cost['audit_calls']:,} of them for"
            f" the audit; {cost['seconds']:.1f} s"
        )
        if cost.get("saved_calls"):
            line += f"; the cascade saved {cost['saved_calls']:,} network calls"
        if cost["latency_seconds"] is not None:  # a run may be stopped before that is measured
            latency = 1000 * cost["latency_seconds"]
            line += f", purification and classification {latency:.1f} ms an image"
        lines.append(line)
    return _bullets(lines)


def _provenance(content: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key, value in content.items():
        if isinstance(value, dict):
            lines.extend(_provenance(value, f"{prefix}{key} "))
        else:
            lines.append(f"{prefix}{key}: {value}")
    return lines


def _bullets(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines) or "- nothing"
