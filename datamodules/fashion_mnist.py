"""Fashion-MNIST: the full set where it is found, else the subset that comes with the project."""

from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from datamodules.base import ImageDataModule
from datamodules.dataset import ImageDataset
from datamodules.idx import read_idx
from hetpure.errors import FieldError, InputError
from hetpure.presets import FASHION_MNIST_CLASSES

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
PACKAGED = Path(__file__).parent / "assets" / "fashion_mnist"
PACKAGED_ORIGIN = "packaged subset (1,000 test, 500 validation, 5,000 train)"

Split = Literal["train", "validation", "test", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
FULL_PREFIX = {"train": "train", "validation": "train", "test": "t10k", "unseen": "t10k"}
FULL_COUNT = {"train": 60_000, "t10k": 10_000}
FULL_NAMES = tuple(
    f"{prefix}-{kind}-ubyte" for prefix in FULL_COUNT for kind in ("images-idx3", "labels-idx1")
)


def find_full(folder: Path) -> dict[str, Path] | None:
    """The full set's four files in the folder, gzipped or plain, or None where one is missing."""
    files = {
        name: path
        for name in FULL_NAMES
        for path in (folder / f"{name}.gz", folder / name)
        if path.is_file()
    }
    return files if len(files) == len(FULL_NAMES) else None


def packaged_files(split: Split) -> dict[str, Path]:
    """The packaged split's files: images, labels and ids (indices in the full original set)."""
    suffixes = {"images": "idx3-ubyte", "labels": "idx1-ubyte", "ids": "idx1-int"}
    return {kind: PACKAGED / f"{split}-{kind}-{end}.gz" for kind, end in suffixes.items()}


def read_pair(images_file: Path, labels_file: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 1, 28, 28), 0 to 255, and labels int64 (N,), 0 to 9, of two IDX files."""
    images, labels = read_idx(images_file), read_idx(labels_file)
    if images.dtype != torch.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise InputError(
            f"{images_file}: {images.dtype} of shape {tuple(images.shape)}, expected"
            " torch.uint8 of shape (N, 28, 28); give Fashion-MNIST's own files"
        )
    if labels.dtype != torch.uint8 or labels.ndim != 1 or len(labels) != len(images):
        raise InputError(
            f"{labels_file}: {labels.dtype} of shape {tuple(labels.shape)}, expected torch.uint8"
            f" of shape ({len(images)},), as many labels as images in {images_file.name}"
        )
    if len(labels) and int(labels.max()) > 9:
        position = int((labels > 9).nonzero()[0])
        raise InputError(
            f"{labels_file}: label {int(labels[position])} at index {position}, allowed are 0 to 9;"
            " give Fashion-MNIST's own files"
        )
    return images.unsqueeze(1), labels.long()


def read_packaged(split: Split) -> ImageDataset:
    """A packaged split; its ids are the images' indices in the full original set."""
    files = packaged_files(split)
    images, labels = read_pair(files["images"], files["labels"])
    return ImageDataset(images, labels, read_idx(files["ids"]), where=str(files["ids"]))


def read_full(files: dict[str, Path], split: Literal["train", "test", "unseen"]) -> ImageDataset:
    """The full test set, the same without the packaged test images (`unseen`), or the full training
    set without the packaged validation images."""
    prefix = FULL_PREFIX[split]
    images_file = files[f"{prefix}-images-idx3-ubyte"]
    images, labels = read_pair(images_file, files[f"{prefix}-labels-idx1-ubyte"])
    if len(images) != FULL_COUNT[prefix]:
        raise InputError(
            f"{images_file}: {len(images):,} images, expected Fashion-MNIST's"
            f" {FULL_COUNT[prefix]:,}; give its own files, or none with source packaged"
        )
    # MNIST's files have the same names and sizes: only the pixels tell the two apart.
    known = read_packaged("validation" if split == "train" else "test")
    assert isinstance(known.images, Tensor)
    differs = (images[known.samples] != known.images).flatten(1).any(dim=1)
    differs |= labels[known.samples] != known.labels
    if differs.any():
        raise InputError(
            f"{images_file}: not Fashion-MNIST: image or label {int(known.samples[differs][0])}"
            " differs from the packaged copy; give another folder, or check the files"
        )
    kept = torch.ones(len(images), dtype=torch.bool)
    if split != "test":
        kept[known.samples] = False
    return ImageDataset(images[kept], labels[kept], kept.nonzero().squeeze(1))


class FashionMNIST(ImageDataModule):
    """Fashion-MNIST in batches {"image", "label", "sample"}.

    image: float32 (B, 1, 28, 28) in pixel [0,1]; label: int64 (B,); sample: int64 (B,), the
    image's index in the full original training or test set, whichever files it is read from.
    The 500 validation images are the same whatever the source, and no training ever sees them.
    """

    title = "Fashion-MNIST"
    channels = 1
    image_size = 28
    class_names = FASHION_MNIST_CLASSES

    def __init__(
        self,
        data_dir: str | None = None,
        source: Literal["auto", "packaged"] = "auto",
        batch_size: int = 64,
        test_split: Literal["test", "validation", "unseen"] = "test",
        limit: int | None = None,
        skip: int = 0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        """Finds the files; reads none before `setup`.

        Args:
            data_dir: folder with the four original IDX files, gzipped or plain.
            source: auto takes data_dir, else Debian's folder, else the packaged subset.
            batch_size: images in a batch, on each device.
            test_split: the split that `test_dataloader` gives; `unseen` are the 9,000 test images
                that are not packaged.
            limit: evaluate only so many samples of that split.
            skip: leave out the first so many: images that were looked at before.
            num_workers: processes that load batches.
            seed: with the epoch, decides the order of training.
        """
        super().__init__(
            batch_size=batch_size, limit=limit, skip=skip, num_workers=num_workers, seed=seed
        )
        if data_dir is not None and source == "packaged":
            raise FieldError(
                self,
                "source",
                "packaged, which the quick configs set, contradicts data_dir: give auto",
            )
        self.data_dir = data_dir
        self.source = source
        folder = DEBIAN if data_dir is None else Path(data_dir)
        self._full = find_full(folder) if source == "auto" else None
        if data_dir is not None and self._full is None:
            raise FieldError(
                self,
                "data_dir",
                f"{data_dir}: not all of {', '.join(FULL_NAMES)} (or .gz of these) are there; give"
                " the folder that holds them, or leave it out",
            )
        self.origin = PACKAGED_ORIGIN if self._full is None else str(folder)
        self.details = ("packaged subset" if self._full is None else "full set",)
        self.test_split = test_split

    def _load(self, split: str) -> dict[str, ImageDataset]:
        return {split: self._read(cast(Split, split))}

    def _files(self, split: str) -> list[Path]:
        """Every data file that this source can read, whatever the split."""
        splits: tuple[Split, ...] = SPLITS if self._full is None else ("validation",)
        files = [path for split in splits for path in packaged_files(split).values()]
        return [*files, *({} if self._full is None else self._full).values()]

    def _read(self, split: Split) -> ImageDataset:
        if split == "unseen" and self._full is None:
            raise FieldError(
                self,
                "test_split",
                "unseen needs the full set: install Debian's dataset-fashion-mnist, or give"
                " data_dir",
            )
        if self._full is None or split == "validation":
            return read_packaged(split)
        return read_full(self._full, split)
