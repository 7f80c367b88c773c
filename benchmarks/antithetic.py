"""What antithetic pairs of noise draws do for an expected gradient, at equal network calls.

On packaged validation images, at the iterates of a PGD attack: the cosine between the gradients of
both halves of the draws, and that of their mean to the mean over many other draws.

    python benchmarks/antithetic.py --images 32
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.fashion_mnist import read_packaged
from hetpure.attacks import PGD, Addresses, Target
from hetpure.attacks.losses import criterion
from hetpure.attention import AttentionMask
from hetpure.defense import Defense
from hetpure.evaluation.provenance import provenance
from hetpure.expectation import Query, expected_gradient
from hetpure.noise import Noise, Stream
from hetpure.numbers import Number
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from hetpure.report.sheet import Sheet
from hetpure.samplers import DDPM
from hetpure.weights import load_classifier, load_denoiser

COUNTS = (2, 4, 8)
REFERENCE, MICRO_BATCH = 32, 64
HEADS = ("defence", "iterate", "draws", "independent", "antithetic", "difference [95%]")


def defenses() -> dict[str, Defense]:
    """Packaged ones: without and with noise of the sampler's own, and the heterogeneous one."""
    classifier, denoiser = load_classifier("fashion_mnist_wrn"), load_denoiser("fashion_mnist_ddpm")
    mask = AttentionMask(threshold=0.5)
    purifiers = {
        "uniform t=200": UniformPurifier(strength=0.2, steps=20),
        "uniform t=200, DDPM": UniformPurifier(strength=0.2, steps=20, sampler=DDPM()),
        "heterogeneous 200/100": HeterogeneousPurifier(steps=20, t_large=0.2, t_small=0.1),
    }
    return {name: Defense(classifier, p, denoiser, mask) for name, p in purifiers.items()}


def gradient(
    defense: Defense, images: Tensor, labels: Tensor, samples: Tensor, noises: list[Noise]
) -> tuple[Tensor, Tensor | None]:
    """Of the mean cross-entropy, and the cosine between both halves of the draws (B,)."""
    mask = defense.mask(images, samples)
    defense.execution = type(defense.execution)("tape", micro_batch=MICRO_BATCH)
    query = Query(images, samples, mask, noises)
    answer = expected_gradient(defense, query, criterion("cross_entropy", labels))
    return answer.gradient, answer.agreement


def reference(defense: Defense, images: Tensor, labels: Tensor, samples: Tensor) -> Tensor:
    """The mean gradient over many draws that no comparison uses."""
    many = Addresses(samples, Noise.of(0, Stream.PROBE), member=1).draws(0, 0, REFERENCE)
    return gradient(defense, images, labels, samples, many)[0]


def compare(
    defense: Defense, images: Tensor, labels: Tensor, samples: Tensor, count: int, truth: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """By kind of cosine, those of independent and of antithetic draws, (B,) each; `truth` is the
    mean gradient to compare with."""
    base = Noise.of(0, Stream.PROBE)
    pairs: dict[str, list[Tensor]] = {"halves": [], "to the mean": []}
    for antithetic in (False, True):
        draws = Addresses(samples, base).draws(0, 0, count, antithetic=antithetic)
        mean, agreement = gradient(defense, images, labels, samples, draws)
        assert agreement is not None
        pairs["halves"].append(agreement)
        pairs["to the mean"].append(F.cosine_similarity(mean.flatten(1), truth.flatten(1)).double())
    return {kind: (pair[0], pair[1]) for kind, pair in pairs.items()}


def cells(pair: tuple[Tensor, Tensor]) -> list[str]:
    """Means, and the mean paired difference with 1.96 standard errors."""
    change = pair[1] - pair[0]
    error = 1.96 * float(change.std()) / len(change) ** 0.5
    middle = float(change.mean())
    bounds = f"{middle:+.3f} [{middle - error:+.3f}, {middle + error:+.3f}]"
    return [f"{float(pair[0].mean()):.3f}", f"{float(pair[1].mean()):.3f}", bounds]


def measured(images: int, steps: int) -> dict[str, list[list[str]]]:
    """By kind of cosine, the rows of its table."""
    data = read_packaged("validation").take(slice(images))
    pixels, labels, samples = data.images.float() / 255, data.labels, data.samples
    rows: dict[str, list[list[str]]] = {}
    for name, defense in defenses().items():
        attack = PGD(
            epsilon=Number("16/255"), steps=steps, step_size=Number("4/255"), eot_samples=2,
            mask="recomputed", random_start=False,
        )  # fmt: skip
        addresses = Addresses(samples, Noise.of(0, Stream.PROBE))
        last = attack(Target(defense, pixels, labels, addresses))[0]
        for where, points in (("clean", pixels), (f"after {steps} steps", last)):
            truth = reference(defense, points, labels, samples)
            for count in COUNTS:
                pairs = compare(defense, points, labels, samples, count, truth)
                for kind, pair in pairs.items():
                    if count > 2 or kind != "halves":  # of one pair the halves share their noise
                        rows.setdefault(kind, []).append([name, where, str(count), *cells(pair)])
    return rows


def tables(results: dict[str, Any]) -> str:
    """In Markdown, one for each kind of cosine."""
    about = f"n = {results['images']}; reference: {REFERENCE} other draws"
    sheets = [
        Sheet(f"Cosine: {kind} ({about})", HEADS, rows).markdown()
        for kind, rows in results["rows"].items()
    ]
    return "\n\n".join([*sheets, f"Commit {results['commit']}."])


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/antithetic.json"))
    options = parser.parse_args()
    results = {
        "images": options.images,
        "commit": provenance(torch.device("cpu"))["commit"],
        "rows": measured(options.images, options.steps),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(tables(results))


if __name__ == "__main__":
    main()
