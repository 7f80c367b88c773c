"""The protocol tables, from `results.json` alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from hetpure.evaluation.statistics import in_points
from hetpure.numbers import counted
from hetpure.report.sheet import Sheet

MOST_DEPARTURES = 8  # under the terminal's table; report.md has all
WIDE = 10  # points
ORDER = ("FAIL", "WARN", "PASS")
ROBUST = "robust"
PROTOCOLS = ("single", "vote", "worst", "dw_box")


def protocol_sheets(results: Mapping[str, Any], *, passed: bool = True) -> list[Sheet]:
    """The defences, their attacks one by one, and the audit, perhaps without what `passed`."""
    audit = audit_sheet(results, passed=passed)
    sheets = (defenses_sheet(results), attacks_sheet(results), audit)
    return [sheet for sheet in sheets if sheet.rows]


def defenses_sheet(results: Mapping[str, Any]) -> Sheet:
    """A row a defence: clean, null attack, and the per-sample worst over attacks. A row that was
    struck out has the reason in place of numbers."""
    defenses = results["defenses"].values()
    columns = {
        "calls": [str(defense["purification_calls"]) for defense in defenses],
        "standard single": [interval(defense["clean"]["single"]) for defense in defenses],
        "standard vote": [interval(defense["clean"]["vote"]) for defense in defenses],
        "null attack": [interval(defense["null_attack"]["single"]) for defense in defenses],
        "robust single": [interval(defense["robust"]["single"]) for defense in defenses],
        "robust vote": [interval(defense["robust"]["vote"]) for defense in defenses],
        "attended": [_coverage(defense["mask_coverage"]) for defense in defenses],
        "audit": [_tally(defense["audit"]) for defense in defenses],
    }
    if any(defense["robust_by_all"] for defense in defenses):
        columns["robust, all attacks"] = [_by_all(defense) for defense in defenses]
    if results["run"].get("baseline"):
        columns["robust difference"] = [
            in_points(defense["difference"]["robust"]) if "difference" in defense else "-"
            for defense in defenses
        ]
    rows = list(zip(results["defenses"], *columns.values(), strict=True))
    struck = [
        (f"{name}, struck out: {reason}", *[""] * len(columns))
        for name, reason in results["struck"].items()
    ]
    run = results["run"]
    title = f"{run['data']}: {run['attack']}; n = {results['samples']}"
    return Sheet(title, ("defence", *columns), [*rows, *struck], note(results))


def attacks_sheet(results: Mapping[str, Any]) -> Sheet:
    """A row an attack on a defence."""
    rows = []
    for name, defense in results["defenses"].items():
        attacks = {
            f"{attack} ({'+'.join(about['known'])} known)" if about["known"] else attack: about
            for attack, about in defense["attacks"].items()
        }
        for worst in ("robust", "robust_by_all"):
            if defense[worst] and len(defense[worst]["attacks"]) > 1:
                attacks[f"{ROBUST} over {len(defense[worst]['attacks'])} attacks"] = defense[worst]
        rows += [(name, attack, *_counts(about)) for attack, about in attacks.items()]
    heads = (
        "defence", "attack", "n", "single", "vote", "worst", "DW-box", "success", "EOT cosine",
    )  # fmt: skip
    further = "; ".join(f"{name}: {what}" for name, what in results["run"]["attacks"].items())
    return Sheet(
        "Accuracy under each attack",
        heads,
        rows,
        "robust: each sample's worst over attacks in the same ball. worst: right on all report"
        " draws. DW-box: on the very noise that the attacker knew."
        " success: of the samples that the majority of draws has right, the share that it has wrong"
        " under attack. EOT cosine: between the gradients of both halves of the draws."
        + (f" Further attacks: {further}." if further else ""),
        left=2,
    )


def _counts(attack: Mapping[str, Any]) -> list[str]:
    """The cells of one attack."""
    estimates = [attack.get(protocol) for protocol in PROTOCOLS]
    agreement = attack.get("eot_agreement")
    return [
        str(next(estimate["n"] for estimate in estimates if estimate)),
        *("-" if estimate is None else interval(estimate) for estimate in estimates),
        "-" if attack["success"] is None else interval(attack["success"]),
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
        f"Attacks of the audit: the first {counted(audit['images'], 'sample')}, black box with"
        f" {audit['queries']} queries; FAIL where a paired 95% interval excludes what"
        f" must hold, WARN where only the difference is beyond {100 * audit['tolerance']:g} points."
        if rows
        else ""
    )
    return Sheet("Audit", ("defence", "check", "verdict", "finding"), rows, note, left=4)


def note(results: Mapping[str, Any]) -> str:
    """What the numbers are."""
    run = results["run"]
    call = run.get("network_call", "float32")
    weaker = results["weaker_than_full"]
    departures = "; ".join(weaker[:MOST_DEPARTURES]) or "nothing"
    if len(weaker) > MOST_DEPARTURES:
        departures += f"; {len(weaker) - MOST_DEPARTURES} more in report.md"
    return (
        "Accuracy in % with its 95% interval. single: mean over"
        f" {counted(run['report_draws'], 'fresh noise draw')}; vote: their majority, a tie is"
        " wrong. robust: each sample's worst over the attacks, chosen on"
        f" {counted(run['selection_draws'], 'other draw')}. null attack: strength zero, single. "
        "calls: network calls of one purification. attended: mean share of pixels in the mask, of "
        "clean / of adversarial images. "
        + (
            f"robust difference: single, in points from {run['baseline']!r}, paired by sample; its"
            " intervals are not corrected for their number. "
            if run.get("baseline")
            else ""
        )
        + (f"The diffusion network's calls: {call}. " if call != "float32" else "")
        + "".join(f"{line}. " for line in results["notes"])
        + f"Weaker than the full protocol: {departures}."
    )


def _by_all(defense: Mapping[str, Any]) -> str:
    """The worst over all attacks, on the first samples, which alone have all of them."""
    single = (defense["robust_by_all"] or defense["robust"])["single"]
    return f"{interval(single)}, n = {single['n']}"


def _tally(audit: Sequence[Mapping[str, Any]] | None) -> str:
    """The worst verdict, and how many have it where it is not the best."""
    if not audit:
        return "-"
    verdicts = [check["verdict"] for check in audit]
    last = next(verdict for verdict in ORDER if verdict in verdicts)
    return last if last == "PASS" else f"{verdicts.count(last)} {last}"


def _coverage(shares: Mapping[str, float | None]) -> str:
    clean, adversarial = shares["clean"], shares["adversarial"]
    if clean is None or adversarial is None:
        return "-"
    return f"{100 * clean:.0f}% / {100 * adversarial:.0f}%"


def interval(estimate: Mapping[str, Any]) -> str:
    """An `Estimate` as a dictionary, in % with its interval; of a wide one no decimals."""
    accuracy, low, high = (100 * estimate[key] for key in ("accuracy", "low", "high"))
    digits = 0 if high - low > WIDE else 1
    return f"{accuracy:.1f} [{low:.{digits}f}, {high:.{digits}f}]"
