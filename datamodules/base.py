"""What all data sets share: splits, which of their images are evaluated, and loaders."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from datamodules.dataset import (
    EpochSampler,
    ImageDataset,
    ResumableLoader,
    Sample,
    check_labels,
    leave_stopping_to_the_program,
)
from datamodules.subsets import choose, published_512, read_ids, smallest_class
from hetpure.disk import file_hash
from hetpure.errors import FieldError, check_at_least, check_choice

TestSplit = Literal["test", "validation"]
Subset = Literal["all", "published_512", "balanced"]
SUBSET_TITLES: dict[str, str] = {
    "published_512": "the 512 of DiffPure and HetPure",
    "balanced": "as many of each class",
}


class Hash(NamedTuple):
    """Of a published file's content."""

    kind: Literal["md5", "sha256"]
    digest: str
    agreed: bool = True  # by several sources; where one alone has it, no file is refused for it


class ImageDataModule(L.LightningDataModule, ABC):
    """Labelled images in batches {"image", "label", "sample"}; no image need be in memory.

    image: float32 (B, C, H, W) in pixel [0,1]; label: int64 (B,); sample: int64 (B,), the image's
    position in the published order of its split, which no option changes. Validation images are
    held out of the training images, the same ones for all seeds, and no training ever sees them.

    A data set names itself (`title`, `class_names`, `channels`, `image_size`, `origin`), and reads
    its published splits (`_read`, `_files`, `_hashes`). `splits` are those that there are files
    for.
    """

    title: str
    class_names: tuple[str, ...]
    channels: int
    image_size: int | tuple[int, int]
    origin: str  # where the images come from
    details: tuple[str, ...] = ()  # what titles say of the images besides
    splits: tuple[str, ...] = ("train", "validation", "test")
    has_published_512 = False  # whether papers report on 512 of its test images

    def __init__(
        self,
        *,
        batch_size: int = 64,
        test_split: TestSplit = "test",
        subset: Subset = "all",
        ids: str | None = None,
        limit: int | None = None,
        skip: int = 0,
        validation: int = 1_000,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        """Keeps the settings.

        Args:
            batch_size: images in a batch, on each device.
            test_split: the split that `test_dataloader` gives.
            subset: evaluate all of that split; the 512 test images of DiffPure and HetPure; or as
                many images of each class, `limit` in all.
            ids: text file with the ids to evaluate, one a line, in place of a subset.
            limit: evaluate only so many samples of those.
            skip: leave out the first so many: images that were looked at before.
            validation: training images held out, as many of each class.
            num_workers: processes that load batches.
            seed: with the epoch, decides the order of training.
        """
        super().__init__()
        # One process downloads, into a folder that all see, as they see the run's.
        self.prepare_data_per_node = False
        self.batch_size = batch_size
        self.test_split: str = test_split
        self.subset = subset
        self.ids = None if ids is None else Path(ids)
        self.limit = limit
        self.skip = skip
        self.validation = validation
        self.num_workers = num_workers
        self.seed = seed
        self._splits: dict[str, ImageDataset] = {}
        self._check_settings()

    def _check_settings(self) -> None:
        """FieldError where a setting is out of its range, or contradicts another."""
        check_at_least(self, 1, "batch_size", "validation")
        if self.limit is not None:
            check_at_least(self, 1, "limit")
        check_at_least(self, 0, "skip", "num_workers")
        check_choice(self, "test_split", TestSplit)
        check_choice(self, "subset", Subset)
        if self.ids is not None and self.subset != "all":
            raise FieldError(self, "subset", f"{self.subset} contradicts ids: give all")
        if self.subset == "published_512" and not self.has_published_512:
            raise FieldError(
                self, "subset", "published_512 is of CIFAR, SVHN and ImageNet: give all or balanced"
            )
        if self.subset == "published_512" and self.test_split != "test":
            raise FieldError(
                self, "test_split", f"{self.test_split} has none of subset published_512: give test"
            )
        if self.subset == "balanced" and self.skip:
            raise FieldError(self, "skip", "contradicts subset balanced: leave one of them out")

    def _given_paths(self, test: str, train: str) -> dict[str, Path]:
        """Where the splits `test` and `train` are, by the two fields that name their paths."""
        fields = {"test": test, "train": train}
        given = {split: getattr(self, field) for split, field in fields.items()}
        paths = {split: Path(path) for split, path in given.items() if path is not None}
        if len({path.resolve() for path in paths.values()}) < max(len(paths), 1):
            raise FieldError(
                self,
                test,
                f"is {given['test']}, {train} is {given['train']}: give images to evaluate, images"
                " to train on, or both from two places",
            )
        return paths

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def data_set(self) -> str:
        """What tells this data set from others, whatever the split; trained weights keep it."""
        return self.title

    @property
    def description(self) -> str:
        """The evaluated images in a few words, for titles."""
        details = [*self.details]
        if self.subset != "all":
            details.append(SUBSET_TITLES[self.subset])
        if self.ids is not None:
            details.append(f"the ids of {self.ids.name}")
        if self.skip:
            details.append(f"after the first {self.skip}")
        if self.limit is not None:
            details.append(f"limit {self.limit}")
        suffix = f" ({', '.join(details)})" if details else ""
        return f"{self.title} {self.test_split} images{suffix}"

    def setup(self, stage: str | None = None) -> None:
        """Reads the splits that the stage needs and are not read yet (None: all)."""
        if not self._splits:
            rank_zero_info(f"{self.title} from {self.origin}")
        needed: dict[str | None, tuple[str, ...]] = {
            "fit": ("train", "validation"),
            "validate": ("validation",),
            "test": (self.test_split,),
        }
        for split in needed.get(stage, self.splits):
            if split not in self._splits:
                datasets = self._load(split)
                self._compare("test" if split == "test" else "train")
                self._splits |= datasets

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled by (seed, epoch); the last short batch is dropped."""
        dataset = self._splits["train"]
        replicas, rank = 1, 0
        if self.trainer is not None:
            replicas, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = EpochSampler(dataset, seed=self.seed, replicas=replicas, rank=rank)
        if len(sampler) < self.batch_size:
            raise FieldError(
                self,
                "batch_size",
                f"is {self.batch_size}, allowed is at most {len(sampler)}, the training images of a"
                f" device from {self.origin}",
            )
        return ResumableLoader(
            dataset,
            self.batch_size,
            sampler=sampler,
            drop_last=True,
            num_workers=self.num_workers,
            worker_init_fn=leave_stopping_to_the_program,
        )

    def val_dataloader(self) -> DataLoader[Sample]:
        """The validation split in the order of its ids."""
        return self._in_order(self._splits["validation"])

    def test_dataloader(self) -> DataLoader[Sample]:
        """The images to evaluate in the order of their ids, none left out."""
        return self._in_order(self._evaluated(self._splits[self.test_split]))

    def files_sha256(self) -> dict[str, str]:
        """SHA-256 of every file that the evaluated images are read from, by file name; that of the
        ids is `ids: NAME`."""
        files = list(self._files(self.test_split))
        hashes = {path.name: file_hash(path) for path in files}
        assert len(hashes) == len(files), "two files of one name"
        return hashes | self._ids_sha256()

    @abstractmethod
    def _read(self, split: Literal["train", "test"]) -> ImageDataset:
        """A published split, whole, its ids ascending."""

    @abstractmethod
    def _files(self, split: str) -> Iterable[Path]:
        """The files that a split is read from."""

    def _hashes(self, split: Literal["train", "test"]) -> Mapping[Path, Hash]:
        """Of the published files by the paths where they are looked for; empty where none are."""
        return {}

    def _compare(self, split: Literal["train", "test"]) -> None:
        """Says which of a split's files are not the published ones. InputError where the published
        512 are evaluated: the same positions in other files are other images."""
        for path, published in self._hashes(split).items():
            if file_hash(path, published.kind) == published.digest:
                continue
            if split == "test" and self.subset == "published_512" and published.agreed:
                raise FieldError(
                    self,
                    "subset",
                    f"published_512 are images of the published file, and {path} is not that one:"
                    " fetch it again, or take another subset",
                )
            rank_zero_info(
                f"{path} is not the published file: results are not those of {self.title}"
            )

    def _ids_sha256(self) -> dict[str, str]:
        return {} if self.ids is None else {f"ids: {self.ids.name}": file_hash(self.ids)}

    def _load(self, split: str) -> dict[str, ImageDataset]:
        """The split, and what is read along with it."""
        if split == "test":
            whole = self._read("test")
            check_labels(whole.labels, self.origin, self.num_classes)
            return {"test": whole}
        whole = self._read("train")
        check_labels(whole.labels, self.origin, self.num_classes)
        each, rest = divmod(self.validation, self.num_classes)
        most = smallest_class(whole.labels, self.num_classes) - 1  # one is left to train on
        if rest or each > most:
            raise FieldError(
                self,
                "validation",
                f"is {self.validation}, allowed are multiples of the {self.num_classes} classes up"
                f" to {max(most, 0) * self.num_classes}",
            )
        (held_out,) = choose(whole.labels, (each,), "hetpure validation")
        kept = torch.ones(len(whole), dtype=torch.bool)
        kept[held_out.long()] = False
        return {"validation": whole.take(held_out.long()), "train": whole.take(kept)}

    def _evaluated(self, dataset: ImageDataset) -> ImageDataset:
        """The samples of the split that `subset` or `ids`, then `skip` and `limit`, leave."""
        if self.subset == "balanced":
            return dataset.take(self._balanced(dataset))
        if self.subset == "published_512":
            dataset = dataset.take(published_512(len(dataset)))
        if self.ids is not None:
            position = {sample: k for k, sample in enumerate(dataset.samples.tolist())}
            ids = read_ids(self.ids)
            if unknown := [sample for sample in ids if sample not in position]:
                raise FieldError(
                    self,
                    "ids",
                    f"{self.ids}: id {unknown[0]} is none of the {self.test_split} images from"
                    f" {self.origin}",
                )
            dataset = dataset.take(torch.tensor([position[sample] for sample in ids]))
        limit = len(dataset) - self.skip if self.limit is None else self.limit
        if limit < 1 or self.skip + limit > len(dataset):
            raise FieldError(
                self,
                "limit",
                f"is {self.limit} after skip {self.skip}, allowed are at most {len(dataset)}"
                f" together, the {self.test_split} images from {self.origin}; null takes all",
            )
        return dataset.take(slice(self.skip, self.skip + limit))

    def _balanced(self, dataset: ImageDataset) -> torch.Tensor:
        most = smallest_class(dataset.labels, self.num_classes)
        limit = most * self.num_classes if self.limit is None else self.limit
        each, rest = divmod(limit, self.num_classes)
        if rest or not 1 <= each <= most:
            raise FieldError(
                self,
                "limit",
                f"is {self.limit}, allowed with subset balanced are multiples of the"
                f" {self.num_classes} classes up to {most * self.num_classes}",
            )
        return choose(dataset.labels, (each,), "hetpure balanced")[0].long()

    def _in_order(self, dataset: ImageDataset) -> DataLoader[Sample]:
        return DataLoader(
            dataset,
            self.batch_size,
            num_workers=self.num_workers,
            worker_init_fn=leave_stopping_to_the_program,
        )
