"""Planted frauds and honest defences: what the audit says of each.

On tiny networks, which tests/hetpure/evaluation/test_frauds.py audits with five seeds, or once on
the packaged ones, which takes hours and goes on where it was stopped:

    python benchmarks/frauds.py             # tiny networks
    python benchmarks/frauds.py --packaged

The table is docs/experiments/audit.md's.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.fashion_mnist import read_packaged
from hetpure.acceleration import Acceleration, accelerate
from hetpure.attacks import PGD
from hetpure.attacks.gradient import Ascent
from hetpure.attention import AttentionMask
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.evaluation.audit import Audit
from hetpure.evaluation.description import Evaluation, Images, Networks, describe
from hetpure.evaluation.facts import run_record
from hetpure.evaluation.protocol import Protocol
from hetpure.evaluation.provenance import provenance
from hetpure.evaluation.rows import DefenseConfig, Row
from hetpure.evaluation.run_results import write_results
from hetpure.evaluation.store import Store
from hetpure.evaluation.worker import evaluate
from hetpure.expectation import Answer
from hetpure.noise import BatchNoise, Noise, Purpose, Stream
from hetpure.numbers import Number
from hetpure.purifiers import (
    EDMPurifier,
    GradualPurifier,
    GuidedPurifier,
    HeterogeneousPurifier,
    LikelihoodPurifier,
    Purifier,
    UniformPurifier,
)
from hetpure.report.sheet import Sheet
from hetpure.samplers import DDPM, VPSDE
from hetpure.saved_images import file_stem
from hetpure.schedule import Schedule, linear_schedule
from hetpure.weights import load_classifier, load_denoiser

FIRST = 7  # sample ids are not positions
SIDE, CLASSES, COUNT = 8, 4, 112  # of the tiny world
IMAGES = 96  # of the packaged one
ROW = "row"
CONTROL = "uniform"  # what the fraudulent attacks attack: audited as they are
SEEDS = range(5)


@dataclass(frozen=True)
class World:
    """Networks and images on which frauds are planted.

    Args:
        images: (N, C, H, W), pixel [0, 1].
        labels: (N,).
        classifier: of all defences but one.
        robust: the adversarially trained one.
        denoiser: of all purifiers but one.
        float32: the same denoiser without acceleration, of those purifiers whose gradient does not
            pass its check in bfloat16: likelihood maximisation, which is differentiated twice, and
            EDM.
        steps: grid points of the purifiers.
        attack: the main attack.
        audit: of the rows whose attack is a fraud, and of the honest row that they attack. It takes
            a whole audit to convict them.
        short_audit: of all other rows.
        protocol: of every row.
        acceleration: of the diffusion network's calls.
    """

    images: Tensor
    labels: Tensor
    classifier: Classifier
    robust: Classifier
    denoiser: Denoiser
    float32: Denoiser
    steps: int
    attack: PGD
    audit: Audit
    short_audit: Audit
    protocol: Protocol
    acceleration: Acceleration = field(default_factory=Acceleration)

    def defense(self, purifier: Purifier | None = None, kind: type[Defense] = Defense) -> Defense:
        """A purifier, uniform by default, before the classifier."""
        mask = AttentionMask(threshold=0.5)
        exact = isinstance(purifier, LikelihoodPurifier | EDMPurifier)
        denoiser = self.float32 if exact else self.denoiser
        defense = kind(self.classifier, purifier or self.uniform, denoiser, mask)
        if isinstance(defense, KnowsItsImages):
            defense.images, defense.first = self.images, FIRST
        return defense

    @property
    def uniform(self) -> Purifier:
        return UniformPurifier(strength=0.1, steps=self.steps, sampler=DDPM())

    def honest(self) -> dict[str, Defense]:
        """All purifier classes, and no purifier."""
        steps = self.steps
        return {
            "plain classifier": Defense(self.classifier),
            "adversarially trained": Defense(self.robust),
            "uniform": self.defense(),
            "uniform, SDE": self.defense(
                UniformPurifier(strength=0.1, steps=steps, sampler=VPSDE())
            ),
            "heterogeneous": self.defense(HeterogeneousPurifier(steps=steps, sampler=DDPM())),
            "guided": self.defense(GuidedPurifier(stride=10, guidance=2.0, rounds=2)),
            "EDM": self.defense(EDMPurifier(levels=3)),
            "gradual": self.defense(GradualPurifier(steps=50, strengths=(0.03, 0.06))),
            "likelihood maximisation": self.defense(LikelihoodPurifier(steps=3)),
        }

    def fraudulent_attacks(self) -> dict[str, PGD]:
        """Attacks that find too little."""
        settings = vars(self.attack)
        return {
            "one step of 1/255": replace(
                self.attack, steps=1, step_size=Number("1/255"), eot_samples=1
            ),
            "steps down the loss": Descends(**settings),
            "other labels": OtherLabels(**settings),
            "a smaller ball": InASmallerBall(**settings),
        }

    def rows(self) -> dict[str, "Case"]:
        """Every row by name."""
        rows = {
            name: Case(defense, self.attack, self.audit if name == CONTROL else self.short_audit)
            for name, defense in self.honest().items()
        }
        rows |= {
            described(fraud): Case(self.defense(kind=fraud), self.attack, self.short_audit)
            for fraud in FRAUDULENT_DEFENSES
        }
        rows |= {
            f"attack: {name}": Case(self.defense(), attack, self.audit)
            for name, attack in self.fraudulent_attacks().items()
        }
        surrogate = Defense(blind(self.classifier))
        rows["attack: on a network that is blind"] = Case(
            self.defense(), self.attack, self.audit, surrogate
        )
        return rows


@dataclass(frozen=True)
class Case:
    """What is audited.

    Args:
        surrogate: what stands in for the defence in the attack.
    """

    defense: Defense
    attack: PGD
    audit: Audit
    surrogate: Defense | None = None


class NoiseForAttackers(Defense):
    """Noise of its own in the attack's stream alone."""

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Any:
        spread = 0.4 * (noise.forward[:, 0] == Stream.ATTACK).to(images).reshape(-1, 1, 1, 1)
        return super().forward(
            images + spread * noise.normal(Purpose.START, images), noise, mask, policy
        )


