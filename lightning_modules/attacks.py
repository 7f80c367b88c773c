"""What is run against each row: the attack, the further ones of the config, null attack, audit."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hetpure.attacks import Attack
from hetpure.attacks.null import NullAttack
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.evaluation.protocol import CLEAN, NULL, Cell, Protocol
from hetpure.noise import Group


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


def cells(
    row: str,
    defense: Defense,
    main: Attack,
    further: Mapping[str, AttackConfig],
    protocol: Protocol,
) -> list[Cell]:
    """The attacks on one row, the main one's variants first, then null attack and further ones.

    Noise that a defence does not draw cannot be locked: such attacks are left out of its row.
    """
    found = _variants(Cell(main.name, main), defense)
    found.append(Cell(NULL, NullAttack(), report_from=protocol.report_draws))
    for number, (name, config) in enumerate(further.items(), start=1):
        if config.defenses is not None and row not in config.defenses:
            continue
        if config.known and not defense.groups & set(config.known):
            continue
        # Sixteen apart: an ensemble numbers its members from here.
        member = 16 * (number % 15)
        cell = Cell(name, config.attack, config.known, config.limit, member)
        found += _variants(cell, defense)
    names = [cell.name for cell in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--model.attacks: two attacks on {row!r} are called {name!r}")
    return found


def check_further(
    further: Mapping[str, AttackConfig], rows: Mapping[str, object], main: Attack
) -> None:
    """InputError where a config of further attacks names no row, or a name that is taken."""
    for name, config in further.items():
        if name in (CLEAN, NULL, main.name) or name.startswith(("audit", "robust")):
            raise InputError(f"--model.attacks: the name {name!r} is taken: choose another")
        unknown = set(config.defenses or ()) - set(rows)
        if unknown:
            raise InputError(
                f"--model.attacks.{name}.defenses names {', '.join(sorted(unknown))}: the rows are"
                f" {', '.join(rows)}"
            )
        if config.limit is not None and config.limit < 1:
            raise InputError(f"--model.attacks.{name}.limit must be >= 1, got {config.limit}")
        if len(set(config.known)) != len(config.known):
            raise InputError(f"--model.attacks.{name}.known names a group twice: {config.known}")


def _variants(cell: Cell, defense: Defense) -> list[Cell]:
    """A cell for each variant of its attack against this defence."""
    return [
        replace(cell, name=f"{cell.name}, {what}" if what else cell.name, attack=attack)
        for what, attack in cell.attack.variants(defense).items()
    ]
