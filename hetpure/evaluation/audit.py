"""Sanity checks of an evaluation: what must hold if the attack works and the counting is honest.

The attacks that the checks need are cells like any other, on the first images only; every verdict
is a function of records. A check with a paired difference fails where its 95% interval excludes
what must hold, and warns where only the difference itself goes beyond the tolerance: the slice is
small.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any, Literal

from torch import Size, Tensor

from hetpure.attacks import PGD, Attack
from hetpure.attacks.attack import Threat, check_candidates
from hetpure.attacks.gradient import GradientAttack
from hetpure.attacks.losses import criterion
from hetpure.attacks.null import EightBit
from hetpure.attacks.square import Square
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.evaluation.protocol import AUDIT, CLEAN, NULL, Block, Cell, Record
from hetpure.evaluation.results import by_attack, draws_right, null_attack
from hetpure.evaluation.statistics import in_points, mean_accuracy, paired_difference
from hetpure.expectation import Query, expected_gradient
from hetpure.gradients import GradientError
from hetpure.noise import Noise, Stream
from hetpure.numbers import Number

Verdict = Literal["PASS", "WARN", "FAIL"]
STEPS, DRAWS, RADIUS = "more steps", "more EOT draws", "larger radius"
WHOLE, BLACK_BOX, TRANSFER = "whole range", "black box", "transfer"
LOCKED, EIGHT_BIT = "locked noise", "8-bit images"
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
        for name in ("images", "queries"):
            if getattr(self, name) < 1:
                raise InputError(f"--model.audit.{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.tolerance < 1:
            raise InputError(f"--model.audit.tolerance must be in [0, 1), got {self.tolerance}")


@dataclass(frozen=True)
class Check:
    """One line of the audit."""

    name: str
    verdict: Verdict
    said: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def base_cell(cells: Sequence[Cell]) -> Cell:
    """The cell of the main attack, whose variants stand before the null attack, that the audit
    varies: the published mask policy where there are several."""
    main = list(takewhile(lambda cell: cell.name != NULL, cells))
    published = [cell for cell in main if getattr(cell.attack, "mask", "") == "recomputed"]
    return (published or main)[0]


def audit_cells(
    base: Cell,
    defense: Defense,
    audit: Audit,
    shape: Size,
    read: Callable[[], tuple[Tensor, Tensor]],
) -> list[Cell]:
    """The attacks that the audit runs beside `base` on images of `shape` (C, H, W); `read` gives
    what `base` saved. An attack without a gradient, or without a ball, has no budget to vary."""
    attack = base.attack
    found: dict[str, Attack] = {EIGHT_BIT: EightBit(read)}
    if isinstance(attack, GradientAttack) and attack.threat is not None:
        found |= _varied(attack, defense, audit, shape)
    cells = [
        Cell(f"{AUDIT}: {name}", other, base.known, audit.images) for name, other in found.items()
    ]
    if STEPS in found and defense.stochastic and not base.known:
        cells.append(Cell(f"{AUDIT}: {LOCKED}", attack, ("forward", "reverse"), audit.images))
    return cells


def _varied(
    attack: GradientAttack, defense: Defense, audit: Audit, shape: Size
) -> dict[str, Attack]:
    """The attack with more of one thing, and attackers with less knowledge."""
    norm, draws = attack.norm, attack.eot_samples
    square = Square(epsilon=attack.epsilon, norm=norm, steps=audit.queries, eot_samples=1)
    found: dict[str, Attack] = {
        STEPS: replace(attack, steps=2 * attack.steps),
        BLACK_BOX: square,
    }
    if defense.stochastic:
        found[DRAWS] = replace(attack, eot_samples=2 * draws)
    if defense.purifier is not None:
        found[TRANSFER] = replace(attack, approximation="classifier_only")
    if attack.epsilon > 0:
        found[RADIUS] = at_radius(attack, 2 * attack.epsilon)
        found[WHOLE] = at_radius(attack, 1.0 if norm == "linf" else shape.numel() ** 0.5)
    return found


def at_radius(attack: GradientAttack, epsilon: float) -> GradientAttack:
    """The attack in another ball, its steps as much longer."""
    changed = replace(attack, epsilon=Number(epsilon))
    if isinstance(changed, PGD):
        longer = Number(changed.step_size * epsilon / attack.epsilon)
        changed = replace(changed, step_size=longer)
    return changed


def first_gradients(attacked: Defense, block: Block, seed: int, attack: Attack) -> Check:
    """Whether every image of a block that is answered rightly has a gradient, under one draw: that
    of the attack's own loss, as the attack takes it."""
    mask = attacked.mask(block.images, block.samples)
    query = Query(block.images, block.samples, mask, [Noise.of(seed, Stream.PROBE)])
    losses = criterion(getattr(attack, "loss", "cross_entropy"), block.labels)
    how = attack.execution(attacked)
    try:
        expected_gradient(attacked, query, losses, execution=how, labels=block.labels)
    except GradientError as error:
        return Check("gradient", "FAIL", str(error))
    return Check("gradient", "PASS", f"finite and not zero, n = {len(block.images)}")


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
    rows = {
        name.removeprefix(f"{AUDIT}: "): own
        for name, own in attacks.items()
        if name.startswith(f"{AUDIT}: ")
    }
    found = [_checked(found) for found in gradient_checks]
    if NULL in attacks and len(attacks[NULL][0].predictions) > 1:  # one draw is always the same
        found.append(_null(attacks[CLEAN], attacks[NULL]))

    def compared(name: str, what: str, sign: int) -> None:
        """Whether attack `name` finds less (sign 1) or more (-1) than the base."""
        if name in rows:
            found.append(_compared(name, what, rows[name], attacks[base], sign, audit.tolerance))

    compared(STEPS, "twice the steps", 1)
    compared(DRAWS, "twice the draws", 1)
    compared(RADIUS, "twice the radius", 1)
    if WHOLE in rows:
        found.append(_chance(rows[WHOLE], classes))
    compared(BLACK_BOX, "an attack without gradients", -1)
    compared(TRANSFER, "an attack on the classifier alone", -1)
    if EIGHT_BIT in rows:
        found.append(_rounded(rows[EIGHT_BIT], attacks[base], audit.tolerance))
    if LOCKED in rows:
        found.append(_locked(rows[LOCKED], attacks[base], audit.tolerance))
    if agreement is not None:
        found.append(_agreement(agreement))
    return found


