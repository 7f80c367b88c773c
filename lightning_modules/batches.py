"""What a batch must hold, whoever's loader gives it: asked before anything is computed on it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.dataset import check_images
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Block
from lightning_modules.compatibility import height_width
from lightning_modules.tasks import read_block

KEYS = ("image", "label", "sample")
SAMPLES = 2**32  # hetpure.noise packs an id into 32 bits


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
    check_samples(samples, len(images))
    check_labels(labels, samples, getattr(data, "num_classes", None))
    check_images(images, "the data", samples=samples)
    for what, found, declared in (
        ("channels", images.shape[1], getattr(data, "channels", None)),
        ("size", tuple(images.shape[2:]), height_width(getattr(data, "image_size", None))),
    ):
        if declared not in (None, found):
            raise InputError(f"the data's images have {what} {found}, and it declares {declared}")
    # Both in the default type, that of Lightning's precision: float32, or float64 in 64-true.
    eight_bits = images.dtype == torch.uint8
    pixels = images / 255 if eight_bits else images.to(torch.get_default_dtype())
    return {"image": pixels, "label": labels.long(), "sample": samples.long()}


def block_of(batch: Any, data: Any, device: torch.device | str) -> Block:
    """A batch that an evaluation computes on, checked, on the device."""
    right = checked(batch, data)
    return Block(*(right[key].to(device) for key in KEYS))


def first_block(loader: DataLoader[Any], data: Any, device: torch.device) -> Block:
    """The first batch of an evaluation's loader, on the device. InputError unless all labels and
    ids of the loader are right, no id twice.

    A dataset that holds them as tensors `labels` (N,) and `samples` (N,) is asked for these. Of any
    other every batch is read and checked whole, which takes as long as its images take to load.
    """
    first = block_of(read_block(loader, 0), data, device)
    dataset: Any = loader.dataset
    labels, samples = getattr(dataset, "labels", None), getattr(dataset, "samples", None)
    if isinstance(labels, Tensor) and isinstance(samples, Tensor):
        check_samples(samples, len(dataset))
        check_labels(labels, samples, getattr(data, "num_classes", None))
    else:
        others = (checked(read_block(loader, number), data) for number in range(1, len(loader)))
        samples = torch.cat([first.samples.cpu(), *(other["sample"] for other in others)])
    check_unique(samples)
    return first


def check_samples(samples: Tensor, count: int) -> None:
    """Raises InputError unless ids are (count,) integers that a noise's address can hold."""
    _check_integers("ids", samples, count)
    _check_range("ids", samples, samples, SAMPLES)


def check_labels(labels: Tensor, samples: Tensor, classes: int | None) -> None:
    """Raises InputError unless labels are one integer for each id, in 0 to classes - 1."""
    _check_integers("labels", labels, len(samples))
    _check_range("labels", labels, samples, classes or SAMPLES)


def check_unique(samples: Tensor) -> None:
    """Raises InputError where ids (N,) repeat: by its id a sample has its noise and its record."""
    ordered = samples.sort().values
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise InputError(
            f"the data gives the id {int(repeated[0])} to several samples: a sample needs an id of"
            " its own, as its index in the data set"
        )


def _check_integers(what: str, values: Tensor, count: int) -> None:
    integers = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    if not integers or values.shape != (count,):
        raise InputError(
            f"the data's {what} are {values.dtype} of shape {tuple(values.shape)}, expected are"
            f" {count} integers, one for each image"
        )


def _check_range(what: str, values: Tensor, samples: Tensor, count: int) -> None:
    bad = (values < 0) | (values.long() >= count)
    if bad.any():
        position = int(bad.nonzero()[0])
        raise InputError(
            f"the data's {what}: sample {int(samples[position])} has {int(values[position])},"
            f" allowed are 0 to {count - 1}"
        )
