"""The protocol tables, for the terminal and for Markdown, from `results.json` alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from hetpure.evaluation.statistics import in_points

MOST_DEPARTURES = 8  # under the terminal's table; report.md has all
WIDE = 10  # points
ORDER = ("FAIL", "WARN", "PASS")
ROBUST = "robust"
PROTOCOLS = ("single", "vote", "worst", "dw_box")


@dataclass(frozen=True)
class Sheet:
    """A table of cells with a title and a note; the first `left` columns are names."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    left: int = 1

    def markdown(self) -> str:
        """As Markdown: title, table, note."""
        lines = [f"**{self.title}**", "", _line(self.heads), "|" + " --- |" * len(self.heads)]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, *(["", self.note] if self.note else [])])

    def terminal(self) -> Table:
        """As a rich table."""
        table = Table(
            title=Text(self.title),
            caption=Text(self.note) if self.note else None,
            caption_justify="left",
        )
        for number, head in enumerate(self.heads):
            name = number < self.left  # its end tells swept rows apart: never cut off
            table.add_column(
                head, justify="left" if name else "right", overflow="fold" if name else "ellipsis"
            )
        for row in self.rows:
            table.add_row(*map(Text, row))  # as it is: names may look like markup
        return table


def title(results: Mapping[str, Any]) -> str:
    """One line: data, attack, budget and sample count."""
    run = results["run"]
    return f"{run['data']}: {run['attack']}; n = {results['samples']}"


def sheets(results: Mapping[str, Any]) -> list[Sheet]:
    """The defences, their attacks one by one, and the audit."""
    found = [defenses_sheet(results), attacks_sheet(results)]
    if any(defense["audit"] for defense in results["defenses"].values()):
        found.append(audit_sheet(results))
    return found