def saved_check(
    clean: Tensor, saved: Mapping[str, tuple[tuple[Tensor, Tensor], Threat | None]]
) -> Check:
    """Whether what lies on the disk is in [0, 1] and in each attack's ball around the clean images
    (B, C, H, W), of which attacks may have the first only; attacks as (images, sample ids)."""
    for name, ((images, samples), threat) in saved.items():
        try:
            check_candidates(images[None], clean[: len(images)], samples, threat)
        except AssertionError as error:
            return Check("saved images", "FAIL", f"{name}: {error}")
    count = sum(len(images) for (images, _), _ in saved.values())
    return Check("saved images", "PASS", f"{count} images are in [0, 1] and in their balls")


def _checked(gradient_check: Mapping[str, Any]) -> Check:
    verdict: Verdict = "PASS" if gradient_check["passed"] else "FAIL"
    if gradient_check["approximation"] and gradient_check["passed"]:
        verdict = "WARN"
    return Check(
        "gradient check",
        verdict,
        f"{gradient_check['policy']}, {gradient_check['finite_difference_error']:.1e} from finite"
        f" differences, cosine {gradient_check['cosine_to_exact']:.4f} to the exact gradient",
    )


def _null(clean: Sequence[Record], null: Sequence[Record]) -> Check:
    moved = null_attack(clean, null)["difference"]
    inside = moved["low"] <= 0 <= moved["high"]
    return Check("null attack", "PASS" if inside else "FAIL", f"clean accuracy {_points(moved)}")


def _compared(
    name: str,
    what: str,
    other: Sequence[Record],
    base: Sequence[Record],
    sign: int,
    tolerance: float,
) -> Check:
    moved = _paired(other, base)
    low = moved["low"] if sign > 0 else -moved["high"]
    middle = sign * moved["difference"]
    verdict: Verdict = "FAIL" if low > 0 else "WARN" if middle > tolerance else "PASS"
    return Check(name, verdict, f"under {what} accuracy is {_points(moved)}")


def _chance(rows: Sequence[Record], classes: int) -> Check:
    found = mean_accuracy(draws_right(rows))
    said = f"accuracy {100 * found.accuracy:.1f}% [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    verdict: Verdict = "FAIL" if found.low > 1 / classes else "PASS"
    if verdict == "PASS" and found.accuracy > 1 / classes:
        verdict = "WARN"
    return Check(WHOLE, verdict, f"where any image is allowed: {said}, chance {100 / classes:.0f}%")


def _rounded(rows: Sequence[Record], base: Sequence[Record], tolerance: float) -> Check:
    moved = _paired(rows, base)
    lost = moved["low"] > 0 or moved["difference"] > tolerance
    said = f"adversarial images rounded to 8 bits: accuracy is {_points(moved)}"
    return Check(EIGHT_BIT, "WARN" if lost else "PASS", said)


def _locked(rows: Sequence[Record], base: Sequence[Record], tolerance: float) -> Check:
    moved = _paired(rows, base)
    random = moved["difference"] < -tolerance  # as everywhere: a warning needs no certainty
    said = f"with the noise known and held (DW-box) accuracy is {_points(moved)}"
    return Check(
        LOCKED,
        "WARN" if random else "PASS",
        said + (": robustness by randomness" if random else ""),
    )


def _agreement(cosine: float) -> Check:
    verdict: Verdict = "WARN" if cosine < FEW_DRAWS else "PASS"
    return Check("EOT draws", verdict, f"mean cosine {cosine:.2f} between halves of the draws")


def _paired(other: Sequence[Record], base: Sequence[Record]) -> dict[str, Any]:
    """Accuracy of `other` minus that of `base` on the samples of both."""
    known = {record.sample: record for record in base}
    both = [record for record in other if record.sample in known]
    return paired_difference(
        draws_right(both), draws_right([known[record.sample] for record in both])
    ).as_dict()


def _points(moved: Mapping[str, Any]) -> str:
    return f"{in_points(moved)} points, n = {moved['n']}"
