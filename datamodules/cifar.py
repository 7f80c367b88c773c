"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), in the binary and in the python version."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Hash, ImageDataModule
from datamodules.dataset import ImageDataset
from datamodules.download import Remote, fetch, unpack
from hetpure.errors import FieldError, InputError
from hetpure.pickles import Array, Reader

URL = "https://www.cs.toronto.edu/~kriz/"
SIZE, PIXELS = (3, 32, 32), 3 * 32 * 32


@dataclass(frozen=True)
class Version:
    """One of the two forms of a published set: its archive, the folder in it, and the files of
    that folder by split, in the order of the images, each with its MD5."""

    archive: str
    size: int  # in bytes
    sha256: str
    folder: str
    files: dict[str, dict[str, str]]
    agreed: bool  # whether several sources have these MD5

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
        # First: a small pickle can ask for much memory.
        if (size := path.stat().st_size) < count * PIXELS:
            raise InputError(
                f"{size:,} bytes, expected {count * PIXELS:,} or more for {count:,} images"
            )
        with path.open("rb") as file:
            content = Reader(file, encoding="bytes").load()
    except InputError as error:
        raise InputError(f"{path}: {error}; fetch the file again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # of whatever kind: a damaged pickle says anything
        why = str(error) or type(error).__name__
        raise InputError(f"{path}: no whole pickle ({why}); fetch the file again") from None
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
                with the folder of the published archive. One split's files will do where only that
                is used.
            download: download and unpack the binary version where neither is there.
            options: of every data set.
        """
        super().__init__(**options)
        self.data_dir = Path(data_dir)
        self.download = download
        self.origin = data_dir

    def prepare_data(self) -> None:
        """Downloads and unpacks, where that is asked for and needed."""
        if self.download and None in map(self._present, self.counts):
            # An archive that is there already is taken in place of another.
            there = [v for v in self._versions if (self.data_dir / v.archive).exists()]
            version = [*there, self.binary][0]
            archive = fetch(version.remote, self.data_dir)
            members = [f"{version.folder}/{name}" for name in version.names]
            unpack(archive, members, self.data_dir / version.folder)

    @property
    def _versions(self) -> tuple[Version, Version]:
        return self.binary, self.python

    def _present(self, split: str) -> tuple[Version, Path] | None:
        """The version of which the split's files are there, and their folder."""
        for version in self._versions:
            for folder in (self.data_dir / version.folder, self.data_dir):
                if all((folder / name).is_file() for name in version.files[split]):
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

    def _hashes(self, split: Literal["train", "test"]) -> dict[Path, Hash]:
        version, files = self._version_and_files(split)
        published = version.files[split]
        return {path: Hash("md5", published[path.name], version.agreed) for path in files}

    def _version_and_files(self, split: str) -> tuple[Version, list[Path]]:
        version_and_folder = self._present(split)
        if version_and_folder is None:
            folders = " nor ".join(
                f"{v.folder} ({', '.join(v.files[split])})" for v in self._versions
            )
            raise FieldError(
                self,
                "data_dir",
                f"{self.data_dir} has neither {folders}: unpack {self.binary.remote} from {URL}"
                " there, or set download to true",
            )
        version, folder = version_and_folder
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
            "train": {
                "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
                "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
                "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
                "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
                "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            },
            "test": {"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"},
        },
        agreed=False,
    )
    python = Version(
        archive="cifar-10-python.tar.gz",
        size=170_498_071,
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        folder="cifar-10-batches-py",
        files={
            "train": {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
        },
        agreed=True,
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
        files={
            "train": {"train.bin": "6172c7755cfe09b2fe270c85cebc1b15"},
            "test": {"test.bin": "4499cfba6c016c1be1438163640a0898"},
        },
        agreed=False,
    )
    python = Version(
        archive="cifar-100-python.tar.gz",
        size=169_001_437,
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        folder="cifar-100-python",
        files={
            "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
            "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        },
        agreed=True,
    )
