"""The audit's cells, and its verdicts by hand. Planted frauds are in test_frauds.py."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from hetpure.attacks import PGD, Attack, Threat
from hetpure.attacks.null import EightBit, NullAttack
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.audit import (
    COMPARISONS,
    FAMILY_ERROR,
    Audit,
    Check,
    Slice,
    audit_order,
    convergence,
    next_look,
    saved_check,
    verdicts,
    weights,
)
from hetpure.evaluation.cells import AttackConfig, attack_cells, audit_cells, base_cell
from hetpure.evaluation.protocol import (
    AUDIT,
    CLEAN_CELL,
    NULL,
    Block,
    Cell,
    Protocol,
    Record,
    evaluate_cell,
)
from hetpure.evaluation.statistics import visible
from hetpure.noise import BatchNoise, Group, Purpose, attack_draw
from hetpure.numbers import Number
from hetpure.purifiers import HeterogeneousPurifier
from hetpure.samplers import DDPM

COUNT, CLASSES = 24, 4
PROTOCOL = Protocol(report_draws=5, selection_draws=4)
SETTINGS = Audit(images=COUNT, queries=120)
PIXELS = 64
ATTACK = PGD(epsilon=0.12, steps=8, step_size=0.04, eot_samples=4)


class Fraud(Defense):
    """A nearest-template classifier; frauds change what it answers or hands back."""

    noisy: frozenset[Group] = frozenset()

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        templates = 0.3 + 0.4 * torch.rand(CLASSES, 64, generator=generator, dtype=torch.float64)
        nearest = nn.Linear(64, CLASSES).double()
        nearest.load_state_dict({"weight": 20 * templates, "bias": -10 * templates.square().sum(1)})
        network = nn.Sequential(nn.Flatten(), nearest)
        super().__init__(Classifier(network, num_classes=CLASSES, mean=[0.0], std=[1.0]).double())
        self.templates = templates

    @property
    def groups(self) -> frozenset[Group]:
        return self.noisy

    def block(self) -> Block:
        labels = torch.arange(COUNT) % CLASSES
        generator = torch.Generator().manual_seed(1)
        spread = 0.05 * torch.randn(COUNT, 64, generator=generator, dtype=torch.float64)
        images = (self.templates[labels] + spread).clamp(0, 1).reshape(-1, 1, 8, 8)
        return Block(images, labels, torch.arange(COUNT))


class Lucky(Fraud):
    """No purification: each class's logit swings with the image at a random phase. Over draws the
    swings cancel, and their gradients too; whoever knows the phase rides them."""

    noisy = frozenset(("forward",))

    def forward(self, images, noise: BatchNoise, mask=None, policy=None):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(2)
        along = torch.randn(64, CLASSES, generator=generator, dtype=torch.float64).sign()
        phase = 10 * noise.normal(Purpose.FORWARD, images.new_empty(len(images), CLASSES))
        swing = torch.cos(images.flatten(1) @ along + phase)
        return super().forward(images, noise, mask, policy) + 5 * swing


def audit(defense: Fraud, attack: Attack = ATTACK) -> dict[str, Check]:
    """The audit's cells and the verdicts on their records."""
    block = defense.block()
    cells = [Cell("main", attack), Cell(NULL, NullAttack(), report_from=PROTOCOL.report_draws)]
    cells += audit_cells(cells[0], defense, SETTINGS, PIXELS, lambda: (adversarial, block.samples))
    records: list[Record] = evaluate_cell("d", defense, CLEAN_CELL, block, PROTOCOL, 0).records
    adversarial = block.images
    for cell in cells:
        outcome = evaluate_cell("d", defense, cell, block, PROTOCOL, 0)
        records += outcome.records
        adversarial = outcome.adversarial if cell.name == "main" else adversarial
    checks = verdicts(records, "main", CLASSES, SETTINGS, [], None)
    return {check.name: check for check in checks}


def test_a_plain_classifier_has_the_checks_that_it_can_have() -> None:
    checks = audit(Fraud())
    assert not {check.verdict for check in checks.values()} & {"FAIL", "WARN"}, checks
    assert set(checks) == {
        "reference attack", "more steps", "larger radius", "whole range", "black box",
        "8-bit images",
    }  # fmt: skip


