"""What is run against each row, and configs of attacks that cannot be."""

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from hetpure.attacks import PGD, Addresses, AutoEOT, Square, StAdv, Target
from hetpure.attacks.reference import Reference
from hetpure.defense import Defense
from hetpure.errors import FieldError, InputError
from hetpure.evaluation.audit import Audit
from hetpure.evaluation.cells import (
    MOST_ATTACKS,
    REFERENCE_MEMBER,
    AttackConfig,
    attack_cells,
    audit_cells,
)
from hetpure.evaluation.protocol import Block, Cell, Protocol
from hetpure.gradients import Execution
from hetpure.noise import BatchNoise, Group, Noise, Purpose, Stream
from tests.hetpure.evaluation.runs import CONFIG, small

MAIN = PGD(steps=1)


@pytest.fixture(scope="module")
def rows() -> dict[str, Defense]:
    networks, _ = small()
    return {name: row.defense for name, row in networks.rows.items()}


def test_every_attack_is_where_it_makes_sense(rows: dict[str, Defense]) -> None:
    further = {
        "square": AttackConfig(Square(steps=1), limit=3),
        "warped": AttackConfig(StAdv(steps=1), defenses=("plain",)),
        "both": AttackConfig(MAIN, known=("forward", "reverse")),
        "reverse": AttackConfig(MAIN, known=("reverse",), defenses=("purified",)),
    }
    cells = {
        name: attack_cells(name, defense, MAIN, further, Protocol(5, 1))
        for name, defense in rows.items()
    }
    assert [cell.name for cell in cells["plain"]] == [
        "clean", "pgd_linf", "null", "square", "warped",
    ], "a plain classifier draws no noise that could be known"  # fmt: skip
    assert [cell.name for cell in cells["purified"]] == [
        "clean", "pgd_linf", "null", "square", "both", "reverse",
    ]  # fmt: skip
    by_name = {cell.name: cell for cell in cells["purified"]}
    members = [by_name[name].member for name in ("pgd_linf", "square", "both", "reverse")]
    assert members == [0, 16, 48, 64], "numbers are the config's, whatever a row leaves out"
    assert by_name["null"].report_from == 5
    assert (by_name["square"].images(2), by_name["square"].images(9)) == (2, 3)


@pytest.mark.parametrize("name", ["clean", "null", "pgd_linf", "audit: mine", "robust"])
def test_taken_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"the name '{name}' is taken"):
        replace(CONFIG, attacks={name: AttackConfig(Square())})


def test_two_cells_of_one_name_are_refused(rows: dict[str, Defense]) -> None:
    twice = {"a": AttackConfig(MAIN), "a ": AttackConfig(MAIN)}
    attack_cells("plain", rows["plain"], MAIN, twice, Protocol())
    with pytest.raises(InputError, match="two attacks on 'plain' are called 'pgd_linf'"):
        attack_cells("plain", rows["plain"], MAIN, {"pgd_linf": AttackConfig(MAIN)}, Protocol())


def test_attacks_that_would_share_noise_are_refused() -> None:
    """An ensemble has sixteen numbers, and an address has room for fifteen of these."""
    many = {f"a{k}": AttackConfig(AutoEOT()) for k in range(14)}
    replace(CONFIG, attacks=many)
    with pytest.raises(InputError, match="attacks names 15: .* at most 14"):
        replace(CONFIG, attacks=many | {"one more": AttackConfig(Square())})


def test_unusable_configs_name_what_is_wrong() -> None:
    with pytest.raises(FieldError, match="AttackConfig.limit must be >= 1, got 0"):
        AttackConfig(MAIN, limit=0)
    with pytest.raises(FieldError, match="AttackConfig.known names a group twice"):
        AttackConfig(MAIN, known=("forward", "forward"))
    with pytest.raises(InputError, match="attacks.a.defenses names gone: the rows are plain, pur"):
        replace(CONFIG, attacks={"a": AttackConfig(MAIN, defenses=("plain", "gone"))})
    with pytest.raises(InputError, match="baseline 'gone' is not among the defences: plain"):
        replace(CONFIG, baseline="gone")
    with pytest.raises(InputError, match="execution names no row of the table: gone"):
        replace(CONFIG, execution={"gone": Execution("tape")})
    with pytest.raises(FieldError, match="Evaluation.seed must be in 0 to 4294967295, got -1"):
        replace(CONFIG, seed=-1)


class Listens(Defense):
    """Keeps the draws of the attack's stream that it is asked on."""

    groups = frozenset[Group]({"forward"})

    def __init__(self, defense: Defense) -> None:
        super().__init__(defense.classifier)
        self.drawn: set[int] = set()

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Any:
        of_attack = noise.forward[noise.forward[:, 0] == Stream.ATTACK]
        self.drawn |= set(of_attack[:, 1].tolist())
        shift = 0.3 * noise.normal(Purpose.FORWARD, images)
        return super().forward(images + shift, noise, mask, policy)


def drawn(defense: Defense, cell: Cell, block: Block) -> set[int]:
    """The attack's draws on which a cell asks a defence like this one."""
    listens = Listens(defense)
    addresses = Addresses(block.samples, Noise.of(0, Stream.DW_BOX), cell.known, cell.member)
    cell.attack(Target(listens, block.images, block.labels, addresses))
    return listens.drawn


def test_no_two_attacks_share_draws(rows: dict[str, Defense]) -> None:
    """Nor does any with the main one: of as many as there are, ensembles among them."""
    _, images = small()
    block, main = images.read(range(2)), PGD(steps=2, eot_samples=2)
    ensemble = AutoEOT(steps=1, eot_samples=1, targets=1, square_steps=1, check_draws=2)
    further = {f"a{k}": AttackConfig((ensemble, main)[k % 2]) for k in range(MOST_ATTACKS)}
    cells = attack_cells("plain", Listens(rows["plain"]), main, further, Protocol(5, 1))
    reference = [Cell("reference", Reference.of(main.threat), member=REFERENCE_MEMBER)]
    attacks = [cell for cell in cells if cell.name not in ("clean", "null")] + reference
    assert len(attacks) == 1 + MOST_ATTACKS + 1
    sets = [drawn(rows["plain"], cell, block) for cell in attacks]
    assert all(sets), "everything draws"
    assert sum(map(len, sets)) == len(set.union(*sets))


def test_variants_of_the_main_attack_share_its_draws(rows: dict[str, Defense]) -> None:
    """What differs between them is then not luck."""
    _, images = small()
    block, main = images.read(range(2)), PGD(steps=2, eot_samples=2)
    defense = Listens(rows["plain"])
    base = attack_cells("plain", defense, main, {}, Protocol(5, 1))[1]
    own = drawn(rows["plain"], base, block)
    audit = {
        cell.name: cell
        for cell in audit_cells(base, defense, Audit(), 64, lambda: (block.images,) * 2)
    }
    for name in ("more steps", "more EOT draws", "larger radius", "whole range"):
        assert own <= drawn(rows["plain"], audit[f"audit: {name}"], block)
    masks = [Cell("", replace(main, mask=mask)) for mask in ("frozen", "recomputed")]
    assert [drawn(rows["plain"], cell, block) for cell in masks] == [own, own]
