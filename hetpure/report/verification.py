"""The table of a verified run."""

from collections.abc import Mapping, Sequence

from hetpure.evaluation.statistics import Estimate
from hetpure.evaluation.verification import Claim, Replay
from hetpure.numbers import counted
from hetpure.report.sheet import Sheet

MOST = 5  # numbers that are told one by one
MEANS = ("single", "dw_box")  # countings that always have their line
HEADS = (
    *("defence", "attack", "counted", "n", "claimed", "replayed"),
    *("expected, were the draws alike", "verdict"),
)
NOTE = (
    "Accuracy in %. The replay asks the same saved images on draws that the run has not seen. All"
    " expected intervals hold together with 95%. The other countings are tested too, and have a"
    " line where the claim is outside. Distances, mask coverage, network calls and the audit are"
    " not measured again: a results.json is compared with the records alone. How strong an attack"
    " is, is no part of this."
)


def verification_sheet(replay: Replay, title: str) -> Sheet:
    """A line for each mean over draws, and for each other claim that is outside."""
    shown = [c for c in replay.claims if c.counting in MEANS or not c.within_chance]
    return Sheet(title, HEADS, [_line(claim) for claim in shown], NOTE, left=3)


def verdict(
    replay: Replay, misreported: Sequence[str], missing: int, struck: Mapping[str, str]
) -> list[str]:
    """What was found, in a few lines: the finding first. `missing` are the run's jobs that are not
    done, `struck` the rows that are not evaluated any more."""
    lines = []
    total = counted(len(replay.claims), "claim") + " of accuracy"
    if missing:
        lines.append(f"UNFINISHED: {counted(missing, 'job')} missing; what is verified is a part")
    if replay.outside:
        lines.append(f"NOT verified: {len(replay.outside)} of {total} not within chance")
    elif replay.claims and not replay.problems:
        every = "" if missing else "all "
        lines.append(f"verified: {every}{total} within chance")
    for problem in replay.problems:
        lines.append(f"NOT verified: {problem.row}, {problem.attack}: {problem.said}")
    if misreported:
        lines += ["NOT verified: the results are not those of the records", *misreported[:MOST]]
    if len(misreported) > MOST:
        lines.append(f"and {len(misreported) - MOST} lines more")
    return lines + [f"not verified, struck out: {row} ({why})" for row, why in struck.items()]


def _line(claim: Claim) -> tuple[str, ...]:
    expected = f"[{100 * claim.low:.1f}, {100 * claim.high:.1f}]"
    if claim.otherwise is not None:
        expected = f"the same; {claim.otherwise} of {claim.claimed.n} images answer otherwise"
    return (
        claim.row,
        claim.attack,
        claim.counting.replace("_", " "),
        str(claim.claimed.n),
        f"{100 * claim.claimed.accuracy:.1f}",
        _percent(claim.counted),
        expected,
        "within chance" if claim.within_chance else "OUTSIDE",
    )


def _percent(estimate: Estimate) -> str:
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.accuracy:.1f} [{low:.0f}, {high:.0f}]"