def test_a_null_attack_that_moves_accuracy_fails() -> None:
    """As counting does that takes an image for broken when one draw of many was wrong."""
    clean = [record("clean", sample, [0] * 9 + [1]) for sample in range(60)]
    filtered = [record(NULL, sample, [int(sample < 24)] * 10) for sample in range(60)]
    unmoved = [replace(record, attack=NULL) for record in clean]
    for null, verdict in ((filtered, "FAIL"), (unmoved, "undecided"), (5 * unmoved, "PASS")):
        many = [replace(r, sample=number) for number, r in enumerate(null)]
        twin = [replace(clean[0], sample=number) for number in range(len(null))]
        (check,) = verdicts([*twin, *many], "main", 4, SETTINGS, [], None)
        assert (check.name, check.verdict) == ("null attack", verdict), check


@pytest.mark.parametrize(
    ("name", "theirs", "ours", "verdict"),
    [
        ("reference attack", 20, 70, "FAIL"),  # an attack of fixed strength finds more
        ("reference attack", 20, 28, "WARN"),  # perhaps: beyond the tolerance, not beyond doubt
        ("reference attack", 20, 20, "PASS"),
        ("more steps", 70, 20, "FAIL"),  # twice the steps find less
        ("more steps", 28, 20, "WARN"),
        ("more steps", 20, 20, "PASS"),
        ("more steps", 5, 20, "WARN"),  # they find more: not converged
        ("more EOT draws", 5, 20, "WARN"),
        ("larger radius", 70, 20, "FAIL"),
        ("larger radius", 5, 20, "PASS"),
        ("black box", 20, 70, "FAIL"),  # an attack without gradients finds more
        ("transfer", 20, 70, "FAIL"),
        ("transfer", 70, 20, "PASS"),
        ("whole range", 70, 20, "FAIL"),  # right although any image is allowed
        ("whole range", 0, 20, "PASS"),
        ("8-bit images", 70, 20, "WARN"),  # rounding undoes the attack
        ("8-bit images", 20, 20, "PASS"),
        ("DW-box", 20, 70, "WARN"),  # robust only while the noise is unknown
        ("DW-box", 70, 70, "PASS"),
    ],
)
def test_verdicts_by_hand(name: str, theirs: int, ours: int, verdict: str) -> None:
    """So many of 100 samples are right, under the audit's attack and under the main one."""
    other = [record(f"{AUDIT}: {name}", s, [int(s >= theirs)] * 3) for s in range(100)]
    main = [record("main", s, [int(s >= ours)] * 3) for s in range(100)]
    checks = verdicts([*main, *other], "main", 10, SETTINGS, [], None)
    assert [(check.name, check.verdict) for check in checks] == [(name, verdict)], checks
    assert ("not converged" in checks[0].said) == (theirs == 5 and name != "larger radius")


@pytest.mark.parametrize(("name", "moved"), [("attacker's draws", 70), ("exchanged ids", 10)])
def test_clean_images_must_not_move_either_way(name: str, moved: int) -> None:
    other = [record(f"{AUDIT}: {name}", s, [int(s >= moved)] * 3) for s in range(100)]
    clean = [record("clean", s, [int(s >= 40)] * 3) for s in range(100)]
    (check,) = verdicts([*clean, *other], "main", 10, SETTINGS, [], None)
    assert check.verdict == "FAIL"


def test_a_few_samples_decide_nothing_and_say_what_they_could_see() -> None:
    other = [record(f"{AUDIT}: more steps", s, [0]) for s in range(30)]
    main = [record("main", s, [0]) for s in range(30)]
    (check,) = verdicts([*main, *other], "main", 10, SETTINGS, [], None)
    seen = visible(30, 1 / FAMILY_ERROR, SETTINGS.tolerance)
    assert check.verdict == "undecided" and seen is not None
    assert f"certain from {100 * seen:.0f} points on" in check.said


def test_a_family_of_checks_asks_each_for_more() -> None:
    """A difference that alone is certain is not beside ten others: Holm."""
    seen = visible(60, 1 / FAMILY_ERROR, SETTINGS.tolerance)
    assert seen is not None
    worse = [record("main", s, [0]) for s in range(60)]
    shifted = [record(f"{AUDIT}: black box", s, [int(s < 60 * seen)]) for s in range(60)]
    (alone,) = verdicts([*worse, *shifted], "main", 10, SETTINGS, [], None)
    assert alone.verdict == "FAIL"
    others = [
        replace(r, attack=f"{AUDIT}: {name}")
        for name in COMPARISONS
        if name not in ("black box", "null attack", "attacker's draws", "exchanged ids")
        for r in worse
    ]
    checks = verdicts([*worse, *shifted, *others], "main", 10, SETTINGS, [], None)
    assert {check.name: check.verdict for check in checks}["black box"] == "WARN"


