"""Sanity checks of an evaluation: what must hold if the attack works and the counting is honest.

The attacks that the checks need are cells like any other, on the first images only; every verdict
is a function of records. A check that compares accuracies is certain where the evidence against
"within the tolerance" is so strong that all checks of a row together are wrong once in a thousand
audits. The evidence may be looked at as often as one likes, so a slice grows, look by look, until
its check is settled or the row's budget is spent. Images come in an order by the hash of their ids:
a data set may be sorted, and nobody knows which ones are looked at.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hetpure.attacks.attack import Threat, check_candidates
from hetpure.errors import FieldError, check_at_least, check_at_most
from hetpure.evaluation.protocol import AUDIT, CLEAN, NULL, Record
from hetpure.evaluation.results import by_attack, draws_right
from hetpure.evaluation.statistics import (
    evidence,
    holm,
    in_points,
    mean_accuracy,
    paired_difference,
    visible,
)
from hetpure.noise import MOST_STEPS, Noise, Purpose, Stream

Verdict = Literal["PASS", "undecided", "WARN", "FAIL"]
REFERENCE, STEPS, DRAWS = "reference attack", "more steps", "more EOT draws"
RADIUS, WHOLE = "larger radius", "whole range"
BLACK_BOX, TRANSFER = "black box", "transfer"
DW_BOX, EIGHT_BIT = "DW-box", "8-bit images"
ATTACK_DRAWS, OTHER_IDS = "attacker's draws", "exchanged ids"
NULL_CHECK, CONVERGENCE = "null attack", "convergence"
FAMILY_ERROR = 1e-3  # probability that an audit of an honest row fails one of its comparisons
PASS_ERROR = 0.05  # of a check that passes although its difference is beyond the tolerance
FEW_DRAWS = 0.1  # cosine between halves of the EOT draws, below which a gradient is mostly noise
FIRST_LOOK = 16
OF_REFERENCE = 0.75  # share of the budget that no other check takes from the reference attack
WEIGHT_OF_REFERENCE = 0.5  # its share of the family's error


@dataclass(frozen=True)
class Comparison:
    """Two accuracies of a row on the same images.

    Args:
        words: where the first of them is measured.
        bad: whether the first must not be the higher one (1), the lower one (-1), or either (0).
        certain: the verdict where a bad difference is certain.
        against: the other one: the main attack, or the clean images.
        falls: the first is of a stronger attack: lower by more than the tolerance, it says that the
            main attack has not converged.
        exact: any difference is bad, not only one beyond the tolerance.
    """

    words: str
    bad: int
    certain: Verdict = "FAIL"
    against: Literal["main", "clean"] = "main"
    falls: bool = False
    exact: bool = False


COMPARISONS = {
    REFERENCE: Comparison("under the reference attack", -1),
    STEPS: Comparison("under twice the steps", 1, falls=True),
    DRAWS: Comparison("under twice the draws", 1, falls=True),
    RADIUS: Comparison("under twice the radius", 1),
    BLACK_BOX: Comparison("under an attack without gradients", -1),
    TRANSFER: Comparison("under an attack on the classifier alone", -1),
    EIGHT_BIT: Comparison("on adversarial images rounded to 8 bits", 1, "WARN"),
    DW_BOX: Comparison("with the noise known (DW-box)", -1, "WARN"),
    ATTACK_DRAWS: Comparison("on the attacker's draws", 0, against="clean"),
    OTHER_IDS: Comparison("with sample ids exchanged", 0, against="clean"),
    NULL_CHECK: Comparison("of strength zero", 0, against="clean", exact=True),
}


@dataclass(frozen=True)
class Audit:
    """How the audit looks.

    Args:
        images: a check looks at so many images at most.
        purifications: of a row's audit, at most, gradients and answers alike; most of them are for
            the reference attack.
        queries: of the black-box attack, for each image.
        tolerance: of accuracy differences, beyond which a check warns, or fails where that is
            certain.
        reference: whether an attack of fixed strength is run beside the main one. Without it a weak
            attack may pass, and the tables say so.
    """

    images: int = 256
    purifications: int = 51_200
    queries: int = 100
    tolerance: float = 0.05
    reference: bool = True

    def __post_init__(self) -> None:
        check_at_least(self, 1, "images", "queries", "purifications")
        check_at_most(self, MOST_STEPS, "queries")
        if not 0 < self.tolerance < 1:
            raise FieldError(self, "tolerance", f"must be in (0, 1), got {self.tolerance}")


@dataclass(frozen=True)
class Check:
    """One line of the audit."""

    name: str
    verdict: Verdict
    said: str


@dataclass(frozen=True)
class Reading:
    """What a check's records say.

    Args:
        right: which draws (n, draws) are right where the check measures.
        before: and where it compares with; None where it does not.
        difference: of their means, signed so that positive is bad.
        bound: the largest difference that is allowed.
        low: the lowest that there is.
        against: evidence that the difference is beyond the bound.
        within: evidence that it is not.
    """

    right: NDArray[np.bool_]
    before: NDArray[np.bool_] | None
    difference: float
    bound: float
    low: float
    against: float
    within: float

    def settled(self, weight: float) -> bool:
        """Whether more images would change nothing for a check of this share of the error."""
        return self.against * weight >= 1 / FAMILY_ERROR or self.within >= 1 / PASS_ERROR


@dataclass(frozen=True)
class Slice:
    """How far a check is.

    Args:
        cost: purifications an image.
        taken: images that were looked at.
        settled: whether more would change nothing.
    """

    cost: int
    taken: int = 0
    settled: bool = False


def next_look(
    slices: Mapping[str, Slice], audit: Audit, images: int, most: int
) -> tuple[str, range] | None:
    """The cell of a row's audit that takes the next look, and the places of its images in the
    audit's order; None where the audit is at its end.

    The reference attack looks first, up to three quarters of the budget; then the others, those
    with the fewest images and of these the cheapest first; what they leave is the reference's. A
    look doubles a slice of `images` images at most, in parts of at most `most`.
    """
    reference = f"{AUDIT}: {REFERENCE}"
    left = audit.purifications - sum(part.cost * part.taken for part in slices.values())
    others = sorted(slices, key=lambda name: (slices[name].taken, slices[name].cost))
    rooms = [(name, left) for name in others if name != reference]
    if reference in slices:
        part = slices[reference]
        first = min(left, int(OF_REFERENCE * audit.purifications) - part.cost * part.taken)
        rooms = [(reference, first), *rooms, (reference, left)]
    for name, room in rooms:
        part = slices[name]
        wanted = min(max(part.taken, FIRST_LOOK), most, min(audit.images, images) - part.taken)
        count = min(wanted, room // max(part.cost, 1))
        if count > 0 and not part.settled:
            return name, range(part.taken, part.taken + count)
    return None


def longest_slices(
    costs: Mapping[str, int], audit: Audit, images: int, most: int
) -> dict[str, int]:
    """How many images each cell of an audit sees where no check is ever settled."""
    slices = {name: Slice(cost) for name, cost in costs.items()}
    while (look := next_look(slices, audit, images, most)) is not None:
        name, places = look
        slices[name] = replace(slices[name], taken=places.stop)
    return {name: part.taken for name, part in slices.items()}


def audit_order(samples: Tensor, seed: int) -> list[int]:
    """Positions of images with these ids (N,) in the order in which an audit looks at them."""
    noise = Noise.of(seed, Stream.PROBE).on(samples)
    order = noise.words(Purpose.TIES, 0, 0, 1)[:, 0].argsort(stable=True)
    return [int(position) for position in order]


def weights(names: Sequence[str]) -> dict[str, float]:
    """The share of each check, by its name, in the family's error."""
    others = [name for name in names if name != REFERENCE]
    rest = 1.0 if len(others) == len(names) else 1 - WEIGHT_OF_REFERENCE
    return {name: rest / len(others) for name in others} | {
        name: WEIGHT_OF_REFERENCE if others else 1.0 for name in names if name == REFERENCE
    }


