"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), in the binary and in the python version."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.base import ImageDataModule
from datamodules.dataset import ImageDataset
from datamodules.download import Remote, fetch, unpack
from hetpure.errors import InputError
from hetpure.pickles import Array, Reader

URL = "https://www.cs.toronto.edu/~kriz/"
SIZE, PIXELS = (3, 32, 32), 3 * 32 * 32


@dataclass(frozen=True)
class Version:
    """One of the two forms of a published set: its archive, the folder in it, and the files of
    that folder by split, in the order of the images."""

    archive: str
    size: int  # in bytes
    sha256: str
    folder: str
    files: dict[str, tuple[str, ...]]

    @property
    def remote(self) -> Remote:
        return Remote(URL + self.archive, self.size, self.sha256)

    @property
    def names(self) -> list[str]:
        return [name for names in self.files.values() for name in names]


def read_binary(path: Path, count: int, label_bytes: int) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) and labels uint8 (N,) of `count` records: so many bytes of
    labels, the last of which is the class, then three planes of 32 x 32."""
    record = label_bytes + PIXELS
    try:
        values = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if len(values) != count * record:
        raise InputError(
            f"{path}: {len(values):,} bytes, expected {count * record:,} for {count:,} images of"
            f" {record:,}; fetch the file again"
        )
    records = torch.from_numpy(values).reshape(count, record)
    return records[:, label_bytes:].reshape(-1, *SIZE), records[:, label_bytes - 1]


def read_python(path: Path, count: int, key: str) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of a pickle, which is read and not run.

    `key` names the labels. Names are bytes in the published files, written by Python 2, and text
    where somebody saved them anew.
    """
    try:
        with path.open("rb") as file:
            content = Reader(file, encoding="bytes").load()
    except InputError as error:
        raise InputError(f"{path}: {error}; fetch the file again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # of whatever kind: a damaged pickle says anything
        raise InputError(f"{path}: no whole pickle ({error}); fetch the file again") from None
    known = dict(content) if isinstance(content, dict) else {}
    known = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in known.items()}
    data, labels = known.get("data"), known.get(key)
    if not isinstance(data, Array) or not isinstance(labels, list):
        raise InputError(f"{path}: no data and {key}, expected CIFAR's own file")
    images = data.read()
    if images.dtype != np.uint8 or images.shape != (count, PIXELS) or len(labels) != count:
        raise InputError(
            f"{path}: {images.dtype} of shape {images.shape} and {len(labels)} labels, expected"
            f" uint8 of shape {(count, PIXELS)} and as many; fetch the file again"
        )
    if not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise InputError(f"{path}: labels that are no classes; fetch the file again")
    return torch.from_numpy(images.copy()).reshape(-1, *SIZE), torch.tensor(labels)


class CIFAR(ImageDataModule):
    """What CIFAR-10 and CIFAR-100 share: 50,000 training and 10,000 test images of 32 x 32."""

    channels = 3
    image_size = 32
    has_published_512 = True
    counts: ClassVar[dict[str, int]] = {"train": 50_000, "test": 10_000}
    binary: ClassVar[Version]
    python: ClassVar[Version]
    label_bytes: ClassVar[int]  # of a record of the binary version
    label_key: ClassVar[str]  # of the python version

    def __init__(self, data_dir: str = "data", download: bool = False, **options: Any) -> None:
        """Reads nothing before `setup`.

        Args:
            data_dir: folder with the unpacked files of the binary or of the python version, or
                with the folder of the published archive.
            download: download and unpack the binary version where neither is there.
            options: of every data set.
        """
        super().__init__(**options)
        self.data_dir = Path(data_dir)
        self.download = download
        self.origin = data_dir

    def prepare_data(self) -> None:
        """Downloads and unpacks, where that is asked for and needed."""
        if self.download and self._found() is None:
            # An archive that is there already is taken in place of another.
            there = [v for v in self._versions if (self.data_dir / v.archive).exists()]
            version = [*there, self.binary][0]
            archive = fetch(version.remote, self.data_dir)
            members = [f"{version.folder}/{name}" for name in version.names]
            unpack(archive, members, self.data_dir / version.folder)

    @property
    def _versions(self) -> tuple[Version, Version]:
        return self.binary, self.python

    def _found(self) -> tuple[Version, Path] | None:
        """The version that is there, and its folder."""
        for version in self._versions:
            for folder in (self.data_dir / version.folder, self.data_dir):
                if all((folder / name).is_file() for name in version.names):
                    return version, folder
        return None

    def _read(self, split: Literal["train", "test"]) -> ImageDataset:
        version, files = self._version_and_files(split)
        count = self.counts[split] // len(files)
        if version is self.binary:
            parts = [read_binary(path, count, self.label_bytes) for path in files]
        else:
            parts = [read_python(path, count, self.label_key) for path in files]
        images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return ImageDataset(images, labels, torch.arange(len(labels)), where=self.origin)

    def _files(self, split: str) -> list[Path]:
        return self._version_and_files("test" if split == "test" else "train")[1]

    def _version_and_files(self, split: str) -> tuple[Version, list[Path]]:
        found = self._found()
        if found is None:
            folders = " nor ".join(f"{v.folder} ({', '.join(v.names)})" for v in self._versions)
            raise InputError(
                f"--data.data_dir {self.data_dir} has neither {folders}: unpack"
                f" {self.binary.remote} from {URL} there, or set --data.download true"
            )
        version, folder = found
        return version, [folder / name for name in version.files[split]]


class CIFAR10(CIFAR):
    """CIFAR-10: batches {"image", "label", "sample"}, images float32 (B, 3, 32, 32), pixel [0,1].

    An id is the image's position in its split: training files one to five, then within the file.
    """

    title = "CIFAR-10"
    class_names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    label_bytes = 1
    label_key = "labels"
    binary = Version(
        archive="cifar-10-binary.tar.gz",
        size=170_052_171,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        folder="cifar-10-batches-bin",
        files={
            "train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
            "test": ("test_batch.bin",),
        },
    )
    python = Version(
        archive="cifar-10-python.tar.gz",
        size=170_498_071,
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        folder="cifar-10-batches-py",
        files={"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
    )


class CIFAR100(CIFAR):
    """CIFAR-100 with its 100 fine classes: batches as CIFAR-10's."""

    title = "CIFAR-100"
    class_names = tuple(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
        mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
        plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
        worm""".split()  # noqa: SIM905 (a list is ten times as long)
    )
    label_bytes = 2
    label_key = "fine_labels"
    binary = Version(
        archive="cifar-100-binary.tar.gz",
        size=168_513_733,
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        folder="cifar-100-binary",
        files={"train": ("train.bin",), "test": ("test.bin",)},
    )
    python = Version(
        archive="cifar-100-python.tar.gz",
        size=169_001_437,
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        folder="cifar-100-python",
        files={"train": ("train",), "test": ("test",)},
    )