class NoiseForLateIterations(Defense):
    """Noise of its own in the attack's stream, from the third iteration on."""

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Any:
        late = (noise.forward[:, 1] >> 16) % 2**16 >= 2
        attacked = (noise.forward[:, 0] == Stream.ATTACK) & late
        spread = 0.4 * attacked.to(images).reshape(-1, 1, 1, 1)
        noisy = images + spread * noise.normal(Purpose.START, images)
        return super().forward(noisy, noise, mask, policy)


class KnowsItsImages(Defense):
    """Mixes the test image in, which it finds by the sample id."""

    images: Tensor
    first: int

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Any:
        known = self.images[noise.samples - self.first].to(images)
        return super().forward(0.1 * images + 0.9 * known, noise, mask, policy)


class StraightThrough(Defense):
    """Quantises the image, and says that the gradient goes through."""

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Any:
        rounded = (16 * images).round() / 16
        return super().forward(images + (rounded - images).detach(), noise, mask, policy)


class NoiseFromBits(Defense):
    """Noise that is a hash of the image: the same image gets the same, and every other another."""

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Any:
        bits = (images.detach().double() * 2**40).long().flatten(1).sum(1) % 2**32
        own = Noise.of(0, Stream.PROBE).on(bits).normal(Purpose.START, images)
        return super().forward(images + 0.2 * own, noise, mask, policy)


class AnswersOtherwiseWithGradients(Defense):
    """Another answer while gradients are taken."""

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Any:
        moved = 0.5 * images + 0.25 if torch.is_grad_enabled() else images
        return super().forward(moved, noise, mask, policy)


class LooksAtItsBatch(Defense):
    """An image's answer depends on the images beside it."""

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Any:
        beside = images.detach().mean(0, keepdim=True)
        return super().forward(images - 0.2 * (beside - 0.5), noise, mask, policy)


class CountsCalls(Defense):
    """Answers otherwise each time it is asked."""

    calls = 0

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Any:
        CountsCalls.calls += 1
        return super().forward(images + 0.01 * (CountsCalls.calls % 7), noise, mask, policy)


class DetachesRows(Defense):
    """Passes the gradient of a part of the pixels only."""

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Any:
        part = torch.cat([images[..., :2, :].detach(), images[..., 2:, :]], 2)
        return super().forward(part, noise, mask, policy)


class ClipsLogits(Defense):
    """No gradient where the clip holds."""

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Any:
        logits = super().forward(images, noise, mask, policy)
        return (1e3 * (logits - logits.mean(1, keepdim=True))).clamp(-1, 1)


class LeadsAstray(Defense):
    """Its gradient is that of something else."""

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Any:
        logits = super().forward(images, noise, mask, policy)
        astray = (images.flip(3) - images.flip(3).detach()).flatten(1).sum(1, keepdim=True)
        return logits.detach() + astray * torch.arange(logits.shape[1]).to(images)