class Course:
    """The course of a row's audit: a function of the records that its looks left.

    Args:
        costs: purifications an image, by the cells of the audit.
        audit: of the evaluation.
        images: of the run.
        most: of a look.
        before: the row's records on the clean images and under the main attack.
        base: the main attack.
        classes: of the classifier.
    """

    def __init__(
        self,
        costs: Mapping[str, int],
        audit: Audit,
        images: int,
        most: int,
        before: Mapping[str, Sequence[Record]],
        base: str,
        classes: int,
    ) -> None:
        self.audit, self.images, self.most = audit, images, most
        self.base, self.classes = base, classes
        self.slices = {name: Slice(cost) for name, cost in costs.items()}
        self.records = {name: list(records) for name, records in before.items()}
        self.looks = Counter[str]()
        # The null attack is compared beside the audit's cells.
        names = [NULL_CHECK, *(name.removeprefix(f"{AUDIT}: ") for name in costs)]
        self.weights = weights(names)

    def next(self) -> tuple[str, int, range] | None:
        """The cell that looks next, the number of its look, and the places of its images in the
        audit's order; None at the end."""
        look = next_look(self.slices, self.audit, self.images, self.most)
        return None if look is None else (look[0], self.looks[look[0]], look[1])

    def add(self, cell: str, places: range, records: Sequence[Record]) -> None:
        """What a look left."""
        self.looks[cell] += 1
        self.records[cell] = [*self.records.get(cell, ()), *records]
        name = cell.removeprefix(f"{AUDIT}: ")
        reading = read_check(name, self.records, self.base, self.classes, self.audit.tolerance)
        done = reading is not None and reading.settled(self.weights[name])
        self.slices[cell] = replace(self.slices[cell], taken=places.stop, settled=done)


