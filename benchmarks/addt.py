"""What an ADDT update costs: over a plain update, and over its floor, in one process.

The floor is the network calls that CGPO and the update cannot do without: K (forward + backward to
the input) and K guide passes, and one (forward + backward to the weights). Beside it an
implementation that lets the inner loop's gradients run into the weights, as published.

    python benchmarks/addt.py                                  # the packaged UNet and guide
    python benchmarks/addt.py --network cifar10 --batch 4      # google/ddpm-cifar10-32, WRN-28-10
    python benchmarks/addt.py --network cifar10 --batch 64 --device cuda --precision bfloat16
"""

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.addt import Batch, RankGaussian, denoising_loss, mix_noise, rank_gaussian
from hetpure.benchmark.clock import Clock
from hetpure.benchmark.networks import denoiser_of, images_of
from hetpure.denoiser import to_model, to_pixels
from hetpure.evaluation.provenance import provenance
from hetpure.noise import Noise, Purpose, Stream
from hetpure.weights import save_classifier
from hetpure.weights.classifier import build_classifier
from lightning_modules.diffusion import DiffusionTraining

BOUND = 1.08  # times the floor that an update may take
HEADS = ("work", "ms", "plain updates", "ADDT updates", "floors", "their quartiles")


def training_of(network: str, perturbation: RankGaussian) -> DiffusionTraining:
    """The packaged UNet and classifier, or google/ddpm-cifar10-32's architecture and WRN-28-10 with
    random weights."""
    if network == "packaged":
        names = {"diffusion": "fashion_mnist_ddpm", "guide": "fashion_mnist_wrn"}
        return DiffusionTraining(**names, perturbation=perturbation)
    wide = {"depth": 28, "widen_factor": 10, "num_classes": 10, "in_channels": 3}
    config = {"architecture": "WideResNet", "network": wide, "mean": [0.5] * 3, "std": [0.5] * 3}
    with TemporaryDirectory() as folder:
        guide = Path(folder) / "guide"
        torch.manual_seed(0)
        save_classifier(guide, build_classifier(config, where=guide), config)
        unet = dict(denoiser_of(network).network.config)
        return DiffusionTraining(unet=unet, guide=str(guide), perturbation=perturbation)


class Work:
    """The pieces that are timed, on one batch and one update's noise."""

    def __init__(self, module: DiffusionTraining, images: Tensor, precision: torch.dtype) -> None:
        assert isinstance(module.perturbation, RankGaussian) and module.guide is not None
        self.module = module.train()
        self.denoiser, self.guide = module.denoiser, module.guide
        self.perturbation = module.perturbation
        self.precision = precision
        samples = torch.arange(len(images), device=images.device)
        noise = Noise.of(0, Stream.TRAIN).on(samples)
        x0 = to_model(images)
        level = module.levels.draw(module.denoiser.schedule, noise, x0)
        labels = noise.integers(Purpose.START, module.guide.num_classes)
        self.batch = Batch(x0, labels, level, noise)

    def cast(self) -> AbstractContextManager[Any]:
        """The precision of the calls, without a cache of cast weights, as Lightning has it."""
        if self.precision == torch.float32:
            return nullcontext()
        kind = self.batch.x0.device.type
        return torch.autocast(kind, self.precision, cache_enabled=False)

    def learn(self, training_noise: Tensor) -> None:
        loss = denoising_loss(self.denoiser, self.batch.x0, self.batch.level, training_noise)
        loss.mean().backward()
        self.denoiser.zero_grad()

    def fresh(self, repeat: int = 0) -> Tensor:
        return self.batch.noise.normal(Purpose.TRAINING, self.batch.x0, repeat=repeat)

    def update(self, perturbation: RankGaussian | None) -> None:
        """Forward and backward of an update as it is trained, without the optimiser's step."""
        self.module.perturbation = perturbation
        with self.cast():
            update = self.module.losses(self.batch.x0, self.batch.labels, self.batch.noise)
            update.losses.mean().backward()
        self.module.zero_grad()

    def plain(self) -> None:
        """Without a perturbation."""
        self.update(None)

    def addt(self) -> None:
        """By ADDT."""
        self.update(self.perturbation)

    def skipping(self) -> None:
        """By ADDT, where half of the images have random perturbations."""
        median = float(self.perturbation.ratio(self.batch.level).median())
        self.update(replace(self.perturbation, skip_below=median))

    def floor(self) -> None:
        """The same network calls and nothing else."""
        with self.cast():
            with self.module.searching():  # a compiled backward would compute weights' gradients
                for _ in range(self.perturbation.steps):
                    self.call_to_input()
            self.learn(self.batch.x0)

    def call_to_input(self) -> None:
        """One call of the network and one of the guide, backward to the network's input."""
        x = self.batch.x0.clone().requires_grad_()
        output = self.denoiser(x, self.batch.level)
        values = self.guide(output)
        torch.autograd.grad(values, x, torch.ones_like(values))

    def weights_too(self) -> None:
        """ADDT with backward through everything in the inner loop."""
        data, ratio = self.batch, self.perturbation.ratio(self.batch.level)
        with self.cast():
            delta = data.noise.normal(Purpose.PERTURBATION, data.x0)
            total = torch.zeros_like(delta)
            for k in range(1, self.perturbation.steps + 1):
                delta.requires_grad_()
                mixed = mix_noise(self.fresh(k), delta, ratio)
                image, _ = self.denoiser.predict(data.level.diffuse(data.x0, mixed), data.level)
                logits = self.guide(to_pixels(image)).double()
                F.cross_entropy(logits, data.labels, reduction="sum").backward()
                assert delta.grad is not None
                total += delta.grad
                draw = data.noise.normal(Purpose.RANK, data.x0, repeat=k)
                ties = data.noise.uniform(Purpose.TIES, data.x0, repeat=k)
                delta = rank_gaussian(total, draw, ties)
            self.denoiser.zero_grad()
            self.learn(mix_noise(self.fresh(), delta, ratio))


