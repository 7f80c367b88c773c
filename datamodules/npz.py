"""Images of one's own in a file of numpy's."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.base import ImageDataModule
from datamodules.dataset import ImageDataset
from hetpure.errors import FieldError, InputError

NEEDED, ALLOWED = {"images", "labels"}, {"images", "labels", "ids"}
CHANNELS = (1, 3)


def read_arrays(path: Path) -> dict[str, "np.ndarray[Any, Any]"]:
    """The arrays of an .npz file by name; one of objects, which are pickled, is refused."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is one array, not an archive of several")
        with archive as file:
            names = set(file.files)
            if not NEEDED <= names <= ALLOWED:
                raise ValueError(f"it holds {', '.join(sorted(names))}")
            return {name: file[name] for name in names}
    except Exception as error:  # of whatever kind: a damaged file says anything
        why = str(error) or type(error).__name__
        if "allow_pickle" in why:  # numpy's advice is to run what it holds
            why = "it holds objects, or is no .npz file"
        raise InputError(
            f"{path} cannot be read ({why}): give an .npz file with the arrays images, labels"
            " and, if need be, ids"
        ) from None


def channels_first(images: "np.ndarray[Any, Any]", path: Path) -> Tensor:
    """Images (N, H, W, C) or (N, C, H, W) of 1 or 3 channels as (N, C, H, W), a view; uint8 stays,
    other floats become float32."""
    shape = images.shape
    first, last = (len(shape) == 4 and shape[k] in CHANNELS for k in (1, -1))
    if first == last or not images.size:
        raise InputError(
            f"{path}: images of shape {shape}, expected (N, H, W, C) or (N, C, H, W) where one of"
            " the two, and not both, has 1 or 3 channels"
        )
    if images.dtype == np.uint8 and images.max() <= 1:
        raise InputError(
            f"{path}: uint8 images of 0 and 1 only, expected 0 to 255: pixels in [0, 1] are floats"
        )
    if images.dtype != np.uint8:
        if images.dtype.kind != "f":
            raise InputError(f"{path}: {images.dtype} images, expected uint8 or float in [0, 1]")
        images = images.astype(np.float32)
    tensor = torch.from_numpy(images)
    return tensor if first else tensor.movedim(-1, 1)


def integers(values: "np.ndarray[Any, Any]", what: str, path: Path) -> Tensor:
    """Labels or ids (N,) as int64."""
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise InputError(
            f"{path}: {what} are {values.dtype} of shape {values.shape}, expected integers (N,)"
        )
    return torch.from_numpy(values.astype(np.int64))


def read_npz(path: Path) -> ImageDataset:
    """The images of an .npz file by ascending ids, which are their positions if it holds none."""
    arrays = read_arrays(path)
    images = channels_first(arrays["images"], path)
    labels = integers(arrays["labels"], "labels", path)
    ids = integers(arrays.get("ids", np.arange(len(labels))), "ids", path)
    dataset = ImageDataset(images, labels, ids, where=str(path))
    return dataset if (ids.diff() > 0).all() else dataset.take(ids.argsort())


class NPZ(ImageDataModule):
    """Images of an .npz file: batches {"image", "label", "sample"}, images float32 (B, C, H, W) in
    pixel [0,1].

    The file holds `images`, (N, H, W, C) or (N, C, H, W), uint8 or float in [0, 1]; `labels` (N,),
    integers; and, if need be, `ids` (N,), integers from 0 to 2**32 - 1. Nothing else is read.
    """

    def __init__(
        self,
        num_classes: int,
        file: str | None = None,
        train_file: str | None = None,
        **options: Any,
    ) -> None:
        """Reads one of the files, for the images' size.

        Args:
            num_classes: labels are below it.
            file: images to evaluate.
            train_file: images to train on, and to hold out from training.
            options: of every data set.
        """
        super().__init__(**options)
        self.class_names = tuple(map(str, range(num_classes)))
        self.file = file
        self.train_file = train_file
        if num_classes < 2:
            raise FieldError(self, "num_classes", f"is {num_classes}, allowed is 2 or more")
        self._paths = self._given_paths("file", "train_file")
        if "train" not in self._paths:
            self.splits = ("test",)
        self.origin = " and ".join(map(str, self._paths.values()))
        first = next(iter(self._paths))
        self.title = self._paths[first].stem
        self._whole = {first: read_npz(self._paths[first])}
        self._shape = self._whole[first][0]["image"].shape
        self.channels, height, width = self._shape
        self.image_size = height if height == width else (height, width)

    def _read(self, split: Literal["train", "test"]) -> ImageDataset:
        if split in self._whole:
            return self._whole.pop(split)  # `setup` keeps what it makes of it
        (path,) = self._files(split)
        dataset = read_npz(path)
        if (shape := dataset[0]["image"].shape) != self._shape:
            raise InputError(
                f"{path}: images of shape {tuple(shape)}, those of {self._paths['test']} are of"
                f" shape {tuple(self._shape)}"
            )
        return dataset

    def _files(self, split: str) -> list[Path]:
        kind = "test" if split == "test" else "train"
        if kind not in self._paths:
            field = {"test": "file", "train": "train_file"}[kind]
            raise FieldError(self, field, f"is needed: there are no {kind} images without it")
        return [self._paths[kind]]
