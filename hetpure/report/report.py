"""`report.md`: one page for people, drawn from `results.json`."""

from pathlib import Path
from typing import Any

from hetpure.report.certificate import certificates_markdown
from hetpure.report.table import markdown


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
    sections += ["## Gradient certificates", certificates_markdown(results["defenses"])]
    sections += ["## Cost", _costs(results)]
    sections += ["## Provenance", _bullets(_provenance(results["provenance"]))]
    (folder / "report.md").write_text("\n\n".join(sections) + "\n")


def _costs(results: dict[str, Any]) -> str:
    return _bullets(
        f"{name}: {defense['cost']['network_calls']:,} network calls,"
        f" {defense['cost']['audit_calls']:,} of them for the audit;"
        f" {defense['cost']['seconds']:.1f} s, purification and classification"
        f" {1000 * defense['cost']['latency_seconds']:.1f} ms an image"
        for name, defense in results["defenses"].items()
    )


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