def times(work: Work, clock: Clock, repeats: int) -> dict[str, dict[str, float]]:
    """By piece of work: median milliseconds, and the median of its ratios to the plain update, the
    ADDT update and the floor that were timed with it, in turn; of the last its quartiles too."""
    pieces: dict[str, Callable[[], None]] = {
        "plain update": work.plain,
        "floor": work.floor,
        "ADDT update": work.addt,
        "ADDT, images with lambda below its median skipped": work.skipping,
        "ADDT, gradients of weights too": work.weights_too,
    }
    for run in pieces.values():
        run()
    turns = [{name: clock(run) for name, run in pieces.items()} for _ in range(repeats)]

    def ratios(name: str, other: str) -> list[float]:
        return [turn[name] / turn[other] for turn in turns]

    measured = {}
    for name in pieces:
        lower, middle, upper = statistics.quantiles(ratios(name, "floor"), n=4, method="inclusive")
        measured[name] = {
            "milliseconds": statistics.median(turn[name] for turn in turns),
            "plain": statistics.median(ratios(name, "plain update")),
            "addt": statistics.median(ratios(name, "ADDT update")),
            "floors": middle,
            "lower": lower,
            "upper": upper,
        }
    return measured


def table(results: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [
        f"**{results['network']}, batch {results['batch']}, {results['precision']}, on"
        f" {results['machine']}**",
        "",
        "| " + " | ".join(HEADS) + " |",
        "|" + " --- |" * len(HEADS),
    ]
    for name, row in results["times"].items():
        lines.append(
            f"| {name} | {row['milliseconds']:.0f} | {row['plain']:.2f} | {row['addt']:.2f} |"
            f" {row['floors']:.2f} | {row['lower']:.2f} to {row['upper']:.2f} |"
        )
    floors = results["times"]["ADDT update"]["floors"]
    verdict = "reached" if floors <= BOUND else "missed"
    return "\n".join([*lines, "", f"At most {BOUND} floors an update: {verdict}."])


def main(arguments: list[str] | None = None) -> None:
    """Times, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", choices=("packaged", "cifar10"), default="packaged")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=5, help="CGPO steps")
    parser.add_argument("--compile", action="store_true", help="network and guide compiled")
    parser.add_argument("--repeats", type=int, default=7, help="turns, 2 or more")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/addt.json"))
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    module = training_of(given.network, RankGaussian(steps=given.steps)).to(device)
    images = images_of(given.network, given.batch, given.device)
    if given.compile:
        module.unet.compile()
        if module.guide is not None:
            module.guide.compile()
    if module.guide is not None:
        module.guide.to(device)
    work = Work(module, images, getattr(torch, given.precision))
    machine = provenance(device)
    results = {
        "network": given.network,
        "batch": given.batch,
        "precision": given.precision,
        "machine": machine["device"],
        "provenance": machine,
        "times": times(work, Clock(given.device), given.repeats),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
