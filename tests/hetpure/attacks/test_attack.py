"""What holds for every attack: its ball, its cost, its addresses, its settings."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import evaluate
from hetpure.attacks import (
    APGD,
    BPDA,
    PGD,
    Addresses,
    Attack,
    AutoAttack,
    AutoEOT,
    DiffAttack,
    DiffHammer,
    FilterAttack,
    LowFrequency,
    Replay,
    Square,
    StAdv,
    unfolded,
)
from hetpure.attacks.attack import check_candidates
from hetpure.attacks.null import NullAttack
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.errors import FieldError, InputError
from hetpure.gradients import Execution
from hetpure.noise import Noise, Stream
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from hetpure.samplers import DDPM
from tests.hetpure.attacks.defenses import (
    ADDRESSES,
    BOTH,
    NOISE,
    SAMPLES,
    Counter,
    Noisy,
    target_of,
    templates,
)

ROOT = Path(__file__).parent.parent.parent.parent
PAGE = (ROOT / "docs" / "guide" / "attack.md").read_text().split("## An attack of your own")[1]
SOURCE = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)[0]
DOCUMENTED: dict[str, Any] = {"__name__": "my_attack"}
exec(SOURCE, DOCUMENTED)
DISTANCE = "tests.hetpure.attacks.defenses.root_mean_square"
FEW: dict[str, Any] = {"epsilon": 0.1, "steps": 2, "eot_samples": 2}
IN_A_BALL: dict[str, Attack] = {
    "pgd_linf": PGD(**FEW, restarts=2),
    "pgd_l2": PGD(**FEW, norm="l2", random_start=False),
    "pgd_targeted": PGD(**FEW, targets=2, loss="dlr"),
    "pgd_variance": PGD(**FEW, momentum=1.0, neighbours=2),
    "pgd_resubmitted": PGD(**FEW, resubmissions=3, targets=1, restarts=2),
    "low_frequency_linf": LowFrequency(**FEW),
    "low_frequency_momentum": LowFrequency(**FEW, momentum=1.0, neighbours=1),
    "low_frequency_l2": LowFrequency(**FEW, norm="l2"),
    "diffattack": DiffAttack(**FEW),
    "diffhammer": DiffHammer(**FEW, resubmissions=1),
    "diffhammer_l2": DiffHammer(**FEW, norm="l2", loss="dlr", targets=1, neighbours=1),
    "diffhammer_grafted": DiffHammer(**FEW, grafted=True, random_start=False),
    "bpda": BPDA(**FEW),
    "transfer": PGD(**FEW, approximation="classifier_only"),
    "apgd_linf": APGD(**FEW),
    "apgd_l2": APGD(**FEW, norm="l2", targets=2, loss="margin", resubmissions=2),
    "square_linf": Square(**{**FEW, "steps": 5}),
    "square_l2": Square(**{**FEW, "steps": 5, "norm": "l2"}),
    "auto_eot": AutoEOT(**FEW, square_steps=2, targets=2, check_draws=3),
    "standard": AutoAttack(epsilon=0.1, steps=2, targets=2, square_queries=5),
    "rand": AutoAttack(**FEW, version="rand"),
    "documented": DOCUMENTED["Shrinking"](**FEW),
}
ATTACKS = {
    **IN_A_BALL,
    "stadv": StAdv(steps=2, eot_samples=2),
    "filter": FilterAttack(steps=2, eot_samples=2, distance=DISTANCE),
    "null": NullAttack(),
}
BY_PLACE = ("standard", "rand")  # AutoAttack, whose noise and starts are no image's own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_candidates_are_images_inside_the_ball(
    name: str, dtype: torch.dtype, linear_classifier: Classifier
) -> None:
    """Also where pixels are 0 and 1; the images that are attacked stay as they are. In a ball
    without radius nothing moves."""
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    images[:, :, :2], images[:, :, 6:] = 0, 1
    defense, before = Defense(linear_classifier.to(dtype)), images.clone()
    for radius in (0.1, 0.0) if name in IN_A_BALL else (None,):
        attack = ATTACKS[name]
        if radius is not None:
            attack = replace(attack, epsilon=radius)
        candidates = attack(target_of(defense, images))
        count = attack.cost(defense).candidates
        assert candidates.shape == (count, *images.shape) and candidates.dtype == dtype
        assert torch.equal(images, before) and not candidates.requires_grad
        check_candidates(candidates, images, SAMPLES, attack.threat)
        still = torch.equal(candidates, images.expand_as(candidates))
        assert still or radius != 0


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in BY_PLACE])
def test_an_images_candidates_do_not_depend_on_its_batch(
    name: str, denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """Starts, draws, masks, targets and steps follow the sample id; another member draws others."""
    purifier = HeterogeneousPurifier(steps=3, sampler=DDPM())
    defense = Defense(smooth_classifier, purifier, denoiser, policy="tape")
    attack = ATTACKS[name]
    target = target_of(defense, images)
    candidates = attack(target)
    part = torch.tensor([3, 0])
    torch.testing.assert_close(attack(target.take(part)), candidates[:, part], atol=1e-8, rtol=0)
    if name not in ("null", "transfer", "pgd_l2", "auto_eot"):  # or see test_auto_eot.py
        other = attack(replace(target, addresses=replace(ADDRESSES, member=1)))
        assert not torch.isclose(other, candidates).all()


@pytest.mark.parametrize("kind", ["plain", "uniform", "heterogeneous", "known noise"])
@pytest.mark.parametrize("name", ATTACKS)
def test_cost_is_what_is_asked(
    name: str, kind: str, denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """In purifications and in calls of the diffusion network; of images that are never broken,
    which cost the most. Noise breaks some, and AutoAttack checks its first batch only."""
    purifier: Any = UniformPurifier(steps=3, sampler=DDPM())
    if kind == "heterogeneous":
        purifier = HeterogeneousPurifier(steps=3, sampler=DDPM())
    defense, known = Defense(smooth_classifier), BOTH if kind == "known noise" else ()
    if kind != "plain":
        execution = Execution("checkpoint", micro_batch=3)
        defense = Defense(smooth_classifier, purifier, denoiser, policy=execution)
    attack, counter = ATTACKS[name], Counter()
    if name in IN_A_BALL:
        attack = replace(attack, epsilon=0.0)
    labels = defense(images, NOISE.on(SAMPLES)).argmax(1)
    target = target_of(defense, images, labels, replace(ADDRESSES, known=known), counter)
    if isinstance(attack, AutoAttack) and (known or (name == "standard" and defense.groups)):
        with pytest.raises(InputError, match="AutoEOT"):
            attack(target)
        return
    with count_network_calls(defense) as calls:
        candidates = attack(target)
    cost = attack.cost(defense, known)
    gradients, queries = sum(counter.gradients), sum(counter.queries)
    forward, _ = defense.gradient_calls(attack.execution(defense))
    assert sum(calls) == gradients * forward + queries * defense.network_calls
    assert max(counter.gradients + counter.queries, default=0) <= (4 if kind == "plain" else 3)
    assert len(candidates) == cost.candidates
    most = [4 * cost.gradients, 4 * cost.queries]
    if isinstance(attack, AutoAttack | AutoEOT) and kind != "plain":
        assert gradients <= most[0] and 0 < queries <= most[1]
    else:
        assert [gradients, queries] == most


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, Defense) for name in IN_A_BALL if name != "rand"),
        *((name, Noisy) for name in IN_A_BALL if name != "standard"),
    ],
)
def test_accuracy_falls(name: str, kind: type[Defense]) -> None:
    """Of the randomised defence on draws that the attack has not seen."""
    classifier, images, labels = templates()
    defense, ids, attack = kind(classifier), torch.arange(40), ATTACKS[name]
    epsilon = 1.4 if name.endswith("l2") else 0.3
    settings = {"epsilon": epsilon, "step_size": epsilon / 4, "eot_samples": 2, "ratio": 0.6}
    settings |= {"steps": 40 if "square" in name else 6, "square_steps": 10}
    used = {field: value for field, value in settings.items() if hasattr(attack, field)}
    attack = replace(attack, **used)
    draws = [Noise.of(7, Stream.REPORT, k).on(ids) for k in range(10)]

    def accuracy(of: Tensor) -> float:
        right = [defense(of, draw).argmax(1) == labels for draw in draws]
        return float(torch.stack(right).float().mean())

    candidates = attack(target_of(defense, images, labels, Addresses(ids, NOISE)))
    assert accuracy(images) > 0.9
    assert min(accuracy(candidate) for candidate in candidates) < 0.5


def test_what_an_attack_stands_for(
    denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """`mask: all` is three where there is a mask that the gradient sees, and has all candidates."""
    masked = Defense(smooth_classifier, HeterogeneousPurifier(steps=3), denoiser)
    plain, attack = Defense(smooth_classifier), PGD(**FEW)
    parts = unfolded(attack, masked)
    masks = {name: part.mask for name, part in parts.items()}
    assert masks == {f"{mask} mask": mask for mask in ("frozen", "recomputed", "soft")}
    assert unfolded(attack, plain) == {"": replace(attack, mask="recomputed")}
    assert unfolded(BPDA(**FEW), masked) == {"": BPDA(**FEW, mask="recomputed")}
    for other in (replace(attack, mask="soft"), Square(), AutoEOT(), NullAttack()):
        assert unfolded(other, masked) == {"": other}
    first, second, third = (part(target_of(masked, images)) for part in parts.values())
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert torch.equal(attack(target_of(masked, images)), torch.cat([first, second, third]))
    assert torch.equal(
        attack(target_of(plain, images)), replace(attack, mask="soft")(target_of(plain, images))
    )


def test_what_the_audit_asks_for() -> None:
    """More of one thing, another ball with steps as much longer, less knowledge."""
    attack = LowFrequency(**FEW, step_size=0.04)
    assert attack.stronger() == {
        "more steps": replace(attack, steps=4),
        "more EOT draws": replace(attack, eot_samples=4),
    }
    assert attack.transferred() == replace(attack, approximation="classifier_only")
    wider = attack.at_radius(0.2)
    assert isinstance(wider, LowFrequency)
    assert (wider.epsilon, float(wider.step_size), wider.steps) == (0.2, 0.08, 2)
    assert APGD(epsilon=0.1).at_radius(0.3) == APGD(epsilon=0.3)
    assert StAdv().at_radius(0.1) is None and StAdv().stronger().keys() == attack.stronger().keys()
    for other in (Square(), AutoEOT(), AutoAttack(), NullAttack()):
        assert (other.stronger(), other.at_radius(0.1), other.transferred()) == ({}, None, None)


UNUSABLE: list[tuple[type[Attack], str, Any]] = [
    *((kind, "norm", "Linf") for kind in (PGD, APGD, Square, AutoEOT, AutoAttack, Replay)),
    *((kind, "epsilon", -0.1) for kind in (PGD, APGD, Square, AutoEOT, AutoAttack, Replay)),
    (PGD, "epsilon", float("nan")),
    (PGD, "epsilon", 8.0),
    *((PGD, field, 0) for field in ("steps", "eot_samples", "restarts", "step_size")),
    (PGD, "targets", -1),
    *((PGD, field, "other") for field in ("loss", "average", "mask", "approximation")),
    *((PGD, field, -1) for field in ("momentum", "neighbours", "resubmissions")),
    (PGD, "neighbours", 65537),
    (PGD, "neighbourhood", 0.0),
    (DiffHammer, "eot_samples", 1),
    (DiffHammer, "loss", "cross_entropy"),
    (DiffHammer, "average", "logits"),
    (DiffHammer, "rounds", 0),
    (DiffHammer, "sharpness", 0.0),
    *((FilterAttack, field, -0.1) for field in ("bound", "penalty", "offset_step_size")),
    *((FilterAttack, field, 0.0) for field in ("colour", "step_size")),
    *((FilterAttack, "sizes", sizes) for sizes in ([], [4], [1], [3, 5, 6])),
    *((FilterAttack, "distance", path) for path in ("no.such.function", "math.pi", "other")),
    (LowFrequency, "ratio", 0.0),
    (LowFrequency, "ratio", float("nan")),
    (StAdv, "max_flow", float("inf")),
    (StAdv, "step_size", 0.0),
    (StAdv, "smoothness", -0.1),
    (DiffAttack, "deviation_weight", float("nan")),
    (DiffAttack, "average", "probabilities"),
    (DiffAttack, "approximation", "bpda"),
    *((Square, field, 0) for field in ("steps", "eot_samples", "p_init")),
    (Square, "steps", 65536),
    (Square, "p_init", 1.5),
    *((AutoEOT, field, 0) for field in ("steps", "eot_samples", "square_steps", "check_draws")),
    *((AutoAttack, field, 0) for field in ("steps", "eot_samples", "targets", "square_queries")),
    (AutoAttack, "version", "plus"),
]


@pytest.mark.parametrize(("kind", "field", "value"), UNUSABLE)
def test_a_setting_that_cannot_be_used_is_named(
    kind: type[Attack], field: str, value: object
) -> None:
    with pytest.raises(FieldError) as raised:
        kind(**{"path": "a.npz"} if kind is Replay else {}, **{field: value})
    error = raised.value
    assert (type(error.owner), error.field) == (kind, field)
    assert str(value) in str(error) and "\n" not in str(error)


def test_antithetic_draws_are_pairs() -> None:
    with pytest.raises(FieldError, match=r"PGD.eot_samples must be even .* got 3"):
        PGD(eot_samples=3, antithetic=True)


def test_it_says_what_it_is() -> None:
    """The ball, the class, steps and draws, and what is not set as by default."""
    attack = PGD(**FEW, norm="l2", loss="margin", random_start=False)
    said = "steps 2, eot_samples 2, loss margin, random_start False"
    assert attack.describe() == f"L2 0.1, PGD, {said}"
    assert StAdv(steps=3).describe() == "no ball, StAdv, steps 3, eot_samples 10"
    assert Replay("a.npz").describe() == "Linf 8/255, Replay, path a.npz"
    assert AutoEOT().describe() == "Linf 8/255, AutoEOT, steps 100, eot_samples 20"


def test_names_that_records_hold() -> None:
    names = {attack.name for attack in ATTACKS.values()}
    assert names == {
        "pgd_linf", "pgd_l2", "low_frequency_linf", "low_frequency_l2", "diffattack_linf",
        "bpda_linf", "apgd_ce_linf", "apgd_margin_l2_targeted", "square_linf", "square_l2",
        "auto_eot_linf", "autoattack_standard_linf", "autoattack_rand_linf", "stadv", "null",
        "shrinking_linf", "diffhammer_linf", "diffhammer_l2", "filter",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        *((full, []) for full in (APGD(), Square(), AutoEOT(), AutoAttack(), NullAttack())),
        (PGD(steps=200, eot_samples=20), []),
        (
            BPDA(steps=199, eot_samples=19, mask="soft"),
            [
                "bpda_linf: eot_samples 19 (HetPure's published attack: 20)",
                "bpda_linf: soft masks only",
                "bpda_linf: the gradient is an approximation, bpda",
                "bpda_linf: steps 199 (HetPure's published attack: 200)",
            ],
        ),
        (APGD(steps=99), ["apgd_ce_linf: steps 99 (AutoAttack: 100)"]),
        (
            AutoEOT(check_draws=4, square_steps=11),
            [
                "square_linf: steps 11 (AutoAttack: 5000)",
                "auto_eot_linf: check_draws 4 (full: 10)",
            ],
        ),
        (
            AutoAttack(steps=9, targets=8, square_queries=7),
            [
                "autoattack_standard_linf: steps 9 (official: 100)",
                "autoattack_standard_linf: targets 8 (official: 9)",
                "autoattack_standard_linf: square_queries 7 (official: 5000)",
            ],
        ),
        (Replay("a.npz"), ["replay: saved images, not adapted to the defence"]),
    ],
    ids=lambda value: value.name if isinstance(value, Attack) else "",
)
def test_it_says_what_of_its_budget_is_less_than_published(
    attack: Attack, words: list[str]
) -> None:
    assert attack.weaker_than_full() == words


def test_evaluate_runs_the_attack_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most forty lines; with the audit, which varies its steps, draws, radius and knowledge."""
    assert SOURCE.count("\n") <= 40
    (tmp_path / "my_attack.py").write_text(SOURCE)
    (tmp_path / "rows.yaml").write_text("model: {defenses: {plain: {}}, attacks: {}}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    options = "--model.attack my_attack.Shrinking --model.attack.epsilon 16/255 --model.run own"
    audit = "--model.audit {images: 1, queries: 1, purifications: 999}"
    budget = f"--model.attack.steps 1 --data.limit 2 {audit}"
    quick = ROOT / "configs" / "evaluate" / "quick.yaml"
    words = re.split(r" (?![^{]*})", f"{options} {budget}")
    evaluate.main([f"--config={quick}", "--config=rows.yaml", *words])
    results = json.loads((tmp_path / "runs" / "evaluate" / "own" / "results.json").read_text())
    (row,) = results["defenses"].values()
    assert "shrinking_linf" in row["attacks"]
    assert {"more steps", "larger radius"} <= {check["name"] for check in row["audit"]}
