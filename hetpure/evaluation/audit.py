"""Sanity checks of an evaluation: what must hold if the attack works and the counting is honest.

The attacks that the checks need are cells like any other, on the first images only; every verdict
is a function of records. A check with a paired difference fails where its 95% interval excludes
what must hold, and warns where only the difference itself goes beyond the tolerance: the slice is
small.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from hetpure.attacks.attack import Threat, check_candidates
from hetpure.errors import FieldError, check_at_least, check_at_most
from hetpure.evaluation.protocol import AUDIT, CLEAN, NULL, Record
from hetpure.evaluation.results import by_attack, draws_right, paired
from hetpure.evaluation.statistics import Difference, in_points, mean_accuracy
from hetpure.noise import MOST_STEPS

Verdict = Literal["PASS", "WARN", "FAIL"]
STEPS, DRAWS, RADIUS = "more steps", "more EOT draws", "larger radius"
WHOLE, BLACK_BOX, TRANSFER = "whole range", "black box", "transfer"
DW_BOX, EIGHT_BIT = "DW-box", "8-bit images"
# Attacks that are compared with the main one: name and words, whether higher (1) or lower (-1)
# accuracy is the bad sign, and the verdict where its interval leaves no doubt.
COMPARED: tuple[tuple[str, str, int, Verdict | None], ...] = (
    (STEPS, "under twice the steps", 1, "FAIL"),
    (DRAWS, "under twice the draws", 1, "FAIL"),
    (RADIUS, "under twice the radius", 1, "FAIL"),
    (BLACK_BOX, "under an attack without gradients", -1, "FAIL"),
    (TRANSFER, "under an attack on the classifier alone", -1, "FAIL"),
    (EIGHT_BIT, "on adversarial images rounded to 8 bits", 1, "WARN"),
    (DW_BOX, "with the noise known (DW-box)", -1, None),
)
FEW_DRAWS = 0.1  # cosine between halves of the EOT draws, below which a gradient is mostly noise


@dataclass(frozen=True)
class Audit:
    """How the audit looks.

    Args:
        images: the first so many samples are its slice.
        queries: of the black-box attack, for each image.
        tolerance: of accuracy differences, beyond which a check warns.
    """

    images: int = 16
    queries: int = 100
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        check_at_least(self, 1, "images", "queries")
        check_at_most(self, MOST_STEPS, "queries")
        if not 0 <= self.tolerance < 1:
            raise FieldError(self, "tolerance", f"must be in [0, 1), got {self.tolerance}")


@dataclass(frozen=True)
class Check:
    """One line of the audit."""

    name: str
    verdict: Verdict
    said: str


def verdicts(
    records: Sequence[Record],
    base: str,
    classes: int,
    audit: Audit,
    gradient_checks: Sequence[Mapping[str, Any]],
    agreement: float | None,
) -> list[Check]:
    """The checks of one defence, from its records under the main attack `base` and the audit's, its
    gradient checks, and the mean cosine between halves of its EOT draws."""
    attacks = by_attack(records)
    checks = [_gradient(check) for check in gradient_checks]
    if NULL in attacks and len(attacks[NULL][0].predictions) > 1:  # one draw is always the same
        moved = paired(attacks[NULL], attacks[CLEAN])
        verdict = _verdict(not moved.low <= 0 <= moved.high)
        checks.append(Check("null attack", verdict, f"clean accuracy {_points(moved)}"))
    for name, words, sign, certain in COMPARED:
        if audited := attacks.get(f"{AUDIT}: {name}"):
            moved = paired(audited, attacks[base])
            checks.append(_compared(name, words, moved, sign, certain, audit.tolerance))
    if whole := attacks.get(f"{AUDIT}: {WHOLE}"):
        checks.append(_chance(whole, classes))
    if agreement is not None:
        said = f"mean cosine {agreement:.2f} between halves of the draws"
        checks.append(Check("EOT draws", _verdict(False, agreement < FEW_DRAWS), said))
    return checks


def saved_check(
    clean: tuple[Tensor, Tensor],
    saved: Mapping[str, tuple[tuple[Tensor, Tensor], Threat | None]],
) -> Check:
    """Whether what lies on the disk is in [0, 1] and in each attack's ball around the clean images;
    of each attack and of the clean images (B, C, H, W) with their sample ids (B,). Of an unfinished
    run some clean images may be gone, and what was made of them is not looked at."""
    place = {sample: position for position, sample in enumerate(clean[1].tolist())}
    count = 0
    for name, ((images, samples), threat) in saved.items():
        here = [number for number, sample in enumerate(samples.tolist()) if sample in place]
        images, samples = images[here], samples[here]
        around = clean[0][[place[sample] for sample in samples.tolist()]]
        try:
            check_candidates(images[None], around, samples, threat)
        except AssertionError as error:
            return Check("saved images", "FAIL", f"{name}: {error}")
        count += len(images)
    return Check("saved images", "PASS", f"{count} images are in [0, 1] and in their balls")


def _verdict(fails: bool, warns: bool = False) -> Verdict:
    return "FAIL" if fails else "WARN" if warns else "PASS"


def _gradient(check: Mapping[str, Any]) -> Check:
    return Check(
        "gradient check",
        _verdict(not check["passed"], check["approximation"]),
        f"{check['policy']}, {check['finite_difference_error']:.1e} from finite differences,"
        f" cosine {check['cosine_to_exact']:.4f} to the exact gradient",
    )


def _compared(
    name: str, words: str, moved: Difference, sign: int, certain: Verdict | None, tolerance: float
) -> Check:
    low = moved.low if sign > 0 else -moved.high
    verdict = _verdict(False, sign * moved.difference > tolerance)
    if low > 0 and certain is not None:
        verdict = certain
    reason = ": robustness by randomness" if name == DW_BOX and verdict == "WARN" else ""
    return Check(name, verdict, f"{words} accuracy is {_points(moved)}{reason}")


def _chance(records: Sequence[Record], classes: int) -> Check:
    share = mean_accuracy(draws_right(records))
    return Check(
        WHOLE,
        _verdict(share.low > 1 / classes, share.accuracy > 1 / classes),
        f"where any image is allowed: accuracy {100 * share.accuracy:.1f}%"
        f" [{100 * share.low:.1f}, {100 * share.high:.1f}], chance {100 / classes:.0f}%",
    )


def _points(moved: Difference) -> str:
    return f"{in_points(moved.as_dict())} points, n = {moved.n}"
