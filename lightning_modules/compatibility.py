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
from torch import Tensor

from hetpure.adversarial_training import evaluating
from hetpure.attention import NO_BLOCKS
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError

ASKED = 8  # images; more would take memory that nothing was reserved for
PRECISIONS = ("32-true", "64-true", "bf16-mixed")  # perturbations are ranked in float32 at least


class ImageData(Protocol):
    """What a datamodule tells about its data."""

    description: str
    class_names: tuple[str, ...]
    num_classes: int
    channels: int

    def files_sha256(self) -> dict[str, str]: ...


def check_data(data: Any) -> None:
    """Raises InputError unless the data tells of itself what an evaluation needs to know."""
    for name in ("description", "class_names", "num_classes", "channels", "files_sha256"):
        if not hasattr(data, name):
            raise InputError(
                f"--data: {type(data).__name__} has no {name}: docs/your_own.md says what an"
                " evaluation asks of its data"
            )
    if len(data.class_names) != data.num_classes:
        raise InputError(
            f"--data: {type(data).__name__} has {data.num_classes} classes (num_classes) and"
            f" {len(data.class_names)} class_names"
        )


def check_classifier(classifier: Classifier, data: Any) -> None:
    """Raises InputError unless the classifier answers for the data's classes and channels."""
    for what, mine, theirs in (
        ("classes", classifier.num_classes, getattr(data, "num_classes", None)),
        ("channels", classifier.channels, getattr(data, "channels", None)),
    ):
        if theirs is not None and mine != theirs:
            raise InputError(f"the classifier has {mine} {what} and the data {theirs}")


def check_answers(classifier: Classifier, images: Tensor, who: str, whose: str = "data") -> None:
    """Raises InputError, which names the classifier (`who`) and the images (`whose`), unless it
    gives finite logits for images (B, C, H, W), pixel [0, 1]. It is asked once, about a few."""
    # Of older releases autocast keeps weights cast without a graph, for calls that need one.
    full = torch.autocast(images.device.type, enabled=False)
    try:
        with torch.no_grad(), full, evaluating(classifier):
            logits = classifier.forward(images[:ASKED])  # as written: nothing is compiled for it
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a foreign network raises
        height, width = images.shape[2:]
        line = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise InputError(
            f"{who} cannot be used on the {whose}'s {height} x {width} images:"
            f" {error if isinstance(error, InputError) else line + '; give one of that size'}"
        ) from None
    if not logits.isfinite().all():
        raise InputError(
            f"{who} gives logits of {float(logits[~logits.isfinite()][0]):g} for the {whose}'s"
            " images, expected are finite ones: look at its weights, mean and std"
        )


def check_size(guide: Classifier, unet: Mapping[str, Any], device: torch.device) -> None:
    """Raises InputError unless the classifier takes the diffusion network's images."""
    size = height_width(unet["sample_size"])
    if size is not None:
        black = torch.zeros(1, unet["in_channels"], *size, device=device)
        check_answers(guide, black, "the guide", "diffusion")


def check_denoiser(denoiser: Denoiser, data: Any, purified_size: int | None = None) -> None:
    """Raises InputError unless the diffusion network takes the data's channels and size, or the
    size that images are purified in."""
    config = getattr(denoiser.network, "config", {})
    channels = getattr(data, "channels", None)
    size = height_width(purified_size or getattr(data, "image_size", None))
    for what, mine, theirs in (
        ("{} channels", config.get("in_channels"), channels),
        ("{} channels of output", config.get("out_channels"), channels),
        ("images of {0[0]} x {0[1]}", height_width(config.get("sample_size")), size),
    ):
        if None not in (mine, theirs) and mine != theirs:
            whose, advice = "the data", ""
            if "{0[0]}" in what:
                whose = whose if purified_size is None else "purified_size"
                advice = ": a row's purified_size is the size at which images are purified"
            raise InputError(
                f"the diffusion has {what.format(mine)} and {whose} {what.format(theirs)}{advice}"
            )
    for key in ("class_embed_type", "num_class_embeds", "label_dim"):
        if config.get(key):
            raise InputError(
                f"the diffusion is told an image's class ({key}), which a purifier does not know:"
                " give one that is not"
            )


def check_defense(defense: Defense, data: Any) -> None:
    """Raises InputError unless its networks are of the data's kind."""
    check_classifier(defense.classifier, data)
    if defense.denoiser is not None:
        check_denoiser(defense.denoiser, data, defense.purified_size)
    blocks = defense.attention_mask.blocks or defense.classifier.attention_blocks
    if defense.masked and not blocks:
        raise InputError(NO_BLOCKS)


def check_all_answers(defenses: dict[str, Defense], images: Tensor) -> None:
    """Raises InputError unless the classifier of every row gives finite logits for images
    (B, C, H, W), pixel [0, 1]."""
    # Rows share classifiers: the first one's name is told.
    owners = {defense.classifier: name for name, defense in reversed(defenses.items())}
    for classifier, name in owners.items():
        check_answers(classifier, images, f"the classifier of row {name!r}")


def height_width(size: Any) -> tuple[int, int] | None:
    """Of one number, of a pair, or of nothing that is told."""
    return (size, size) if isinstance(size, int) else size and tuple(size)


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
