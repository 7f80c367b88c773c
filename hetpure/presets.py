"""Defences that come with the package, by name."""

from hetpure.attention import AttentionMask
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.purifiers import HeterogeneousPurifier
from hetpure.weights import load_classifier, load_denoiser

FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker"),
    *("Bag", "Ankle boot"),
)


def fashion_mnist() -> Defense:
    """The heterogeneous + ADDT row of configs/evaluate/quick.yaml."""
    return Defense(
        load_classifier("fashion_mnist_wrn"),
        HeterogeneousPurifier(steps=20, t_large=0.2, t_small=0.1),
        load_denoiser("fashion_mnist_addt"),
        AttentionMask(threshold=0.5),
    )


PRESETS = {"fashion_mnist": fashion_mnist}


def load_defense(name: str = "fashion_mnist") -> Defense:
    """A packaged defence, ready to purify and classify, on the CPU."""
    if name not in PRESETS:
        raise InputError(f"no defence {name!r} is packaged, only {', '.join(PRESETS)}")
    return PRESETS[name]()