@dataclass(frozen=True, kw_only=True)
class Descends(PGD):
    """The sign of its step is wrong."""

    def ask(self, run: Ascent, adversarial: Tensor, iteration: int) -> Answer:
        answer = super().ask(run, adversarial, iteration)
        return replace(answer, gradient=-answer.gradient)


@dataclass(frozen=True, kw_only=True)
class OtherLabels(PGD):
    """Moves images away from classes that are not theirs."""

    def ascend(self, run: Ascent) -> list[Tensor]:
        target = replace(
            run.target, labels=(run.target.labels + 1) % run.target.defense.classifier.num_classes
        )
        (other,) = replace(self, restarts=1)._runs(target)
        return super().ascend(replace(other, number=run.number))


@dataclass(frozen=True, kw_only=True)
class InASmallerBall(PGD):
    """Says one radius and searches another."""

    def ascend(self, run: Ascent) -> list[Tensor]:
        epsilon, step_size = Number(self.epsilon / 5), Number(self.step_size / 5)
        small = PGD(epsilon=epsilon, norm=self.norm, steps=self.steps, step_size=step_size)
        return small.ascend(run)


FRAUDULENT_DEFENSES: dict[type[Defense], tuple[str, str]] = {
    NoiseForAttackers: ("who asks", "another answer"),
    NoiseForLateIterations: ("who asks", "another answer"),
    KnowsItsImages: ("who asks", "another answer"),
    AnswersOtherwiseWithGradients: ("struck", "gradient mode: another answer"),
    LooksAtItsBatch: ("struck", "companions: another answer"),
    CountsCalls: ("struck", "repeated calls: another answer"),
    StraightThrough: ("struck", "straight through"),
    NoiseFromBits: ("struck", "function of the image"),
    DetachesRows: ("struck", "detached"),
    ClipsLogits: ("struck", "gradient is zero"),
    LeadsAstray: ("struck", "finite differences"),
}


def described(fraud: type[Defense]) -> str:
    """The first line of its docstring."""
    return f"defence: {(fraud.__doc__ or '').splitlines()[0].rstrip('.')}"


def blind(like: Classifier) -> Classifier:
    """Sees how bright an image is, and nothing else."""
    linear = nn.Linear(like.channels, like.num_classes)
    nn.init.constant_(linear.weight, 1.0)
    linear.weight.data *= torch.arange(like.num_classes)[:, None]
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    mean, std = like.mean.flatten().tolist(), like.std.flatten().tolist()
    return Classifier(network, num_classes=like.num_classes, mean=mean, std=std).eval()


class Gaussian(nn.Module):
    """The best noise prediction where a pixel is N(0, s^2) in model units [-1, 1]."""

    def __init__(self, schedule: Schedule, s: float = 0.25) -> None:
        super().__init__()
        self.schedule, self.s = schedule, s

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        level = self.schedule.level(timesteps, x)
        return level.spread * x / (level.signal**2 * self.s**2 + level.spread**2)


def tiny() -> World:
    """Images near four templates, the nearest template, the same trained against attacks, and the
    best denoiser of Gaussian pixels."""
    generator = torch.Generator().manual_seed(0)
    templates = 0.35 + 0.3 * torch.rand(CLASSES, SIDE * SIDE, generator=generator)
    labels = torch.arange(COUNT) % CLASSES
    spread = 0.1 * torch.randn(COUNT, SIDE * SIDE, generator=generator)
    images = (templates[labels] + spread).clamp(0, 1).reshape(-1, 1, SIDE, SIDE)

    def nearest() -> Classifier:
        linear = nn.Linear(SIDE * SIDE, CLASSES)
        bias = -10 * templates.square().sum(1)
        linear.load_state_dict({"weight": 20 * templates, "bias": bias})
        network = nn.Sequential(nn.Identity(), nn.Flatten(), linear)
        return Classifier(
            network, num_classes=CLASSES, mean=[0.0], std=[1.0], attention_blocks=["0"]
        )

    robust = nearest()
    optimizer = torch.optim.Adam(robust.parameters(), 0.05)
    for _ in range(200):
        point = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(robust(point), labels), point)
        optimizer.zero_grad()
        F.cross_entropy(robust(images + 0.1 * gradient.sign()), labels).backward()
        optimizer.step()
    schedule = linear_schedule()
    denoiser = Denoiser(Gaussian(schedule), schedule)
    return World(
        images,
        labels,
        nearest().eval().requires_grad_(False),
        robust.eval().requires_grad_(False),
        denoiser,
        denoiser,
        steps=20,
        attack=PGD(epsilon=Number(0.1), steps=12, step_size=Number(0.02), eot_samples=4),
        audit=Audit(queries=20),
        short_audit=Audit(queries=20),
        protocol=Protocol(report_draws=8, selection_draws=6),
    )