def read_check(
    name: str,
    records: Mapping[str, Sequence[Record]],
    base: str,
    classes: int,
    tolerance: float,
) -> Reading | None:
    """What the records of a row, by attack, say of a check; None where it was not looked at."""
    key = NULL if name == NULL_CHECK else f"{AUDIT}: {name}"
    if not records.get(key):
        return None
    if name == WHOLE:
        bound = 1 / classes + tolerance
        return None if bound >= 1 else _whole(draws_right(records[key]), 1 / classes, bound)
    comparison = COMPARISONS[name]
    other = base if comparison.against == "main" else CLEAN
    others = {record.sample: record for record in records.get(other, ())}
    both = [record for record in records[key] if record.sample in others]
    if not both:
        return None
    right, before = draws_right(both), draws_right([others[record.sample] for record in both])
    if name == NULL_CHECK and right.shape[1] == 1 and (right == before).all():
        return None  # a defence that draws nothing
    values = (comparison.bad or 1) * (right.mean(1) - before.mean(1))
    bound = 0.0 if comparison.exact else tolerance
    against, within = evidence(values, bound, -1.0), evidence(-values, -tolerance, -1.0)
    if comparison.bad == 0:
        against = (against + evidence(-values, bound, -1.0)) / 2
    if comparison.bad == 0 or comparison.falls:
        within = min(within, evidence(values, -tolerance, -1.0))
    return Reading(right, before, float(values.mean()), bound, -1.0, against, within)


def _whole(right: NDArray[np.bool_], chance: float, bound: float) -> Reading:
    rates = right.mean(1)
    against, within = evidence(rates, bound, 0.0), evidence(-rates, -bound, -1.0)
    return Reading(right, None, float(rates.mean()) - chance, bound, 0.0, against, within)


