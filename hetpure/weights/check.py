"""What was converted, run once: a wrong map shows in the numbers."""

from pathlib import Path
from typing import Any

import torch

from hetpure.classifiers import Classifier
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.noise import Purpose, noise_for
from hetpure.samplers import add_noise
from hetpure.weights.classifier import load_classifier
from hetpure.weights.diffusion import load_denoiser
from hetpure.weights.folders import in_one_line

STRENGTHS = (0.05, 0.2, 0.6)  # at which a diffusion is asked


@torch.no_grad()
def check_denoiser(folder: Path) -> list[str]:
    """At three levels: mean and std of the predicted noise, and how far it is the true noise."""
    return denoising(load_denoiser(folder))


def denoising(denoiser: Denoiser) -> list[str]:
    """The lines of `check_denoiser` for grey images."""
    config: Any = denoiser.network.config
    grey = torch.zeros(2, config["in_channels"], config["sample_size"], config["sample_size"])
    noise = noise_for(grey).normal(Purpose.FORWARD, grey)
    lines = []
    for strength in STRENGTHS:
        index = denoiser.schedule.index(strength)
        x = add_noise(grey, denoiser.schedule.alpha_cumprod(index), noise)
        _, predicted = denoiser.predict(x, index)
        _check_finite(predicted)
        alike = float(torch.corrcoef(torch.stack([predicted.flatten(), noise.flatten()]))[0, 1])
        lines.append(
            f"index {index}, sigma {denoiser.schedule.sigma(index):.3f}: predicted noise of mean"
            f" {float(predicted.mean()):+.3f} and std {float(predicted.std()):.3f}, correlation"
            f" with the true noise {alike:.3f}"
        )
    return [*lines, "a trained network's are near 0, 1 and 1: else a name is mapped wrong"]


@torch.no_grad()
def check_classifier(folder: Path, size: int | None = None) -> list[str]:
    """The range of its logits for grey, noisy images of `size` pixels; by default the network's, or
    224 where there are many classes and 32 where there are few."""
    classifier: Classifier = load_classifier(folder)
    default = getattr(classifier.network, "image_size", 224 if classifier.num_classes > 200 else 32)
    size = size or default
    pixels = torch.full((2, classifier.channels, size, size), 0.5)
    try:
        logits = classifier(pixels + 0.1 * noise_for(pixels).normal(Purpose.FORWARD, pixels))
    except Exception as error:  # a foreign network raises anything
        other = "" if isinstance(error, InputError) else "; --sample_size gives another size"
        raise InputError(
            f"{folder} was written, but does not run on images of {size} x {size} pixels"
            f" ({in_one_line(error)}){other}: delete that folder before the next try"
        ) from None
    _check_finite(logits)
    return [
        f"{tuple(logits.shape)} logits of two grey, noisy images of {size} x {size} pixels, from"
        f" {float(logits.min()):.3f} to {float(logits.max()):.3f}"
    ]


def _check_finite(values: torch.Tensor) -> None:
    if not values.isfinite().all():
        raise InputError("the network was written, but gives NaN or infinite values")
