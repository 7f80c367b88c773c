"""Whether networks, data and trainer go together, asked before anything is computed."""

from collections.abc import Mapping
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from hetpure.classifiers import Classifier
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError

PRECISIONS = ("32-true", "64-true", "bf16-mixed")  # perturbations are ranked in float32 at least


class ImageData(Protocol):
    """What a datamodule tells about its data."""

    description: str
    class_names: tuple[str, ...]
    num_classes: int
    channels: int

    def files_sha256(self) -> dict[str, str]: ...


def check_data(data: Any) -> None:
    """Raises InputError unless the data tells of itself what results say of it."""
    for name in ("description", "class_names", "files_sha256"):
        if not hasattr(data, name):
            raise InputError(
                f"--data: {type(data).__name__} has no {name}: docs/your_own.md says what an"
                " evaluation asks of its data"
            )


def check_classifier(classifier: Classifier, data: Any) -> None:
    """Raises InputError unless the classifier answers for the data's classes and channels."""
    for what, mine, theirs in (
        ("classes", classifier.num_classes, getattr(data, "num_classes", None)),
        ("channels", classifier.channels, getattr(data, "channels", None)),
    ):
        if theirs is not None and mine != theirs:
            raise InputError(f"the classifier has {mine} {what} and the data {theirs}")


def check_size(guide: Classifier, unet: Mapping[str, Any], device: torch.device) -> None:
    """Raises InputError unless the classifier takes the diffusion network's images."""
    size = unet["sample_size"]
    if size is None:
        return
    height, width = (size, size) if isinstance(size, int) else size
    try:
        with torch.no_grad():
            guide(torch.zeros(1, unet["in_channels"], height, width, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            f"the guide does not take the diffusion's {height} x {width} images"
            f" ({str(error).splitlines()[0][:100]}): give one trained on that size"
        ) from None


def check_denoiser(denoiser: Denoiser, data: Any) -> None:
    """Raises InputError unless the diffusion network takes the data's channels and size."""
    config = getattr(denoiser.network, "config", {})
    for what, key, name in (
        ("{} channels", "in_channels", "channels"),
        ("{} channels of output", "out_channels", "channels"),
        ("images of size {}", "sample_size", "image_size"),
    ):
        mine, theirs = config.get(key), getattr(data, name, None)
        if None not in (mine, theirs) and mine != theirs:
            raise InputError(f"the diffusion has {what.format(mine)} and the data {theirs}")
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        raise InputError(
            "the diffusion is told an image's class (class_embed_type, num_class_embeds), which a"
            " purifier does not know: give one that is not"
        )


def check_trainer(trainer: L.Trainer) -> None:
    """Raises InputError unless a diffusion can be trained in the trainer's precision, by its
    strategy."""
    if trainer.precision not in PRECISIONS:
        raise InputError(
            f"--trainer.precision {trainer.precision} is not one of {', '.join(PRECISIONS)}: others"
            " lose small gradients, by which perturbations are ranked"
        )
    strategy = trainer.strategy
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)):
        raise InputError(
            f"--trainer.strategy {type(strategy).__name__}: a diffusion is trained by ddp, or"
            " sharded by ModelParallelStrategy (docs/cluster.md)"
        )
