"""Defences whose answers are known, and what listens to an attack on them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hetpure.attacks import Addresses, Monitor, Target
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.noise import BatchNoise, Group, Noise, Purpose, Stream

SAMPLES, LABELS = torch.tensor([31, 7, 100, 5]), torch.tensor([0, 1, 1, 0])
NOISE = Noise.of(7, Stream.DW_BOX)
ADDRESSES = Addresses(SAMPLES, NOISE)
BOTH: tuple[Group, ...] = ("forward", "reverse")


class Counter(Monitor):
    """Adds up what an attack asks and keeps what its iterations say."""

    def __init__(self) -> None:
        self.gradients: list[int] = []
        self.queries: list[int] = []
        self.iterations: list[tuple[int, dict[str, float]]] = []

    def differentiated(self, count: int) -> None:
        self.gradients.append(count)

    def answered(self, count: int) -> None:
        self.queries.append(count)

    def iteration(self, number: int, **values: float) -> None:
        self.iterations.append((number, values))


@dataclass(frozen=True)
class Call:
    """One call of a defence."""

    images: Tensor
    noise: BatchNoise
    mask: Tensor | None


class Spy(Defense):
    """Remembers what it is asked."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.calls: list[Call] = []

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Tensor:
        self.calls.append(Call(images.detach().clone(), noise, mask))
        return super().forward(images, noise, mask, policy)


class Noisy(Spy):
    """Answers images with noise in every pixel: randomised, and with a known law."""

    groups = frozenset[Group]({"reverse"})

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Tensor:
        noisy = images + 0.3 * noise.normal(Purpose.REVERSE, images)
        self.calls.append(Call(images.detach().clone(), noise, mask))
        return self.classifier(noisy)


def target_of(
    defense: Defense,
    images: Tensor,
    labels: Tensor = LABELS,
    addresses: Addresses = ADDRESSES,
    monitor: Monitor | None = None,
) -> Target:
    return Target(defense, images, labels, addresses, monitor or Monitor())


def linear(weight: Tensor, bias: Tensor | None = None) -> Classifier:
    """The classifier with logits `weight` (classes, pixels) times the image, plus the bias."""
    layer = nn.Linear(weight.shape[1], len(weight), dtype=weight.dtype)
    zero = torch.zeros(len(weight), dtype=weight.dtype)
    layer.load_state_dict({"weight": weight, "bias": zero if bias is None else bias})
    network = nn.Sequential(nn.Flatten(), layer)
    return Classifier(network, num_classes=len(weight), mean=[0.0], std=[1.0]).to(weight.dtype)


def uphill(classifier: Classifier) -> Tensor:
    """The direction (4, 1, 8, 8) in which a linear classifier of two classes loses `LABELS`."""
    weight: Tensor = classifier.network[1].weight
    return (weight[1 - LABELS] - weight[LABELS]).reshape(-1, 1, 8, 8)


def templates() -> tuple[Classifier, Tensor, Tensor]:
    """Nearest of four templates, with forty images near theirs and their labels."""
    generator = torch.Generator().manual_seed(0)
    means = 0.3 + 0.4 * torch.rand(4, 64, generator=generator)
    labels = torch.arange(40) % 4
    images = means[labels] + 0.05 * torch.randn(40, 64, generator=generator)
    classifier = linear(20 * means, -10 * means.square().sum(1))
    return classifier, images.clamp(0, 1).reshape(-1, 1, 8, 8), labels


def size(offsets: Tensor, norm: str) -> Tensor:
    """The norm of each (..., C, H, W) offset."""
    return offsets.flatten(-3).norm(dim=-1, p=float("inf") if norm == "linf" else 2)


def unit(offsets: Tensor) -> Tensor:
    """Each image's offset over its L2 norm."""
    return offsets / size(offsets, "l2")[..., None, None, None]


def root_mean_square(images: Tensor, originals: Tensor) -> Tensor:
    """(B,) distances, with a derivative where there is none between them."""
    return ((images - originals).square().flatten(1).mean(1) + 1e-12).sqrt() - 1e-6
