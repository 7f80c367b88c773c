"""Image files in class folders, read when asked for."""

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules.base import ImageDataModule
from datamodules.dataset import ImageDataset, Sample
from datamodules.image_files import ImageFiles, Size, resized_size
from hetpure.errors import FieldError, InputError
from hetpure.images import image_size

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")  # of any case
)


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in it, sorted; hidden ones are none. Empty where it is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def image_names(folder: Path) -> list[str]:
    """Names of the image files in it, sorted; hidden files are left out, others refused."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in visible:
            if entry.is_dir() or os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
                raise InputError(
                    f"{entry.path} is no image file ({', '.join(sorted(SUFFIXES))}): a class"
                    " folder holds images only; move it away"
                )
        return sorted(entry.name for entry in visible)


def labelled_names(folder: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Names `class/file` and labels, by class, then by name, as torchvision's `ImageFolder` has
    them; a label is the class's place in `classes`."""
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = image_names(folder / name)
        if not files:
            raise InputError(f"{folder / name} has no images: a class needs one or more")
        names += [f"{name}/{file}" for file in files]
        labels += [label] * len(files)
    return names, labels


class FileDataModule(ImageDataModule):
    """What data sets of image files share: how images get one size.

    A data set lists its files (`_listed`).
    """

    upright = True  # turns images as their EXIF orientation says

    def __init__(
        self,
        *,
        channels: int,
        resize: int | Size | None,
        crop: int | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.channels = channels
        self.resize = resize
        self.crop = crop
        shorter = min(resize) if isinstance(resize, tuple) else resize
        if shorter is not None and shorter < 1:
            raise FieldError(self, "resize", f"is {resize}, allowed are lengths of 1 or more")
        if crop is not None and not 1 <= crop <= (shorter or crop):
            most = "1 or more" if shorter is None else f"1 to resize ({shorter})"
            raise FieldError(self, "crop", f"is {crop}, allowed is {most}")
        if isinstance(resize, tuple):
            self.details += (f"resized to {resize[0]} x {resize[1]}",)
        elif resize is not None:
            self.details += (f"shorter side {resize}",)
        if crop is not None:
            self.details += (f"middle {crop} x {crop}",)

    def _fix_size(self, first: Path | None) -> None:
        """Of all images: that of one file, where resize and crop leave it open and files are of
        one size."""
        if self.crop is not None:
            self._size = self.crop, self.crop
        elif isinstance(self.resize, tuple):
            self._size = self.resize
        elif first is None:
            raise FieldError(
                self, "crop", "or resize as [224, 224]: give one, for images of one size"
            )
        else:
            stored = image_size(first, upright=self.upright)
            self._size = stored if self.resize is None else resized_size(stored, self.resize)
        height, width = self._size
        self.image_size = height if height == width else (height, width)

    @abstractmethod
    def _listed(self, split: str) -> tuple[Path, list[str], list[int]]:
        """A published split: the folder, names of files in it, and their labels."""

    def _read(self, split: Literal["train", "test"]) -> ImageDataset:
        folder, names, labels = self._listed(split)
        files = ImageFiles(
            folder,
            np.array(names),
            self.channels,
            self._size,
            self.resize,
            self.crop,
            self.upright,
        )
        ids = torch.arange(len(names))
        return ImageDataset(files, torch.tensor(labels), ids, where=str(folder))

    def _files(self, split: str) -> list[Path]:
        folder, names, _ = self._listed("test" if split == "test" else "train")
        return [folder / name for name in names]

    def test_dataloader(self) -> DataLoader[Sample]:
        """The images to evaluate in the order of their ids, each one's file opened and checked."""
        loader = super().test_dataloader()
        dataset = loader.dataset
        assert isinstance(dataset, ImageDataset) and isinstance(dataset.images, ImageFiles)
        dataset.images.check()
        return loader

    def files_sha256(self) -> dict[str, str]:
        """One SHA-256 for all evaluated images: of their files' names and sizes, labels and ids. To
        read the content of all files would take minutes."""
        self.setup("test")
        dataset = self._evaluated(self._splits[self.test_split])
        return {"names, sizes, labels and ids": dataset.fingerprint} | self._ids_sha256()


class ImageFolder(FileDataModule):
    """A folder of class folders: batches {"image", "label", "sample"}, images float32 (B, C, H, W)
    in pixel [0,1].

    Classes are the folders' names, sorted; an id is the image's position by class, then by name.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        train_dir: str | None = None,
        channels: Literal[1, 3] = 3,
        resize: int | tuple[int, int] | None = None,
        crop: int | None = None,
        **options: Any,
    ) -> None:
        """Lists the classes; opens no image before `setup`, but for the first one's size.

        Args:
            data_dir: class folders with the images to evaluate.
            train_dir: class folders with the images to train on, and to hold out from training.
            channels: 3 makes images colour, 1 grey.
            resize: the shorter side's length, which keeps proportions, or [height, width].
            crop: side of the square in the middle that is kept.
            options: of every data set.
        """
        super().__init__(channels=channels, resize=resize, crop=crop, **options)
        self.data_dir = data_dir
        self.train_dir = train_dir
        self._folders = self._given_paths("data_dir", "train_dir")
        classes = {split: class_folders(folder) for split, folder in self._folders.items()}
        for split, names_of_classes in classes.items():
            if not names_of_classes:
                raise InputError(f"{self._folders[split]} has no class folders with images")
        first = next(iter(self._folders))
        if any(other != classes[first] for other in classes.values()):
            only = set(classes["test"]) ^ set(classes["train"])
            raise FieldError(
                self,
                "train_dir",
                f"has other class folders than data_dir: {min(only)} is in one of the two only",
            )
        self.title = self._folders[first].resolve().name
        self.class_names = tuple(classes[first])
        self.origin = " and ".join(map(str, self._folders.values()))
        if "train" not in self._folders:
            self.splits = ("test",)
        names, _ = labelled_names(self._folders[first], self.class_names[:1])
        self._fix_size(self._folders[first] / names[0])

    def _listed(self, split: str) -> tuple[Path, list[str], list[int]]:
        if split not in self._folders:
            field = "data_dir" if split == "test" else "train_dir"
            raise FieldError(self, field, f"is needed: there are no {split} images without it")
        folder = self._folders[split]
        return folder, *labelled_names(folder, self.class_names)
