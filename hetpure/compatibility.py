"""Whether networks and data belong together, asked before anything is computed.

`data` is whatever gives the images, as a datamodule: what it does not say of itself (`num_classes`,
`channels`, `image_size`) is not compared.
"""

from typing import Any

import torch
from torch import Tensor

from hetpure.adversarial_training import evaluating
from hetpure.attention import NO_BLOCKS, AttentionMask
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError

ASKED = 8  # images; more would take memory that nothing was reserved for


def check_data(data: Any) -> None:
    """Raises InputError unless the data says of itself what an evaluation needs to know."""
    for name in ("description", "class_names", "num_classes", "channels", "files_sha256"):
        if not hasattr(data, name):
            raise InputError(
                f"{type(data).__name__} has no {name}: docs/guide/your_own_data.md says what an"
                " evaluation asks of its data"
            )
    if len(data.class_names) != data.num_classes:
        raise InputError(
            f"{type(data).__name__} has {data.num_classes} classes (num_classes) and"
            f" {len(data.class_names)} class_names"
        )


def check_classifier(classifier: Classifier, data: Any) -> None:
    """Raises InputError unless the classifier answers for the data's classes and channels."""
    for name in ("num_classes", "channels"):
        ours, theirs = (getattr(owner, name, None) for owner in (classifier, data))
        _check_equal(f"the classifier's {name}", ours, "the data's", theirs)


def check_answers(classifier: Classifier, images: Tensor, name: str) -> None:
    """Raises InputError, which names the classifier so, unless it gives finite logits for images
    (B, C, H, W), pixel [0, 1]. It is asked once, about a few."""
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
            f"{name} cannot be used on the data's {height} x {width} images:"
            f" {error if isinstance(error, InputError) else line + '; give one of that size'}"
        ) from None
    if not logits.isfinite().all():
        raise InputError(
            f"{name} gives logits of {float(logits[~logits.isfinite()][0]):g} for the data's"
            " images, expected are finite ones: look at its weights, mean and std"
        )


def check_denoiser(denoiser: Denoiser, data: Any, purified_size: int | None = None) -> None:
    """Raises InputError unless the diffusion network takes the data's channels and size, or the
    size that images are purified in."""
    config = getattr(denoiser.network, "config", {})
    for name in ("in_channels", "out_channels"):
        channels = getattr(data, "channels", None)
        _check_equal(f"the diffusion's {name}", config.get(name), "the data's channels", channels)
    size = height_width(purified_size or getattr(data, "image_size", None))
    _check_equal(
        "the diffusion's sample_size",
        height_width(config.get("sample_size")),
        "the images' (a row's purified_size is the size at which they are purified)",
        size,
    )
    halvings = len(config.get("block_out_channels") or config.get("channel_mult") or (1,)) - 1
    if size is not None and any(side % 2**halvings for side in size):
        raise InputError(
            f"the diffusion halves its images {halvings} times, so height and width must be"
            f" divisible by {2**halvings}, and they are {size[0]} x {size[1]}: take a network of"
            " fewer blocks (--model.unet), or purify at another size (a row's purified_size)"
        )
    for key in ("class_embed_type", "num_class_embeds", "label_dim"):
        if config.get(key):
            raise InputError(
                f"the diffusion asks for an image's class ({key}), which a purifier does not know:"
                " give one that does not"
            )


def check_defense(defense: Defense, data: Any) -> None:
    """Raises InputError unless its networks are of the data's kind."""
    check_classifier(defense.classifier, data)
    if defense.denoiser is not None:
        check_denoiser(defense.denoiser, data, defense.purified_size)
    mask = defense.attention_mask if defense.masked else None
    if isinstance(mask, AttentionMask) and not (mask.blocks or defense.classifier.attention_blocks):
        raise InputError(NO_BLOCKS)


def check_all_answers(defenses: dict[str, Defense], images: Tensor) -> None:
    """Raises InputError unless the classifier of every row gives finite logits for images
    (B, C, H, W), pixel [0, 1]."""
    # Rows share classifiers: the first row's name stands for all.
    owners = {defense.classifier: name for name, defense in reversed(defenses.items())}
    for classifier, name in owners.items():
        check_answers(classifier, images, f"the classifier of row {name!r}")


def height_width(size: Any) -> tuple[int, int] | None:
    """Of one number, of a pair, or of nothing."""
    return (size, size) if isinstance(size, int) else size and tuple(size)


def _check_equal(name: str, value: Any, other_name: str, other: Any) -> None:
    if None not in (value, other) and value != other:
        raise InputError(f"{name}: {value}, and {other_name}: {other}")