def markdown(results: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    return "\n\n".join(sheet.markdown() for sheet in sheets(results))


def terminal(results: Mapping[str, Any]) -> list[Table]:
    """All tables as rich ones; of the audit only what did not pass."""
    found = [defenses_sheet(results).terminal(), attacks_sheet(results).terminal()]
    audit = audit_sheet(results, passed=False)
    return [*found, audit.terminal()] if audit.rows else found


def defenses_sheet(results: Mapping[str, Any]) -> Sheet:
    """A row a defence: clean, null attack, and the per-sample worst over attacks."""
    run = results["run"]
    paired = bool(run.get("baseline"))
    heads = [
        "defence", "calls", "standard single", "standard vote", "null attack", "robust single",
        "robust vote", "attended", "audit",
    ]  # fmt: skip
    rows = [
        (
            name,
            str(defense["purification_calls"]),
            interval(defense["clean"]["single"]),
            interval(defense["clean"]["vote"]),
            interval(defense["null_attack"]["single"]),
            *(interval(defense["robust"][protocol]) for protocol in ("single", "vote")),
            _coverage(defense["mask_coverage"]),
            _tally(defense["audit"]),
        )
        for name, defense in results["defenses"].items()
    ]
    if any(defense["robust_by_all"] for defense in results["defenses"].values()):
        heads.append("robust, all attacks")
        rows = [
            (*row, _by_all(defense))
            for row, defense in zip(rows, results["defenses"].values(), strict=True)
        ]
    if paired:
        heads.append("robust difference")
        rows = [
            (*row, difference(defense.get("difference", {}).get("robust")))
            for row, defense in zip(rows, results["defenses"].values(), strict=True)
        ]
    return Sheet(title(results), heads, rows, note(results))


def attacks_sheet(results: Mapping[str, Any]) -> Sheet:
    """A row an attack on a defence."""
    rows = []
    for name, defense in results["defenses"].items():
        found = {
            f"{attack} ({'+'.join(one['known'])} known)" if one["known"] else attack: one
            for attack, one in defense["attacks"].items()
        }
        for worst in ("robust", "robust_by_all"):
            if defense[worst] and len(defense[worst]["attacks"]) > 1:
                found[f"{ROBUST} over {len(defense[worst]['attacks'])} attacks"] = defense[worst]
        rows += [(name, attack, *_counted(one)) for attack, one in found.items()]
    heads = (
        "defence", "attack", "n", "single", "vote", "worst", "DW-box", "success", "EOT cosine",
    )  # fmt: skip
    told = "; ".join(f"{name}: {what}" for name, what in results["run"]["attacks"].items())
    return Sheet(
        "Accuracy under each attack",
        heads,
        rows,
        "robust: each sample's worst over attacks in the same ball. worst: right on all report"
        " draws. DW-box: on the very noise that the attacker knew."
        " success: of the samples that the majority of draws has right, the share that it has wrong"
        " under attack. EOT cosine: between the gradients of both halves of the draws."
        + (f" Further attacks: {told}." if told else ""),
        left=2,
    )


def _counted(found: Mapping[str, Any]) -> list[str]:
    """The cells of one attack."""
    estimates = [found.get(protocol) for protocol in PROTOCOLS]
    agreement = found.get("eot_agreement")
    return [
        str(next(estimate["n"] for estimate in estimates if estimate)),
        *("-" if estimate is None else interval(estimate) for estimate in estimates),
        "-" if found["success"] is None else interval(found["success"]),
        "-" if agreement is None else f"{agreement:.2f}",
    ]


def audit_sheet(results: Mapping[str, Any], *, passed: bool = True) -> Sheet:
    """A row a check of a defence; those that passed may be left out."""
    audit = results["run"]["audit"] or {}
    rows = [
        (name, check["name"], check["verdict"], check["said"])
        for name, defense in results["defenses"].items()
        for check in defense["audit"] or []
        if passed or check["verdict"] != "PASS"
    ]
    note = (
        ""
        if not rows
        else (
            f"Attacks of the audit: the first {audit['images']} samples, black box with"
            f" {audit['queries']} queries; FAIL where a paired 95% interval excludes what must"
            f" hold, WARN where only the difference is beyond {100 * audit['tolerance']:g} points."
        )
    )
    return Sheet("Audit", ("defence", "check", "verdict", "found"), rows, note, left=4)


def note(results: Mapping[str, Any]) -> str:
    """What the numbers are."""
    run = results["run"]
    weaker = results["weaker_than_full"]
    said = "; ".join(weaker[:MOST_DEPARTURES]) or "nothing"
    if len(weaker) > MOST_DEPARTURES:
        said += f"; {len(weaker) - MOST_DEPARTURES} more in report.md"
    return (
        "Accuracy in % with its 95% interval. single: mean over "
        f"{run['report_draws']} fresh noise draws; vote: their majority, a tie is wrong."
        " robust: each sample's worst over the attacks, chosen on"
        f" {run['selection_draws']} other draws. null attack: strength zero, single. "
        "calls: network calls of one purification. attended: mean share of pixels in the mask, of "
        "clean / of adversarial images. "
        + (
            f"robust difference: single, in points from {run['baseline']!r}, paired by sample; its"
            " intervals are not corrected for their number. "
            if run.get("baseline")
            else ""
        )
        + _accelerated(run)
        + "".join(f"{line}. " for line in results["notes"])
        + f"Weaker than the full protocol: {said}."
    )


def _by_all(defense: Mapping[str, Any]) -> str:
    """The worst over all attacks, on the first samples, which alone have all of them."""
    found = defense["robust_by_all"] or defense["robust"]
    return f"{interval(found['single'])}, n = {found['single']['n']}"


def _tally(audit: Sequence[Mapping[str, Any]] | None) -> str:
    """The worst verdict, and how many have it where it is not the best."""
    if not audit:
        return "-"
    verdicts = [check["verdict"] for check in audit]
    last = next(verdict for verdict in ORDER if verdict in verdicts)
    return last if last == "PASS" else f"{verdicts.count(last)} {last}"


def _accelerated(run: Mapping[str, Any]) -> str:
    call = run.get("network_call", "float32")
    return "" if call == "float32" else f"The diffusion network's calls: {call}. "


def _coverage(shares: Mapping[str, float | None]) -> str:
    clean, adversarial = shares["clean"], shares["adversarial"]
    if clean is None or adversarial is None:
        return "-"
    return f"{100 * clean:.0f}% / {100 * adversarial:.0f}%"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def interval(estimate: Mapping[str, Any]) -> str:
    """An `Estimate` as a dictionary, in % with its interval; of a wide one no decimals."""
    accuracy, low, high = (100 * estimate[key] for key in ("accuracy", "low", "high"))
    digits = 0 if high - low > WIDE else 1
    return f"{accuracy:.1f} [{low:.{digits}f}, {high:.{digits}f}]"


def difference(found: Mapping[str, Any] | None) -> str:
    """A `Difference` as a dictionary, in points with its interval; `-` where there is none."""
    return "-" if found is None else in_points(found)
