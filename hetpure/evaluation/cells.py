"""What is run against each row: clean images, the attack, null attack, further attacks, audit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from hetpure.attacks import Attack
from hetpure.attacks.gradient import unfolded
from hetpure.attacks.null import EightBit, NullAttack
from hetpure.attacks.reference import Reference
from hetpure.attacks.square import Square
from hetpure.defense import Defense
from hetpure.errors import FieldError, InputError, check_at_least
from hetpure.evaluation.audit import (
    ATTACK_DRAWS,
    BLACK_BOX,
    DRAWS,
    DW_BOX,
    EIGHT_BIT,
    OTHER_IDS,
    RADIUS,
    REFERENCE,
    STEPS,
    TRANSFER,
    WHOLE,
    Audit,
)
from hetpure.evaluation.protocol import AUDIT, CLEAN, CLEAN_CELL, NULL, Cell, Protocol
from hetpure.noise import Group
from hetpure.numbers import Number

MEMBERS = 16  # numbers that one attack has for the members of an ensemble
MOST_ATTACKS = 14  # further ones, from number 16 on; the last 16 numbers are of what is no attack
REFERENCE_MEMBER = 240


@dataclass(frozen=True)
class AttackConfig:
    """A further attack of an evaluation.

    Args:
        attack: the attack.
        known: groups of noise that the attacker knows and the defence then runs with: forward,
            reverse or both, the deterministic white box (DW-box); none is the white box.
        defenses: names of the rows it is run against; by default all that it makes sense for.
        limit: only the first so many samples.
    """

    attack: Attack
    known: tuple[Group, ...] = ()
    defenses: tuple[str, ...] | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None:
            check_at_least(self, 1, "limit")
        if len(set(self.known)) != len(self.known):
            raise FieldError(self, "known", f"names a group twice: {self.known}")


def attack_cells(
    row: str,
    defense: Defense,
    main: Attack,
    further: Mapping[str, AttackConfig],
    protocol: Protocol,
) -> list[Cell]:
    """The clean images and the attacks on one row: the main one under every mask policy, then null
    attack and further ones.

    Noise that a defence does not draw cannot be known: such attacks are left out of its row.
    """
    cells = [CLEAN_CELL, *_unfolded(Cell(main.name, main), defense)]
    cells.append(Cell(NULL, NullAttack(), report_from=protocol.report_draws))
    for number, (name, config) in enumerate(further.items(), start=1):
        if config.defenses is not None and row not in config.defenses:
            continue
        if config.known and not defense.groups & set(config.known):
            continue
        cell = Cell(name, config.attack, config.known, config.limit, MEMBERS * number)
        cells += _unfolded(cell, defense)
    names = [cell.name for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"attacks: two attacks on {row!r} are called {name!r}")
    return cells


def audit_cells(
    base: Cell,
    defense: Defense,
    audit: Audit,
    pixels: int,
    read: Callable[[], tuple[Tensor, Tensor]],
) -> list[Cell]:
    """What the audit runs beside `base` on images of so many values each; `read` gives the images
    that `base` left. What an attack cannot vary is left out."""
    attack = base.attack
    stronger, threat = attack.stronger(), attack.threat
    varied: dict[str, Attack | None] = {EIGHT_BIT: EightBit(read), STEPS: stronger.get(STEPS)}
    if threat is not None and stronger:  # others are no gradient attacks: nothing to hold against
        varied[BLACK_BOX] = Square(
            epsilon=Number(threat.epsilon), norm=threat.norm, steps=audit.queries, eot_samples=1
        )
    if defense.stochastic:
        varied[DRAWS] = stronger.get(DRAWS)
    if defense.purifier is not None:
        varied[TRANSFER] = attack.transferred()
    if threat is not None and threat.epsilon > 0:
        varied[RADIUS] = attack.at_radius(2 * threat.epsilon)
        varied[WHOLE] = attack.at_radius(1.0 if threat.norm == "linf" else pixels**0.5)
    cells = [Cell(name, other, base.known) for name, other in varied.items() if other is not None]
    if defense.stochastic and not base.known:
        if STEPS in stronger:
            cells.append(Cell(DW_BOX, attack, ("forward", "reverse")))
        clean = Cell(ATTACK_DRAWS, NullAttack(), by_attacker=True)
        cells += [clean, Cell(OTHER_IDS, NullAttack(), exchanged=True)]
    if audit.reference and threat is not None and threat.epsilon > 0:
        reference = Reference.of(threat)
        cells.append(Cell(REFERENCE, reference, base.known, member=REFERENCE_MEMBER, itself=True))
    return [replace(cell, name=f"{AUDIT}: {cell.name}") for cell in cells]


def check_attacks(
    further: Mapping[str, AttackConfig], rows: Mapping[str, object], main: Attack
) -> None:
    """InputError where a config of further attacks names no row, or a name that is taken."""
    if len(further) > MOST_ATTACKS:
        raise InputError(
            f"attacks names {len(further)}: an evaluation has at most {MOST_ATTACKS} further ones,"
            " which share no noise; put the others into a second evaluation"
        )
    for name, config in further.items():
        if name in (CLEAN, NULL, main.name) or name.startswith((AUDIT, "robust")):
            raise InputError(f"attacks: the name {name!r} is taken: choose another")
        unknown = set(config.defenses or ()) - set(rows)
        if unknown:
            raise InputError(
                f"attacks.{name}.defenses names {', '.join(sorted(unknown))}: the rows are"
                f" {', '.join(rows)}"
            )


def _unfolded(cell: Cell, defense: Defense) -> list[Cell]:
    """A cell for each mask policy of an attack that asks for all of them."""
    return [
        replace(cell, name=f"{cell.name}, {mask}" if mask else cell.name, attack=attack)
        for mask, attack in unfolded(cell.attack, defense).items()
    ]


def base_cell(cells: list[Cell]) -> Cell:
    """The cell of the main attack that the audit varies: the published mask policy, recomputed,
    where there are several."""
    main = cells[1 : [cell.name for cell in cells].index(NULL)]
    return next((cell for cell in main if cell.name.endswith("recomputed mask")), main[0])