def course(
    costs: dict[str, int], settled: tuple[str, ...] = (), **settings: int
) -> list[tuple[str, range]]:
    """All looks of an audit of 256 images; some checks are settled by their first look."""
    slices = {name: Slice(cost) for name, cost in costs.items()}
    looks = []
    while (look := next_look(slices, Audit(**settings), 256, 32)) is not None:
        looks.append(look)
        name, places = look
        slices[name] = replace(slices[name], taken=places.stop, settled=name in settled)
    return looks


def test_slices_grow_by_doubling_in_parts() -> None:
    looks = course({"a": 1}, images=100)
    assert looks == [
        ("a", range(16)), ("a", range(16, 32)), ("a", range(32, 64)), ("a", range(64, 96)),
        ("a", range(96, 100)),
    ]  # fmt: skip
    assert course({"a": 1}, settled=("a",)) == [("a", range(16))]


@pytest.mark.parametrize(
    ("dear", "settled", "of_reference", "of_others"),
    [
        (2, (), 134, 88),  # what others leave goes to the reference attack, up to the images
        (400, (), 106, 16),
        (400, ("audit: dear",), 118, 16),
        (40_000, (), 106, 0),  # no room for one image
    ],
)
def test_an_audit_keeps_its_budget(
    dear: int, settled: tuple[str, ...], of_reference: int, of_others: int
) -> None:
    """Three quarters are the reference attack's at least."""
    costs = {"audit: dear": dear, "audit: reference attack": 360, "audit: cheap": 30}
    looks = course(costs, settled, images=134)
    taken = {
        name: max((look[1].stop for look in looks if look[0] == name), default=0) for name in costs
    }
    assert sum(cost * taken[name] for name, cost in costs.items()) <= 51_200
    assert looks[0][0] == "audit: reference attack"
    assert taken["audit: reference attack"] >= 106


def test_images_come_in_an_order_that_the_data_does_not_know() -> None:
    """The same for a seed; every image once; not as they are sorted; it goes with the ids."""
    ids = torch.arange(1000) + 5
    order = audit_order(ids, 0)
    assert sorted(order) == list(range(1000)) and order == audit_order(ids, 0)
    assert order != audit_order(ids, 1)
    first = torch.tensor(order[:100])
    assert 350 < float(first.float().mean()) < 650
    moved = audit_order(ids.flip(0), 0)
    assert [1000 - 1 - place for place in moved] == order


def test_the_reference_attack_has_half_of_the_error() -> None:
    assert weights(["reference attack", "a", "b"]) == {
        "reference attack": 0.5,
        "a": 0.25,
        "b": 0.25,
    }
    assert weights(["a", "b"]) == {"a": 0.5, "b": 0.5}
    assert weights(["reference attack"]) == {"reference attack": 1.0}


def test_an_attack_that_still_gains_has_not_converged() -> None:
    falling = [1 - k / 40 for k in range(40)]
    settled = [max(1 - k / 10, 0.2) for k in range(40)]
    assert convergence(falling, 0.05).verdict == "WARN"
    assert "not converged" in convergence(falling, 0.05).said
    assert convergence(settled, 0.05).verdict == "PASS"
    assert convergence(falling[:3], 0.05).said == "3 iterations are too few to tell"


def test_eot_draws_that_disagree_warn() -> None:
    for cosine, verdict in ((0.02, "WARN"), (0.5, "PASS")):
        (check,) = verdicts([record("main", 0, [0])], "main", 4, SETTINGS, [], cosine)
        assert (check.name, check.verdict) == ("EOT draws", verdict)


def test_saved_images_are_looked_at() -> None:
    clean = torch.full((3, 1, 2, 2), 0.5)
    ids = torch.tensor([4, 9, 11])
    inside, threat = (clean[:2] + 0.1, ids[:2]), Threat("linf", 0.1)
    assert saved_check((clean, ids), {"pgd": (inside, threat)}).verdict == "PASS"
    late = ((clean + 0.1).flip(0), ids.flip(0))  # blocks that were finished in another order
    assert saved_check((clean, ids), {"pgd": (late, threat)}).verdict == "PASS"
    outside = clean.clone()
    outside[1, 0, 0, 0] += 0.2
    check = saved_check((clean, ids), {"pgd": (inside, threat), "apgd": ((outside, ids), threat)})
    assert check.verdict == "FAIL"
    assert "apgd" in check.said and "sample 9" in check.said


