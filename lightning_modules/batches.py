"""What a batch must hold, whoever's loader gives it: asked before anything is computed on it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from datamodules.dataset import check_ids, check_images, check_labels
from hetpure.compatibility import height_width
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Block

KEYS = ("image", "label", "sample")
WHERE = "the data"


def checked(batch: Any, data: Any) -> dict[str, Tensor]:
    """The batch with images (B, C, H, W) as floats in pixel [0, 1], labels (B,) and ids (B,) as
    int64, as hetpure takes them. 8-bit images are scaled.

    InputError unless it is {"image", "label", "sample"} of such a kind and fits what `data` tells
    of itself, where it does: channels, image_size and num_classes.
    """
    if not isinstance(batch, Mapping) or not all(isinstance(batch.get(k), Tensor) for k in KEYS):
        held = f" of {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
        raise InputError(
            f"the data's batch is a {type(batch).__name__}{held}, expected is a dict of the tensors"
            f" {', '.join(KEYS)}"
        )
    images, labels, samples = (batch[key] for key in KEYS)
    check_told(labels, samples, len(images), data)
    check_images(images, WHERE, samples=samples)
    for what, size, declared in (
        ("channels", images.shape[1], getattr(data, "channels", None)),
        ("size", tuple(images.shape[2:]), height_width(getattr(data, "image_size", None))),
    ):
        if declared not in (None, size):
            raise InputError(f"the data's images have {what} {size}, and it declares {declared}")
    # Both in the default type, that of Lightning's precision: float32, or float64 in 64-true.
    eight_bits = images.dtype == torch.uint8
    pixels = images / 255 if eight_bits else images.to(torch.get_default_dtype()).clamp(0, 1)
    return {"image": pixels, "label": labels.long(), "sample": samples.long()}


def block_of(batch: Any, data: Any, device: torch.device | str) -> Block:
    """A batch that an evaluation computes on, checked, on the device."""
    tensors = checked(batch, data)
    return Block(*(tensors[key].to(device) for key in KEYS))


def check_told(labels: Tensor, samples: Tensor, count: int, data: Any) -> None:
    """Raises InputError unless labels and ids are (count,) integers, of the data's classes and that
    an address of noise can hold. A training may see an image twice."""
    for what, values in (("labels", labels), ("ids", samples)):
        if values.shape != (count,):
            raise InputError(
                f"{WHERE}: {what} of shape {tuple(values.shape)}, expected is one for each of"
                f" {count} images"
            )
    check_ids(samples, WHERE, unique=False)
    check_labels(labels, WHERE, getattr(data, "num_classes", None), samples=samples)
