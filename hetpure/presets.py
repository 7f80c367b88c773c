"""Defences that come with the package, by name."""

from dataclasses import dataclass

from hetpure.attention import AttentionMask
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.purifiers import HeterogeneousPurifier, Purifier
from hetpure.weights import load_classifier, load_denoiser


@dataclass(frozen=True)
class Preset:
    """Names of packaged weights, what stands before the classifier, and its classes' names."""

    classifier: str
    denoiser: str
    purifier: Purifier
    mask: AttentionMask
    classes: tuple[str, ...]


# The heterogeneous + ADDT row of configs/evaluate/quick.yaml.
PRESETS = {
    "fashion_mnist": Preset(
        classifier="fashion_mnist_wrn",
        denoiser="fashion_mnist_addt",
        purifier=HeterogeneousPurifier(steps=20, t_large=0.2, t_small=0.1),
        mask=AttentionMask(threshold=0.5),
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    )
}


def load_defense(name: str = "fashion_mnist") -> Defense:
    """A packaged defence, ready to purify and classify, on the CPU."""
    if name not in PRESETS:
        raise InputError(f"no defence {name!r} is packaged, only {', '.join(PRESETS)}")
    preset = PRESETS[name]
    return Defense(
        load_classifier(preset.classifier),
        preset.purifier,
        load_denoiser(preset.denoiser),
        preset.mask,
    )