def test_the_main_attack_is_audited_whatever_else_runs() -> None:
    """Further attacks may have its name or a mask policy; one called as a check is none."""
    soft = replace(ATTACK, mask="soft")
    transfer = replace(ATTACK, mask="recomputed", approximation="classifier_only")
    further = {
        "transfer": AttackConfig(transfer),
        "pgd, recomputed mask": AttackConfig(replace(ATTACK, mask="recomputed")),
    }
    cells = attack_cells("d", Fraud(), soft, further, PROTOCOL)
    assert base_cell(cells) is cells[1] and cells[1].attack is soft
    both = [
        record(name, s, [k] * 3) for name, k in (("transfer", 0), ("main", 1)) for s in range(9)
    ]
    assert verdicts(both, "main", 10, SETTINGS, [], None) == []


def test_radius_zero_has_no_larger_one() -> None:
    still = PGD(epsilon=Number(0))
    cells = audit_cells(Cell("main", still), Fraud(), SETTINGS, PIXELS, nothing)
    assert {cell.name for cell in cells} == {
        "audit: more steps", "audit: black box", "audit: 8-bit images",
    }  # fmt: skip


def test_a_purifier_is_audited_whole(denoiser: Denoiser, classifier: Classifier) -> None:
    """The published mask policy is the one that is varied; both groups are known in the DW-box."""
    purifier = HeterogeneousPurifier(steps=20, sampler=DDPM())
    defense = Defense(classifier, purifier, denoiser)
    base = base_cell(attack_cells("d", defense, ATTACK, {}, PROTOCOL))
    assert base.name == "pgd_linf, recomputed mask"
    cells = {c.name: c for c in audit_cells(base, defense, Audit(), PIXELS, nothing)}
    assert {name.removeprefix("audit: ") for name in cells} == {
        "more steps", "more EOT draws", "larger radius", "whole range", "black box", "transfer",
        "DW-box", "8-bit images", "attacker's draws", "exchanged ids", "reference attack",
    }  # fmt: skip
    assert cells["audit: DW-box"].known == ("forward", "reverse")
    assert cells["audit: more EOT draws"].attack.cost(defense).draws == 8
    reference = cells["audit: reference attack"]
    assert reference.itself and reference.attack.cost(defense).gradients == 2 * 20 * 8 + 8
    attacker = cells["audit: attacker's draws"]
    assert [attacker.report(k) for k in range(2)] == [attack_draw(0, 0, k, 0) for k in range(2)]
    assert cells["audit: exchanged ids"].exchanged


def test_unusable_settings_name_their_field() -> None:
    for settings in ({"images": 0}, {"queries": 0}, {"tolerance": 1.0}, {"purifications": 0}):
        with pytest.raises(InputError, match=f"Audit.{next(iter(settings))}"):
            Audit(**settings)


def nothing() -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("not to be read before the attack has run")


def test_eight_bits_are_what_a_file_holds() -> None:
    """Each image that the attack saved, in the order in which the block asks for it."""
    defense = Fraud()
    block = defense.block()
    saved = (0.3 + block.images / 1000).flip(0)
    cell = Cell("8", EightBit(lambda: (saved, block.samples.flip(0))))
    outcome = evaluate_cell("d", defense, cell, block, Protocol(1, 1), 0)
    moved = [bool(record.chosen == 0) for record in outcome.records]
    expected = (255 * (0.3 + block.images / 1000)).round() / 255
    assert any(moved)
    for k, chosen in enumerate(moved):
        torch.testing.assert_close(
            outcome.adversarial[k], (expected if chosen else block.images)[k]
        )


def record(attack: str, sample: int, wrong: list[int]) -> Record:
    return Record("d", attack, sample, 0, wrong, [4], 0, 0.0, 0.0, None, 0, "Linf 0.1", [])


def test_luck_alone_warns() -> None:
    checks = audit(Lucky(), replace(ATTACK, epsilon=Number(0.06), step_size=Number(0.01), steps=20))
    assert checks["DW-box"].verdict == "WARN", checks
    assert "robustness by randomness" in checks["DW-box"].said
