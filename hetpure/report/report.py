"""`report.md`: one page for people, drawn from `results.json`."""

from pathlib import Path
from typing import Any

from rich.console import Console

from hetpure.evaluation.records import RunFolder
from hetpure.evaluation.run_results import run_results
from hetpure.report.gradient_checks import gradient_checks_markdown
from hetpure.report.table import markdown, terminal

FIGURE = "figure.png"


def report(folder: RunFolder) -> None:
    """Computes the results of a finished run from its folder, writes them, and prints them."""
    results = run_results(folder)
    folder.write_results(results)
    write_report(results, folder.path, FIGURE if (folder.path / FIGURE).exists() else None)
    console = Console(width=None if Console().is_terminal else 140)
    for table in terminal(results):
        console.print(table)
    console.print(f"run folder: {folder.path} (report.md, results.json)", soft_wrap=True)


def write_report(results: dict[str, Any], folder: Path, figure: str | None) -> None:
    """Writes `report.md` into the run's folder."""
    sections = ["# Robustness report", markdown(results)]
    if figure is not None:
        sections.append(f"![clean, adversarial, mask and purified images]({figure})")
        sections.append(
            "Under a clean image its label, under an adversarial one the plain classifier's answer,"
            " under a mask its share of the image, under a purified image the defence's answer on"
            " the first report draw."
        )
    sections += ["## Weaker than the full protocol", _bullets(results["weaker_than_full"])]
    sections += ["## Gradient checks", gradient_checks_markdown(results["defenses"])]
    sections += ["## Cost", _costs(results)]
    sections += ["## Provenance", _bullets(_provenance(results["provenance"]))]
    (folder / "report.md").write_text("\n\n".join(sections) + "\n")


def _costs(results: dict[str, Any]) -> str:
    lines = []
    for name, defense in results["defenses"].items():
        cost = defense["cost"]
        line = (
            f"{name}: {cost['network_calls']:,} network calls, {cost['audit_calls']:,} of them for"
            f" the audit; {cost['seconds']:.1f} s"
        )
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
