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
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gradients import Clock, denoiser_of, images_of
from torch import Tensor

from hetpure.addt import Batch, RankGaussian, denoising_loss, mix_noise, rank_gaussian
from hetpure.classifiers import Classifier, WideResNet
from hetpure.denoiser import Denoiser, to_model, to_pixels
from hetpure.evaluation.results import provenance
from hetpure.noise import Noise, Purpose, Stream
from hetpure.weights import load_classifier

HEADS = ("work", "ms", "plain updates", "floors")


def guide_of(network: str) -> Classifier:
    """The packaged classifier, or WRN-28-10 with random weights."""
    if network == "packaged":
        return load_classifier("fashion_mnist_wrn")
    torch.manual_seed(0)
    wide = WideResNet(depth=28, widen_factor=10, num_classes=10, in_channels=3)
    classifier = Classifier(wide, num_classes=10, mean=[0.5] * 3, std=[0.5] * 3)
    return classifier.eval().requires_grad_(False)


class Work:
    """The pieces that are timed, on one batch and one update's noise."""

    def __init__(
        self,
        denoiser: Denoiser,
        guide: Classifier,
        images: Tensor,
        perturbation: RankGaussian,
        precision: torch.dtype,
    ) -> None:
        self.denoiser = denoiser.requires_grad_(True)
        self.guide = guide
        self.perturbation = perturbation
        self.precision = precision
        samples = torch.arange(len(images), device=images.device)
        noise = Noise.of(0, Stream.TRAIN).on(samples)
        x0 = to_model(images)
        level = denoiser.schedule.level(noise.integers(Purpose.TIMESTEP, 1000), x0)
        labels = noise.integers(Purpose.START, guide.num_classes)
        self.batch = Batch(x0, labels, level, noise)

    def cast(self) -> AbstractContextManager[Any]:
        """The precision of the calls, new each time: autocast's copies of weights end with it."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.batch.x0.device.type, self.precision)

    def learn(self, training_noise: Tensor) -> None:
        loss = denoising_loss(self.denoiser, self.batch.x0, self.batch.level, training_noise)
        loss.mean().backward()
        self.denoiser.zero_grad()

    def fresh(self, repeat: int = 0) -> Tensor:
        return self.batch.noise.normal(Purpose.TRAINING, self.batch.x0, repeat=repeat)

    def plain(self) -> None:
        """A plain update, without the optimiser's step."""
        with self.cast():
            self.learn(self.fresh())

    def addt(self) -> None:
        """An ADDT update, likewise."""
        with self.cast():
            found = self.perturbation.find(self.denoiser, self.guide, self.batch)
            mixed = self.perturbation.mix(self.fresh(), found.perturbation, self.batch.level)
            self.learn(mixed)

    def floor(self) -> None:
        """The same network calls and nothing else."""
        with self.cast():
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
                loss = F.cross_entropy(self.guide(to_pixels(image)), data.labels, reduction="sum")
                loss.backward()
                assert delta.grad is not None
                total += delta.grad
                draw = data.noise.normal(Purpose.RANK, data.x0, repeat=k)
                ties = data.noise.uniform(Purpose.TIES, data.x0, repeat=k)
                delta = rank_gaussian(total, draw, ties)
            self.denoiser.zero_grad()
            self.learn(mix_noise(self.fresh(), delta, ratio))


def times(work: Work, clock: Clock, repeats: int) -> dict[str, dict[str, float]]:
    """By piece of work: median milliseconds, and the median of its ratios to the plain update and
    to the floor that were timed with it, in turn."""
    pieces: dict[str, Callable[[], None]] = {
        "plain update": work.plain,
        "floor": work.floor,
        "ADDT update": work.addt,
        "ADDT, gradients of weights too": work.weights_too,
    }
    if work.perturbation.skip_below == 0:
        threshold = float(work.perturbation.ratio(work.batch.level).median())
        half = Work(
            work.denoiser,
            work.guide,
            to_pixels(work.batch.x0),
            RankGaussian(skip_below=threshold),
            work.precision,
        )
        pieces["ADDT, rows with lambda below its median skipped"] = half.addt
    for run in pieces.values():
        run()
    rounds = [{name: clock(run) for name, run in pieces.items()} for _ in range(repeats)]
    return {
        name: {
            "milliseconds": statistics.median(one[name] for one in rounds),
            "plain": statistics.median(one[name] / one["plain update"] for one in rounds),
            "floors": statistics.median(one[name] / one["floor"] for one in rounds),
        }
        for name in pieces
    }


def table(found: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [
        f"**{found['network']}, batch {found['batch']}, {found['precision']}, on"
        f" {found['machine']}**",
        "",
        "| " + " | ".join(HEADS) + " |",
        "|" + " --- |" * len(HEADS),
    ]
    for name, row in found["times"].items():
        lines.append(
            f"| {name} | {row['milliseconds']:.0f} | {row['plain']:.2f} | {row['floors']:.3f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Times, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", choices=("packaged", "cifar10"), default="packaged")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/addt.json"))
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    work = Work(
        denoiser_of(given.network).to(device),
        guide_of(given.network).to(device),
        images_of(given.network, given.batch, given.device),
        RankGaussian(),
        getattr(torch, given.precision),
    )
    machine = provenance(Path(__file__).parent, device)
    found = {
        "network": given.network,
        "batch": given.batch,
        "precision": given.precision,
        "machine": machine["device"],
        "provenance": machine,
        "times": times(work, Clock(given.device), given.repeats),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
