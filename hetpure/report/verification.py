"""The table of a verified run."""

from collections.abc import Sequence

from hetpure.evaluation.statistics import Estimate
from hetpure.evaluation.verification import Claim
from hetpure.numbers import counted
from hetpure.report.sheet import Sheet

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
    outside = [claim for claim in claims if not claim.holds]
    lines = [f"{claim.row}, {claim.attack}: {claim.problem}" for claim in claims if claim.problem]
    lines += misreported
    if outside or misreported:
        wrong = counted(len(outside), "claim")
        return [f"NOT verified: {wrong} of {len(claims)} do not hold", *lines]
    return [f"verified: all {len(claims)} claims agree with the replay"]


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
