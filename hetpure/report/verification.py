"""The table of a verified run."""

from collections.abc import Sequence

from hetpure.evaluation.statistics import Estimate
from hetpure.evaluation.verification import Claim
from hetpure.numbers import counted
from hetpure.report.sheet import Sheet

MOST = 5  # numbers that are told one by one
HEADS = ("defence", "attack", "n", "claimed", "replayed", "claims that agree", "verdict")
NOTE = (
    "Mean accuracy in %. The replay asks the same saved images on draws that the run has not seen."
    " All intervals of claims that agree hold together with 95%. How strong an attack is, is no"
    " part of this."
)


def verification_sheet(claims: Sequence[Claim], title: str) -> Sheet:
    """A line a claim."""
    return Sheet(title, HEADS, [_line(claim) for claim in claims], NOTE, left=2)


def verdict(claims: Sequence[Claim], misreported: Sequence[str]) -> list[str]:
    """What was found, in a few lines: the finding first."""
    outside = sum(not claim.holds for claim in claims)
    lines = [f"verified: all {len(claims)} claims agree with the replay"]
    if outside:
        lines = [f"NOT verified: {outside} of {counted(len(claims), 'claim')} do not hold"]
    lines += [f"{claim.row}, {claim.attack}: {claim.problem}" for claim in claims if claim.problem]
    if misreported:
        lines += ["NOT verified: the results are not those of the records", *misreported[:MOST]]
    if len(misreported) > MOST:
        lines.append(f"and {len(misreported) - MOST} numbers more")
    return lines


def _line(claim: Claim) -> tuple[str, ...]:
    claimed = f"{100 * claim.claimed.accuracy:.1f}"
    start = (claim.row, claim.attack, str(claim.claimed.n), claimed)
    if claim.problem is not None:
        return (*start, "-", "-", "not replayed")
    agree = f"[{100 * claim.low:.1f}, {100 * claim.high:.1f}]"
    return (*start, _percent(claim.counted), agree, "inside" if claim.holds else "OUTSIDE")


def _percent(estimate: Estimate) -> str:
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.accuracy:.1f} [{low:.0f}, {high:.0f}]"