def packaged() -> World:
    """The packaged networks, on packaged validation images."""
    data, acceleration = read_packaged("validation"), Acceleration(precision="bfloat16")
    items = [data[number] for number in range(IMAGES)]
    denoiser = load_denoiser("fashion_mnist_ddpm")
    return World(
        torch.stack([item["image"] for item in items]),
        torch.stack([item["label"] for item in items]),
        load_classifier("fashion_mnist_wrn"),
        load_classifier("fashion_mnist_adversarial"),
        accelerate(denoiser, acceleration),
        denoiser,
        steps=20,
        attack=PGD(epsilon=Number("16/255"), steps=10, step_size=Number("4/255"), eot_samples=2),
        audit=Audit(queries=20),
        short_audit=Audit(queries=20, purifications=12_000),
        protocol=Protocol(report_draws=5, selection_draws=5),
        acceleration=acceleration,
    )


def audited(place: Path, world: World, case: Case, seed: int = 0) -> dict[str, str]:
    """Verdicts of an evaluation's audit and their reasons by name; of a row that was struck out,
    the reason as `struck`. What is done is kept in the folder `place`."""
    config = Evaluation(
        classifier="-",
        denoisers={},
        defenses={ROW: DefenseConfig()},
        attack=case.attack,
        protocol=world.protocol,
        audit=case.audit,
        acceleration=world.acceleration,
        seed=seed,
    )
    ids = torch.arange(len(world.images)) + FIRST
    names = tuple(f"class {k}" for k in range(world.classifier.num_classes))
    data = Images.of(world.images, world.labels, names, ids)
    networks, store = (
        Networks({ROW: Row(ROW, case.defense, case.surrogate)}, {}),
        Store(place),
    )
    run = describe(config, networks, data, store, device=torch.device("cpu"), largest=len(data))
    store.begin(run_record(run))
    evaluate(run, store)
    results = write_results(store)
    if ROW in results["struck"]:
        return {"struck": results["struck"][ROW]}
    return {
        check["name"]: f"{check['verdict']}: {check['said']}"
        for check in results["defenses"][ROW]["audit"]
    }


def failures(verdicts: Mapping[str, str]) -> list[str]:
    """The names of the checks that failed; `struck` of a row that was struck out."""
    return [name for name, said in verdicts.items() if name == "struck" or said.startswith("FAIL")]


def audit_all(world: World, folder: Path, seeds: range) -> dict[str, list[list[str]]]:
    """By row, for each seed, which checks failed. A row that is there is not audited again."""
    failed: dict[str, list[list[str]]] = {}
    for name, case in world.rows().items():
        failed[name] = []
        for seed in seeds:
            place = folder / f"{file_stem(name)}-{seed}"
            failed[name].append(failures(audited(place, world, case, seed)))
            print(f"{name}, seed {seed}: {', '.join(failed[name][-1]) or 'no FAIL'}", flush=True)
    return failed


def table(result: Mapping[str, Any]) -> str:
    """Each row's failed checks, on tiny networks by seed and on the packaged ones."""
    worlds = {"tiny networks": result["tiny"], "packaged networks": result.get("packaged", {})}
    rows = []
    for name in result["tiny"]:
        cells = []
        for failed in worlds.values():
            lists = failed.get(name)
            checks = dict.fromkeys(check for of_seed in lists or [] for check in of_seed)
            counts = [
                f"{c} ({sum(c in of_seed for of_seed in lists)} of {len(lists)})" for c in checks
            ]
            cells.append(
                "not run" if lists is None else ", ".join(counts) or f"none of {len(lists)}"
            )
        rows.append((name, *cells))
    return Sheet("", ("row", *(f"FAIL on {world}" for world in worlds)), rows).markdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packaged", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/frauds"))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/frauds.json"))
    options = parser.parse_args()
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.packaged:
        result["packaged"] = audit_all(packaged(), options.folder / "packaged", range(1))
    else:
        result["tiny"] = audit_all(tiny(), options.folder / "tiny", SEEDS)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result | {"provenance": provenance(torch.device("cpu"))}))
    if "tiny" in result:
        print(table(result))


if __name__ == "__main__":
    main()
