"""The pages of a run for people, `report.md` and `report.html`, drawn from its results."""

from pathlib import Path
from typing import Any

from hetpure.disk import write_whole
from hetpure.errors import only_warned
from hetpure.evaluation.reading import earlier_results
from hetpure.evaluation.run_results import write_results
from hetpure.evaluation.store import PAGE, REPORT, RUN, Store
from hetpure.report.convergence import convergence_sheet
from hetpure.report.gradient_checks import gradient_checks_sheet
from hetpure.report.lines import provenance_lines, state
from hetpure.report.run_page import run_page
from hetpure.report.sheet import wide_console
from hetpure.report.table import costs_sheet, protocol_sheets

FIGURE = "figure.png"


def report(run: Path, results: dict[str, Any] | None = None) -> None:
    """Writes the results of a run, finished or not, and both pages into its folder and prints the
    tables; results are computed where they are not given. Of a run of an earlier version the tables
    of its records are printed, and nothing is written."""
    console = wide_console()
    if (run / RUN).exists():
        results = results or write_results(Store(run))
        write_markdown(run, results)
        with only_warned(PAGE):
            write_whole(run / PAGE, run_page(Store(run), results).encode())
        last = f"run folder: {run} (report.html, report.md, results.json)"
    else:
        results = earlier_results(run)
        last = f"{run} is of an earlier version: its gradient checks are in its own report"
    for sheet in protocol_sheets(results, every=False):
        console.print(sheet.terminal())
    for line in (*state(results), last):
        console.print(line, soft_wrap=True)


def write_markdown(run: Path, results: dict[str, Any]) -> None:
    """Writes `report.md`, with the figure where there is one."""
    text = page(results, FIGURE if (run / FIGURE).is_file() else None)
    write_whole(run / REPORT, text.encode())


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
    sections += ["## Cost", costs_sheet(results).markdown()]
    sections += ["## Provenance", _bullets(provenance_lines(results["provenance"]))]
    return "\n\n".join(sections) + "\n"


def _bullets(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines) or "- nothing"
