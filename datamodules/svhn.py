"""SVHN, cropped digits (Netzer et al. 2011), from its MATLAB files."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor

from datamodules.base import Hash, ImageDataModule
from datamodules.dataset import ImageDataset
from datamodules.download import Remote, fetch
from hetpure.errors import FieldError, InputError

URL = "http://ufldl.stanford.edu/housenumbers/"
FILES = {  # size in bytes, SHA-256
    "train": (182_040_794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
    "test": (64_275_384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
    "extra": (1_329_278_602, "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3"),
}


def read_mat(path: Path, count: int) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) and the digits uint8 (N,) of a file of `count` images: X (32, 32,
    3, N), and y (N, 1), where 10 is the digit 0."""
    try:
        content = loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # of whatever kind: a damaged file says anything
        raise InputError(f"{path}: no whole MATLAB file ({error}); fetch it again") from None
    images, digits = content.get("X"), content.get("y")
    for name, values, shape in (("X", images, (32, 32, 3, count)), ("y", digits, (count, 1))):
        if values is None or values.dtype != np.uint8 or values.shape != shape:
            what = "nothing" if values is None else f"{values.dtype} of shape {values.shape}"
            raise InputError(
                f"{path}: {name} is {what}, expected uint8 of shape {shape}; fetch the file again"
            )
    if not 1 <= digits.min() <= digits.max() <= 10:
        raise InputError(f"{path}: labels {digits.min()} to {digits.max()}, expected 1 to 10")
    return torch.from_numpy(images).permute(3, 2, 0, 1), torch.from_numpy(digits[:, 0] % 10)


class SVHN(ImageDataModule):
    """SVHN: batches {"image", "label", "sample"}, images float32 (B, 3, 32, 32) in pixel [0,1].

    A label is the digit. An id is the image's position in its file; those of `extra` follow the
    training file's.
    """

    title = "SVHN"
    class_names = tuple("0123456789")
    channels = 3
    image_size = 32
    has_published_512 = True
    counts: ClassVar[dict[str, int]] = {"train": 73_257, "test": 26_032, "extra": 531_131}

    def __init__(
        self, data_dir: str = "data", download: bool = False, extra: bool = False, **options: Any
    ) -> None:
        """Reads nothing before `setup`.

        Args:
            data_dir: folder with train_32x32.mat and test_32x32.mat; one of them will do where
                only that is used.
            download: download what is not there.
            extra: train on the images of extra_32x32.mat too; no validation image is among them.
            options: of every data set.
        """
        super().__init__(**options)
        self.data_dir = Path(data_dir)
        self.download = download
        self.extra = extra
        self.origin = data_dir

    def prepare_data(self) -> None:
        """Downloads the files, where that is asked for and needed."""
        for kind in ("train", "test", "extra") if self.extra else ("train", "test"):
            if self.download and not self._path(kind).exists():
                fetch(_remote(kind), self.data_dir)

    def _path(self, kind: str) -> Path:
        return self.data_dir / _remote(kind).name

    def _read(self, split: Literal["train", "test", "extra"]) -> ImageDataset:
        path, count = self._path(split), self.counts[split]
        if not path.exists():
            raise FieldError(
                self,
                "data_dir",
                f"{self.data_dir} has no {path.name}: put {_remote(split)} from {URL} there, or set"
                " download to true",
            )
        images, labels = read_mat(path, count)
        return ImageDataset(images, labels, torch.arange(count), where=str(path))

    def _files(self, split: str) -> list[Path]:
        return [self._path("test" if split == "test" else "train")]

    def _hashes(self, split: Literal["train", "test"]) -> dict[Path, Hash]:
        kinds = ["train", "extra"] if self.extra and split == "train" else [split]
        return {self._path(kind): Hash("sha256", FILES[kind][1]) for kind in kinds}

    def _load(self, split: str) -> dict[str, ImageDataset]:
        datasets = super()._load(split)
        if self.extra and (train := datasets.get("train")) is not None:
            extra = self._read("extra")
            assert isinstance(train.images, Tensor) and isinstance(extra.images, Tensor)
            datasets["train"] = ImageDataset(
                torch.cat([train.images, extra.images]),
                torch.cat([train.labels, extra.labels]),
                torch.cat([train.samples, extra.samples + self.counts["train"]]),
            )
        return datasets


def _remote(kind: str) -> Remote:
    return Remote(f"{URL}{kind}_32x32.mat", *FILES[kind])
