"""ImageNet (ILSVRC 2012): its 50,000 validation images, and its training images where they are."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from datamodules.folder import FileDataModule, class_folders, labelled_names
from hetpure.errors import InputError

CLASSES = 1_000
COUNTS = {"test": 50_000, "train": 1_281_167}
DEVKIT = "ILSVRC2012_devkit_t12"
FLAT = "ILSVRC2012_val_*"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
WHERE = (
    "ImageNet is not downloaded: unpack ILSVRC2012_img_val.tar (6,744,924,160 bytes, MD5"
    " 29b22e2961454d5413ddabcf34fc5622) into val of data_dir, as class folders n########, or"
    f" flat with {DEVKIT} beside val"
)


def read_synsets(path: Path) -> dict[int, str]:
    """The WordNet id (n########) of each ILSVRC2012_ID, 1 to 1,000, from the devkit's meta.mat; the
    inner nodes of its tree are left out."""
    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        names = {
            int(number): str(wnid)
            for number, wnid, children in zip(
                synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True
            )
            if int(children) == 0
        }
    except Exception as error:  # of whatever kind: a damaged file says anything
        raise InputError(f"{path}: not the devkit's MATLAB file ({error})") from None
    if sorted(names) != list(range(1, CLASSES + 1)) or len(set(names.values())) < CLASSES:
        raise InputError(f"{path}: {len(names)} classes, expected ILSVRC2012_ID 1 to {CLASSES}")
    return names


def read_ground_truth(path: Path) -> list[int]:
    """The ILSVRC2012_ID of each validation image, in the order of the files' numbers."""
    try:
        numbers = [int(line) for line in path.read_text().split()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not the devkit's ground truth ({error})") from None
    if len(numbers) != COUNTS["test"] or not 1 <= min(numbers) <= max(numbers) <= CLASSES:
        raise InputError(
            f"{path}: {len(numbers):,} lines, expected {COUNTS['test']:,} of 1 to {CLASSES}"
        )
    return numbers


class ImageNet(FileDataModule):
    """ImageNet: batches {"image", "label", "sample"}, images float32 (B, 3, H, W) in pixel [0,1].

    The split `test` are ILSVRC's validation images; `validation` is held out of its training
    images. Classes are the WordNet ids, sorted, as torchvision and the published classifiers have
    them; ILSVRC's own numbers are others. An id is the image's position by class, then by file
    name, in the flat folder too.
    """

    title = "ImageNet"
    has_published_512 = True
    upright = False  # published accuracies were measured on pixels as they are stored

    def __init__(
        self,
        data_dir: str = "data/imagenet",
        resize: int | tuple[int, int] | None = 256,
        crop: int | None = 224,
        **options: Any,
    ) -> None:
        """Lists the classes; opens no image before `setup`.

        Args:
            data_dir: folder with `val`, and for trainings `train`. `val`, or data_dir itself, has
                class folders n########, or all files flat, with the folder of the devkit in
                data_dir.
            resize: the shorter side's length, which keeps proportions, or [height, width]. DiffPure
                and RobustBench: 256 and a crop of 224; HetPure: [224, 224] and no crop.
            crop: side of the square in the middle that is kept.
            options: of every data set.
        """
        super().__init__(channels=3, resize=resize, crop=crop, **options)
        root = Path(data_dir)
        self.origin = data_dir
        self._train = root / "train"
        self._val = root / "val" if (root / "val").is_dir() else root
        self._devkit = root / DEVKIT / "data"
        self._synsets: dict[int, str] = {}  # of the flat folder
        if _wnids(self._val):
            classes = _wnids(self._val)
        elif self._val.is_dir() and next(self._val.glob(FLAT), None) is not None:
            self._synsets = read_synsets(self._devkit / META)
            classes = sorted(self._synsets.values())
        else:
            classes = _wnids(self._train)
        if len(classes) != CLASSES:
            raise InputError(
                f"{root}: {len(classes):,} of ImageNet's {CLASSES:,} classes are there. {WHERE}. A"
                " part of it is read by datamodules.folder.ImageFolder"
            )
        self.class_names = tuple(classes)
        if not self._train.is_dir():
            self.splits = ("test",)
        elif _wnids(self._train) != classes:
            raise InputError(f"{self._train} has other class folders than {self._val}")
        self._fix_size(None)

    def _listed(self, split: str) -> tuple[Path, list[str], list[int]]:
        folder = self._val if split == "test" else self._train
        if split == "test" and self._synsets:
            names, labels = self._flat()
        elif _wnids(folder):
            names, labels = labelled_names(folder, self.class_names)
        else:
            raise InputError(
                f"{folder} has no class folders: test_split validation and trainings need"
                " ImageNet's training images there"
                if split == "train"
                else WHERE
            )
        if len(names) != COUNTS[split]:
            raise InputError(
                f"{folder}: {len(names):,} images, expected ImageNet's {COUNTS[split]:,}; a part of"
                " it is read by datamodules.folder.ImageFolder"
            )
        return folder, names, labels

    def _flat(self) -> tuple[list[str], list[int]]:
        """Names of the flat folder and their labels, by class, then by name."""
        names = [f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(1, COUNTS["test"] + 1)]
        if sorted(path.name for path in self._val.glob(FLAT)) != names:
            raise InputError(
                f"{self._val}: not {names[0]} to {names[-1]}, none of them missing and no other"
            )
        rank = {wnid: k for k, wnid in enumerate(self.class_names)}
        truth = read_ground_truth(self._devkit / TRUTH)
        labels = np.array([rank[self._synsets[number]] for number in truth])
        order = labels.argsort(kind="stable")
        return [names[k] for k in order], labels[order].tolist()


def _wnids(folder: Path) -> list[str]:
    return [name for name in class_folders(folder) if re.fullmatch(r"n\d{8}", name)]
