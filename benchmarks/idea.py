"""The figure of README: one image on its way through the defence, and what is left of three
defences as the attacker knows more.

    python benchmarks/idea.py

The image is attacked and purified here, with the packaged networks. The accuracies are those of the
committed run.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from committed import README, results_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import hetpure
from datamodules.fashion_mnist import read_packaged
from hetpure.attacks import PGD
from hetpure.denoiser import to_pixels
from hetpure.evaluation.protocol import Block, Protocol, evaluate_block
from hetpure.noise import noise_for
from hetpure.numbers import Number
from hetpure.presets import FASHION_MNIST_CLASSES
from hetpure.purifiers import HeterogeneousPurifier, heterogeneous_state

RUN, SAMPLE = "full_fashion_mnist", 61
ROWS = ("uniform t=200", "heterogeneous 200/100", "heterogeneous + ADDT")
EIGHTFOLD = 8.0  # 16/255 is then half of the range
GREY, INK = "#777777", "#222222"
LEVELS = {
    "no attack": "#0072b2",
    "attacker knows the networks, not the noise": "#e69f00",
    "attacker knows the noise too": "#d55e00",
}


@torch.no_grad()
def way_of(sample: int) -> list[tuple[str, Tensor, str]]:
    """Title, image (C, H, W) in pixel [0, 1] and what stands below it, from the clean test image to
    the purified adversarial one."""
    defense = hetpure.load_defense("fashion_mnist")
    purifier, denoiser = defense.purifier, defense.denoiser
    assert isinstance(purifier, HeterogeneousPurifier) and denoiser is not None
    test = read_packaged("test")
    item = test[test.samples.tolist().index(sample)]
    block = Block(item["image"][None], item["label"][None], item["sample"][None])
    attack = PGD(epsilon=Number("16/255"), steps=20, step_size=Number("2/255"), eot_samples=4)
    protocol = Protocol(report_draws=1, selection_draws=3)
    adversarial = evaluate_block("", defense, attack, block, protocol, seed=0).adversarial
    assert adversarial is not None
    noise = noise_for(adversarial)
    mask = defense.mask(adversarial)
    assert mask is not None
    large, small = (denoiser.schedule.index(s) for s in (purifier.t_large, purifier.t_small))
    noisy = heterogeneous_state(denoiser, adversarial, mask, noise, large, small)
    purified = defense.purify(adversarial, noise, mask)

    def answer(pixels: Tensor) -> str:
        return FASHION_MNIST_CLASSES[int(defense.classifier(pixels).argmax(1))]

    difference = 0.5 + EIGHTFOLD * (adversarial - block.images)
    return [
        ("image", block.images[0], answer(block.images)),
        ("perturbation, eightfold", difference[0], "at most 16/255"),
        ("adversarial image", adversarial[0], f"classifier: {answer(adversarial)}"),
        ("where it looks", mask[0], f"{mask.mean():.0%} of the pixels"),
        ("strong noise there", to_pixels(noisy)[0], "weak noise elsewhere"),
        ("purified", purified[0], f"classifier: {answer(purified)}"),
    ]


def levels_of(defense: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A row's accuracies without an attack, under all attacks, and where the noise is known."""
    known = next(attack for attack in defense["attacks"].values() if attack.get("known"))
    return [defense["clean"]["single"], defense["robust"]["single"], known["dw_box"]]


def draw_way(axes: list[Axes], way: list[tuple[str, Tensor, str]]) -> None:
    """An image an axis, with arrows between."""
    for number, (axis, (title, image, below)) in enumerate(zip(axes, way, strict=True)):
        axis.imshow(image[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=10, color=INK)
        axis.set_xlabel(below, fontsize=9, color=INK)
        if number:
            sign = "+" if number == 1 else "=" if number == 2 else "\N{RIGHTWARDS ARROW}"
            axis.text(-0.13, 0.5, sign, fontsize=15, color=GREY, ha="center", va="center",
                      transform=axis.transAxes)  # fmt: skip


def draw_levels(axis: Axes, results: Mapping[str, Any]) -> None:
    """Accuracy of each row at each level of the attacker's knowledge, with 95% intervals."""
    for number, (label, colour) in enumerate(LEVELS.items()):
        counts = [levels_of(results["defenses"][row])[number] for row in ROWS]
        values = 100 * np.array([[c["accuracy"], c["low"], c["high"]] for c in counts]).T
        middle, low, high = values
        heights = np.arange(len(ROWS)) + 0.25 * (number - 1)
        axis.barh(heights, middle, height=0.22, color=colour, label=label)
        axis.errorbar(middle, heights, xerr=[middle - low, high - middle], fmt="none",
                      ecolor=INK, elinewidth=1, capsize=2)  # fmt: skip
        for height, count, right in zip(heights, counts, high, strict=True):
            axis.text(right + 1, height, f"{100 * count['accuracy']:.0f}%, n = {count['n']}",
                      fontsize=8, va="center", color=INK)  # fmt: skip
    axis.set_yticks(range(len(ROWS)), ROWS, fontsize=9)
    axis.invert_yaxis()
    axis.set(xlim=(0, 100))
    axis.set_xlabel("right answers, % with 95% interval", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def draw(way: list[tuple[str, Tensor, str]], results: Mapping[str, Any], path: Path) -> None:
    """Writes the figure as a PNG."""
    figure = Figure(figsize=(9.6, 5.0), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.35))
    above, below = parts
    draw_way(list(above.subplots(1, len(way))), way)
    axis = below.subplots()
    draw_levels(axis, results)
    below.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3,
                 fontsize=9, frameon=False)  # fmt: skip
    figure.savefig(path, dpi=130, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=README.parent / "docs" / "idea.png")
    parser.add_argument("--sample", type=int, default=SAMPLE, help="id of a packaged test image")
    arguments = parser.parse_args()
    draw(way_of(arguments.sample), results_of(RUN), arguments.output)


if __name__ == "__main__":
    main()
