"""The protocol tables, from `results.json` alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hetpure.evaluation.audit import COMPARISONS, NULL_CHECK, REFERENCE
from hetpure.evaluation.statistics import in_points
from hetpure.numbers import counted
from hetpure.report.sheet import Sheet

MOST_DEPARTURES = 8  # under the terminal's table; report.md has all
WIDE = 10  # points
ORDER = ("FAIL", "WARN", "undecided", "PASS")
ROBUST = "robust"
SKIPPED = (
    " skipped: images that an earlier attack had made wrong on all selection draws: they count as"
    " that attack left them."
)
HEADS = {  # of what is counted under an attack; single or dw_box always is
    "single": "single",
    "vote": "vote",
    "worst": "worst of {draws}",
    "mean_logit": "mean logit",
    "mean_probability": "mean probability",
    "dw_box": "DW-box",
    "success": "success",
}


def protocol_sheets(results: Mapping[str, Any], *, every: bool = True) -> list[Sheet]:
    """The defences, their attacks one by one, and the audit: every check, or those not in order."""
    audit = audit_sheet(results, every=every)
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
        "audit": [audit_tally(defense["audit"], results["run"]) for defense in defenses],
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
    """A row an attack on a defence, the null attack first: what is counted under an attack is not
    shown without what the counting alone makes of it. Columns that no row fills are left out."""
    named = [
        (name, attack, about)
        for name, defense in results["defenses"].items()
        for attack, about in _attacks(defense)
    ]
    attacks = [about for _, _, about in named]
    draws = results["run"]["report_draws"]
    columns = {
        "n": [str(next(about[key]["n"] for key in HEADS if about.get(key))) for about in attacks],
        **{
            head.format(draws=draws): [_counted(about.get(key)) for about in attacks]
            for key, head in HEADS.items()
        },
        "skipped": [str(about.get("skipped") or "-") for about in attacks],
        "EOT cosine": [_cosine(about.get("eot_agreement")) for about in attacks],
    }
    filled = {head: cells for head, cells in columns.items() if set(cells) != {"-"}}
    names = [(name, attack) for name, attack, _ in named]
    further = "; ".join(f"{name}: {what}" for name, what in results["run"]["attacks"].items())
    return Sheet(
        "Accuracy under each attack",
        ("defence", "attack", *filled),
        [(*of_row, *cells) for of_row, *cells in zip(names, *filled.values(), strict=True)],
        "null attack: strength zero, which shows what the counting alone costs."
        " robust: each sample's worst over attacks in the same ball."
        f" worst of {draws}: right on all {draws} report draws, as where the attacker submits the"
        " same image again. mean logit, mean probability: the class whose mean over the report"
        " draws is the largest. DW-box: on the very noise that the attacker knew."
        " success: of the samples that the majority of draws has right, the share that it has wrong"
        " under attack. EOT cosine: between the gradients of both halves of the draws."
        + (SKIPPED if "skipped" in filled else "")
        + (f" Further attacks: {further}." if further else ""),
        left=2,
    )


def _attacks(defense: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A name in the sheet of attacks, and what is counted under it."""
    if defense["null_attack"]:
        yield "null attack", defense["null_attack"]
    for attack, about in defense["attacks"].items():
        known = f" ({'+'.join(about['known'])} known)" if about["known"] else ""
        yield f"{attack}{known}", about
    for worst in ("robust", "robust_by_all"):
        if defense[worst] and len(defense[worst]["attacks"]) > 1:
            yield f"{ROBUST} over {len(defense[worst]['attacks'])} attacks", defense[worst]


def audit_sheet(results: Mapping[str, Any], *, every: bool = True) -> Sheet:
    """A row a check of a defence: every one, or those that failed or warn."""
    audit = results["run"]["audit"] or {}
    checks = [
        (name, check["name"], check["verdict"], check["said"])
        for name, defense in results["defenses"].items()
        for check in defense["audit"] or []
    ]
    rows = [row for row in checks if every or row[2] in ("FAIL", "WARN")]
    undecided = sum(verdict == "undecided" for _, _, verdict, _ in checks)
    attacked = any(name in COMPARISONS and name != NULL_CHECK for _, name, _, _ in checks)
    size = (
        f"Attacks of the audit: at most {counted(audit['images'], 'image')} each, black box with"
        f" {audit['queries']} queries."
        if attacked
        else "The audit ran no attack of its own."
    )
    note = (
        f"{size} FAIL where a difference beyond"
        f" {100 * audit['tolerance']:g} points is certain (an honest row has a FAIL in one of a"
        f" thousand audits), WARN where it is seen. {counted(undecided, 'check')} of"
        f" {len(checks)} undecided: more images would have to tell."
        if checks
        else ""
    )
    return Sheet("Audit", ("defence", "check", "verdict", "finding"), rows, note, left=4)


def costs_sheet(results: Mapping[str, Any]) -> Sheet:
    """A row a defence: what was spent on it, and what one image costs."""
    rows = []
    for name, defense in results["defenses"].items():
        cost = defense["cost"]
        latency = cost["latency_seconds"]  # a run may be stopped before that is measured
        rows.append(
            (
                name,
                str(defense["purification_calls"]),
                f"{cost['network_calls']:,}",
                f"{cost['audit_calls']:,}",
                f"{cost['saved_calls']:,}",
                f"{cost['seconds']:.1f}",
                "-" if latency is None else f"{1000 * latency:.1f}",
            )
        )
    heads = (
        "defence", "calls of one purification", "network calls", "of them for the audit",
        "saved by the cascade", "seconds", "ms an image",
    )  # fmt: skip
    note = (
        "Network calls: forward calls of the diffusion network. ms an image: purification and"
        " classification, timed once at the end of the run on one image."
    )
    return Sheet("Cost", heads, rows, note)


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


def audit_tally(audit: Sequence[Mapping[str, Any]] | None, run: Mapping[str, Any]) -> str:
    """The worst verdict, and how many have it where it is not the best."""
    if not audit:
        return "-"
    verdicts = [check["verdict"] for check in audit]
    worst = next(verdict for verdict in ORDER if verdict in verdicts)
    tally = worst if worst == "PASS" else f"{verdicts.count(worst)} {worst}"
    asked = "reference" in (run["audit"] or {})  # in earlier versions there was none
    checked = any(check["name"] == REFERENCE for check in audit)
    return tally if checked or not asked else f"{tally}, convergence not checked"


def _coverage(shares: Mapping[str, float | None]) -> str:
    clean, adversarial = shares["clean"], shares["adversarial"]
    if clean is None or adversarial is None:
        return "-"
    return f"{100 * clean:.0f}% / {100 * adversarial:.0f}%"


def _counted(estimate: Mapping[str, Any] | None) -> str:
    return "-" if estimate is None else interval(estimate)


def _cosine(agreement: float | None) -> str:
    return "-" if agreement is None else f"{agreement:.2f}"


def interval(estimate: Mapping[str, Any]) -> str:
    """An `Estimate` as a dictionary, in % with its interval; of a wide one no decimals."""
    accuracy, low, high = (100 * estimate[key] for key in ("accuracy", "low", "high"))
    digits = 0 if high - low > WIDE else 1
    return f"{accuracy:.1f} [{low:.{digits}f}, {high:.{digits}f}]"
