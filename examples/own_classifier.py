"""A classifier of one's own behind a packaged purifier, attacked through both.

The classifier is the nearest mean image of a class, which needs no training loop. Any `nn.Module`
that gives logits for normalised images takes its place.

    python examples/own_classifier.py
"""

import torch
from torch import Tensor, nn

from datamodules.fashion_mnist import read_packaged
from hetpure.attacks import PGD
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.evaluation.protocol import Block, Protocol, evaluate_block
from hetpure.evaluation.results import draws_right
from hetpure.evaluation.statistics import mean_accuracy
from hetpure.numbers import Number
from hetpure.purifiers import UniformPurifier
from hetpure.weights import load_denoiser


class NearestMean(nn.Module):
    """Logits (B, classes): minus the mean squared distance to the mean image of each
    class."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        means = [images[labels == k].mean(0) for k in range(10)]
        self.register_buffer("means", torch.stack(means).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return -((images.flatten(1)[:, None] - self.means) ** 2).mean(2)


def main(images: int = 16) -> dict[str, float]:
    """Clean and robust accuracy of the bare and of the purified classifier."""
    train, test = read_packaged("train"), read_packaged("test")
    pixels = train.images.float() / 255
    mean, std = float(pixels.mean()), float(pixels.std())
    network = NearestMean((pixels - mean) / std, train.labels)
    classifier = Classifier(network, num_classes=10, mean=[mean], std=[std])

    block = Block(test.images[:images].float() / 255, test.labels[:images], test.samples[:images])
    attack = PGD(epsilon=Number("16/255"), steps=5, eot_samples=2)
    protocol = Protocol(report_draws=3, selection_draws=2)
    purifier, denoiser = (
        UniformPurifier(strength=0.15, steps=20),
        load_denoiser("fashion_mnist_ddpm"),
    )
    found = {}
    for name, defense in {
        "bare": Defense(classifier),
        "purified": Defense(classifier, purifier, denoiser),
    }.items():
        records = evaluate_block(name, defense, attack, block, protocol, seed=0).records
        for kind in dict.fromkeys(record.attack for record in records):
            of_kind = [record for record in records if record.attack == kind]
            accuracy = mean_accuracy(draws_right(of_kind))
            found[f"{name}, {kind}"] = accuracy.accuracy
            print(
                f"{name:8} {kind:8} {100 * accuracy.accuracy:5.1f}%"
                f" [{100 * accuracy.low:.0f}, {100 * accuracy.high:.0f}], n = {accuracy.n}"
            )
    return found


if __name__ == "__main__":
    main()
