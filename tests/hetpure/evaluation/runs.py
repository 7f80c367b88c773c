"""Small runs of the evaluation's function: a plain classifier and a purifier, four images."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hetpure.attacks import PGD, Square
from hetpure.classifiers import Classifier, WideResNet
from hetpure.denoiser import Denoiser
from hetpure.evaluation.audit import Audit
from hetpure.evaluation.cells import AttackConfig
from hetpure.evaluation.description import Evaluation, Images, Networks, Run, describe
from hetpure.evaluation.facts import run_record
from hetpure.evaluation.protocol import Protocol
from hetpure.evaluation.rows import DefenseConfig, build_rows
from hetpure.evaluation.store import Store
from hetpure.purifiers import UniformPurifier
from hetpure.samplers import DDPM
from hetpure.schedule import linear_schedule
from tests.hetpure.networks import tiny_unet

CONFIG = Evaluation(
    classifier="tiny",
    denoisers={"tiny": "tiny"},
    defenses={
        "plain": DefenseConfig(gradient="tape"),
        "purified": DefenseConfig(
            UniformPurifier(strength=0.1, steps=20, sampler=DDPM()), "tiny", gradient="tape"
        ),
    },
    attack=PGD(steps=2, eot_samples=2),
    attacks={"square": AttackConfig(Square(steps=2, eot_samples=1), limit=3)},
    protocol=Protocol(report_draws=3, selection_draws=2),
    audit=Audit(images=1, queries=1),
    baseline="plain",
)


def small(config: Evaluation = CONFIG) -> tuple[Networks, Images]:
    """The rows of a config, of untrained networks that are in no folder, and four images whose ids
    are not their positions."""
    torch.manual_seed(0)
    denoiser = Denoiser(tiny_unet(in_channels=1, out_channels=1), linear_schedule()).eval()
    wide = WideResNet(depth=10, widen_factor=1, num_classes=4, in_channels=1)
    classifier = Classifier(wide, num_classes=4, mean=[0.4], std=[0.3]).eval()
    rows = build_rows(config.defenses, classifier, {}, {"tiny": denoiser}, config.acceleration)
    images = 0.2 + 0.6 * torch.rand(4, 1, 8, 8)
    labels, samples = torch.tensor([0, 1, 2, 1]), torch.tensor([11, 3, 40, 7])
    names = ("zero", "one", "two", "three")
    weights = {"classifier": "c" * 64, "denoiser tiny": "d" * 64}
    return Networks(rows, weights), Images.of(images, labels, names, samples)


def begin(
    place: Path, built: Networks, images: Images, *, largest: int = 2, **changes: Any
) -> tuple[Run, Store]:
    """A run that has begun in its store, with some settings of the config changed."""
    store = Store(place)
    config = replace(CONFIG, **changes)
    cpu = torch.device("cpu")
    run = describe(config, built, images, store, device=cpu, largest=largest)
    store.begin(run_record(run))
    return run, store


def without_clocks(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results but for seconds and memory."""
    rows = {
        name: {key: value for key, value in row.items() if key != "cost"}
        for name, row in results["defenses"].items()
    }
    return {**results, "defenses": rows, "cost": None, "provenance": None}
