"""The audit on planted frauds: each must fail a check, and luck alone must warn."""

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
from hetpure.evaluation.audit import Audit, Check, saved_check, verdicts
from hetpure.evaluation.cells import AttackConfig, attack_cells, audit_cells, base_cell
from hetpure.evaluation.defense_check import check_defense_gradient
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
from hetpure.evaluation.row_check import first_gradients
from hetpure.evaluation.rows import Row
from hetpure.gradients import GradientError
from hetpure.noise import BatchNoise, Group, Purpose
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


class Constant(Fraud):
    """Its gradient is the same whatever the image, and leads nowhere."""

    def forward(self, images, noise, mask=None, policy=None):  # type: ignore[no-untyped-def]
        answer = super().forward(images, noise, mask, policy)
        held = answer.detach()
        astray = (torch.ones_like(images) * (images - images.detach())).flatten(1).sum(1)
        return held + 1e-3 * astray[:, None] * torch.arange(CLASSES).double()


class Detached(Fraud):
    """Hides all but a sixteenth of the gradient: part of the way is detached."""

    def forward(self, images, noise, mask=None, policy=None):  # type: ignore[no-untyped-def]
        seen = images.clone()
        seen[..., 2:] = images[..., 2:].detach()
        return super().forward(seen, noise, mask, policy)


class Clipped(Fraud):
    """Logits beyond the clip have no gradient."""

    def forward(self, images, noise, mask=None, policy=None):  # type: ignore[no-untyped-def]
        answer = super().forward(images, noise, mask, policy)
        return (1e3 * (answer - answer.mean(1, keepdim=True))).clamp(-1, 1)


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
    """All that an evaluation does for one row."""
    block = defense.block()
    gradient_check = check_defense_gradient(
        defense, block.images, block.samples, 0, bound=1e-5
    ).as_dict()
    cells = [Cell("main", attack), Cell(NULL, NullAttack(), report_from=PROTOCOL.report_draws)]
    cells += audit_cells(cells[0], defense, SETTINGS, PIXELS, lambda: (adversarial, block.samples))
    records: list[Record] = evaluate_cell("d", defense, CLEAN_CELL, block, PROTOCOL, 0).records
    adversarial = block.images
    for cell in cells:
        outcome = evaluate_cell("d", defense, cell, block, PROTOCOL, 0)
        records += outcome.records
        adversarial = outcome.adversarial if cell.name == "main" else adversarial
    checks = [first_gradients(row(defense), block, 0, attack)]
    checks += verdicts(records, "main", CLASSES, SETTINGS, [gradient_check], None)
    return {check.name: check for check in checks}


def row(defense: Defense) -> Row:
    return Row("d", defense, None)


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.verdict == "FAIL"}


def test_an_honest_defence_passes() -> None:
    checks = audit(Fraud())
    assert {check.verdict for check in checks.values()} == {"PASS"}, checks
    assert set(checks) == {
        "gradient", "gradient check", "more steps", "larger radius", "whole range",
        "black box", "8-bit images",
    }  # fmt: skip


def test_gradients_that_lie_fail() -> None:
    assert {"gradient check", "black box"} <= failed(audit(Constant()))
    assert "gradient check" in failed(audit(Detached()))


def test_logits_clipped_to_no_gradient_fail_and_stop_with_advice() -> None:
    """Where a gradient is zero there is nothing to run: it stops, and says what to try."""
    defense = Clipped()
    check = first_gradients(row(defense), defense.block(), 0, ATTACK)
    assert check.verdict == "FAIL"
    assert "zero for 24 of 24 images" in check.said and "Square" in check.said
    with pytest.raises(GradientError, match="is zero for .* images.*Square.*BPDA"):
        audit(defense)


def test_a_null_attack_that_moves_accuracy_fails() -> None:
    """As counting does that takes an image for broken when one draw of many was wrong."""
    clean = [record("clean", sample, [0] * 9 + [1]) for sample in range(30)]
    filtered = [record(NULL, sample, [int(sample < 12)] * 10) for sample in range(30)]
    unmoved = [replace(record, attack=NULL) for record in clean]
    for null, verdict in ((filtered, "FAIL"), (unmoved, "PASS")):
        (check,) = verdicts([*clean, *null], "main", 4, SETTINGS, [], None)
        assert (check.name, check.verdict) == ("null attack", verdict)


@pytest.mark.parametrize(
    ("name", "theirs", "ours", "verdict"),
    [
        ("more steps", 20, 5, "FAIL"),  # twice the steps find less
        ("more steps", 7, 5, "WARN"),  # perhaps: beyond the tolerance, not beyond doubt
        ("more steps", 3, 5, "PASS"),
        ("larger radius", 20, 5, "FAIL"),
        ("black box", 5, 20, "FAIL"),  # an attack without gradients finds more
        ("transfer", 5, 20, "FAIL"),
        ("transfer", 20, 5, "PASS"),
        ("whole range", 20, 5, "FAIL"),  # right although any image is allowed
        ("whole range", 0, 5, "PASS"),
        ("8-bit images", 20, 5, "WARN"),  # rounding undoes the attack
        ("8-bit images", 5, 5, "PASS"),
        ("DW-box", 5, 20, "WARN"),  # robust only while the noise is unknown
        ("DW-box", 18, 20, "WARN"),  # perhaps: its interval holds 0
        ("DW-box", 20, 20, "PASS"),
    ],
)
def test_verdicts_by_hand(name: str, theirs: int, ours: int, verdict: str) -> None:
    """So many of 30 samples are right, under the audit's attack and under the main one."""
    other = [record(f"{AUDIT}: {name}", s, [int(s >= theirs)] * 3) for s in range(30)]
    main = [record("main", s, [int(s >= ours)] * 3) for s in range(30)]
    checks = verdicts([*main, *other], "main", 10, SETTINGS, [], None)
    assert [(check.name, check.verdict) for check in checks] == [(name, verdict)], checks


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
        "DW-box", "8-bit images",
    }  # fmt: skip
    assert cells["audit: DW-box"].known == ("forward", "reverse")
    assert cells["audit: more EOT draws"].attack.cost(defense).draws == 8
    assert all(cell.limit == 16 for cell in cells.values())


def test_unusable_settings_name_their_field() -> None:
    for settings in ({"images": 0}, {"queries": 0}, {"tolerance": 1.0}):
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