def verdicts(
    records: Sequence[Record],
    base: str,
    classes: int,
    audit: Audit,
    gradient_checks: Sequence[Mapping[str, Any]],
    agreement: float | None,
    right: Sequence[float] = (),
) -> list[Check]:
    """The checks of one defence, from its records under the main attack `base` and the audit's, its
    gradient checks, the mean cosine between halves of its EOT draws, and the accuracy at each of
    its iterates."""
    attacks = by_attack(records)
    checks = [_gradient(check) for check in gradient_checks]
    readings = {
        name: reading
        for name in (NULL_CHECK, *COMPARISONS, WHOLE)
        if (reading := read_check(name, attacks, base, classes, audit.tolerance)) is not None
    }
    against = {name: reading.against for name, reading in readings.items()}
    shares = weights(list(readings))
    certain = holm(against, FAMILY_ERROR, shares)
    for name, reading in readings.items():
        needed = 1 / (shares[name] * FAMILY_ERROR)
        checks.append(_judged(name, reading, name in certain, needed, audit.tolerance))
    if right:
        checks.append(convergence(right, audit.tolerance))
    if agreement is not None:
        said = f"mean cosine {agreement:.2f} between halves of the draws"
        checks.append(Check("EOT draws", "WARN" if agreement < FEW_DRAWS else "PASS", said))
    return checks


def _judged(name: str, reading: Reading, certain: bool, needed: float, tolerance: float) -> Check:
    """The verdict on a reading; `needed` is the evidence that would make it certain."""
    comparison, said = COMPARISONS.get(name, Comparison("", 1)), _said(name, reading)
    either, fell = comparison.bad == 0, -reading.difference > tolerance
    if certain or reading.difference > tolerance or (either and fell):
        reason = ": robustness by randomness" if name == DW_BOX else ""
        return Check(name, comparison.certain if certain else "WARN", said + reason)
    if comparison.falls and fell:
        return Check(name, "WARN", f"{said}: not converged")
    if reading.within >= 1 / PASS_ERROR:
        return Check(name, "PASS", said)
    seen = visible(len(reading.right), needed, reading.bound, reading.low)
    can = "so few images make no difference certain"
    if seen is not None:
        can = f"certain from {100 * seen:.0f} points on, where no image goes the other way"
    return Check(name, "undecided", f"{said}; {can}")


def _said(name: str, reading: Reading) -> str:
    """A reading in words."""
    n = len(reading.right)
    if reading.before is None:
        share = mean_accuracy(reading.right)
        low, high = 100 * share.low, 100 * share.high
        chance = 100 * (share.accuracy - reading.difference)
        return (
            f"where any image is allowed: accuracy {100 * share.accuracy:.1f}%"
            f" [{low:.1f}, {high:.1f}], chance {chance:.0f}%, n = {n}"
        )
    comparison = COMPARISONS[name]
    points = in_points(paired_difference(reading.right, reading.before).as_dict())
    what = "clean accuracy" if comparison.against == "clean" else "accuracy"
    return f"{what} {comparison.words} is {points} points, n = {n}"


def convergence(right: Sequence[float], tolerance: float) -> Check:
    """Whether an attack still gained at its end, from the accuracy at each of its iterates: the
    mean of an eighth of them before the half of its budget, and of the last eighth."""
    count, part = len(right), max(len(right) // 8, 1)
    if count < 2 * part + 2:
        return Check(CONVERGENCE, "WARN", f"{count} iterations are too few to tell")
    half = float(np.mean(right[count // 2 - part : count // 2]))
    end = float(np.mean(right[-part:]))
    said = f"accuracy {100 * half:.1f}% after half of {count} iterations, {100 * end:.1f}% at last"
    if half - end > tolerance:
        return Check(CONVERGENCE, "WARN", f"{said}: not converged")
    return Check(CONVERGENCE, "PASS", said)


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


def _gradient(check: Mapping[str, Any]) -> Check:
    verdict: Verdict = "FAIL" if not check["passed"] else "PASS"
    if verdict == "PASS" and check["approximation"]:
        verdict = "WARN"
    said = (
        f"{check['policy']}, {check['finite_difference_error']:.1e} from finite differences,"
        f" cosine {check['cosine_to_exact']:.4f} to the exact gradient"
    )
    kind = check.get("kind")  # what is wrong with it
    return Check("gradient check", verdict, said if kind is None else f"{said}: {kind}")
