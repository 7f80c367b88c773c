"""Labelled images by index, and a shuffle that depends on the seed and the epoch alone."""

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol, Self, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from hetpure.errors import InputError

IDS = 2**32  # as many as an address of noise tells apart
HASHED = 4096  # images hashed at once: a copy of that many is made
ROUNDING = 1e-6  # by which arithmetic may leave [0, 1]; whoever reads such a pixel clamps it
Sample = dict[str, Tensor]


def as_int64(values: Tensor, what: str, where: str) -> Tensor:
    """Labels or ids as int64. InputError unless they are integers.

    A uint64 from 2**63 becomes negative. As neither a label nor an id may be, it is refused later.
    """
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise InputError(f"{where}: {values.dtype} {what}, expected integers")
    return values.long()  # torch compares and sorts no uint16, uint32 and uint64


def check_images(images: Tensor, where: str, *, samples: Tensor | None = None) -> None:
    """Raises InputError unless images (N, C, H, W) are 8-bit, or floats in pixel [0,1], but for
    `ROUNDING`.

    `where` names them in the message; `samples` (N,) are their ids, by default 0 to N - 1.
    """
    if images.ndim != 4:
        raise InputError(f"{where}: shape {tuple(images.shape)}, expected (N, C, H, W)")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise InputError(f"{where}: {images.dtype} images, expected uint8 or float in [0, 1]")
    # Written so that NaN, for which every comparison is false, counts as bad.
    bad = ~((images >= -ROUNDING) & (images <= 1 + ROUNDING)).flatten(1)
    if bad.any():
        position = int(bad.any(dim=1).nonzero()[0])
        value = images[position].flatten()[bad[position]][0].item()
        sample = position if samples is None else int(samples[position])
        raise InputError(
            f"{where}: sample {sample} has the pixel value {value:.7g}, allowed is [0, 1];"
            " scale the images (8-bit values by 1/255) and remove NaN"
        )


def check_ids(samples: Tensor, where: str, *, unique: bool = True) -> None:
    """Raises InputError unless ids (N,) are integers from 0 to 2**32 - 1, none of them twice unless
    that is allowed."""
    samples = as_int64(samples, "ids", where)
    if len(samples) and not 0 <= int(samples.min()) <= int(samples.max()) < IDS:
        raise InputError(
            f"{where}: ids from {int(samples.min())} to {int(samples.max())}, allowed are 0 to"
            f" {IDS - 1}"
        )
    ordered = samples.sort().values
    twice = ordered[1:][ordered.diff() == 0]
    if unique and len(twice):
        raise InputError(
            f"{where}: id {int(twice[0])} is there more than once: an id is the address of an"
            " image's noise, give each image its own"
        )


def check_labels(
    labels: Tensor, where: str, classes: int | None = None, *, samples: Tensor | None = None
) -> None:
    """Raises InputError unless labels (N,) are integers from 0, and below `classes` if it is given.

    `where` names them in the message; `samples` (N,) are their ids, by default 0 to N - 1.
    """
    labels = as_int64(labels, "labels", where)
    bad = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if bad.any():
        position = int(bad.nonzero()[0])
        place = f"at index {position}" if samples is None else f"of sample {int(samples[position])}"
        allowed = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise InputError(f"{where}: label {int(labels[position])} {place}, allowed is {allowed}")


class Unmade(Protocol):
    """Images (N, C, H, W), all of one size, that are read or painted when they are asked for."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice | Tensor) -> Self: ...
    def __getitem__(self, index: Any) -> Any:
        """An image (C, H, W), uint8 or float32 in pixel [0,1]; of several indices the images, still
        unmade."""

    def make(self) -> Sequence[Tensor] | Tensor:
        """All of them."""

    def listing(self) -> bytes:
        """What the images are made of: others have another."""


class ImageDataset(Dataset[Sample]):
    """Labelled images with ids; an item is {"image", "label", "sample"}.

    images: (N, C, H, W), uint8 or float32 in pixel [0,1], or unmade; labels: (N,); samples: (N,),
    the ids.
    An item's image is float32 (C, H, W) in pixel [0,1], its label and id are int64 scalars.
    """

    def __init__(
        self,
        images: Tensor | Unmade,
        labels: Tensor,
        samples: Tensor,
        *,
        where: str = "images",
    ) -> None:
        if isinstance(images, Tensor) and images.dtype not in (torch.uint8, torch.float32):
            raise InputError(f"{where}: {images.dtype} images, expected uint8 or float32")
        if not labels.shape == samples.shape == (len(images),):
            raise InputError(
                f"{where}: {len(images)} images, {len(labels)} labels and {len(samples)} ids,"
                " expected as many of each"
            )
        if isinstance(images, Tensor):
            check_images(images, where, samples=samples)
        check_labels(labels, where)
        check_ids(samples, where)
        self.images = images
        self.labels = labels.long()
        self.samples = samples.long()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return self._item(index, self.images[index])

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """The items of a batch, as loaders ask for them: images are painted faster together."""
        images = self.images[torch.tensor(indices)]
        made = images if isinstance(images, Tensor) else images.make()
        return [self._item(*pair) for pair in zip(indices, made, strict=True)]

    def _item(self, index: int, image: Tensor) -> Sample:
        return {
            # Kept as bytes and converted here: as float32 they take four times the memory.
            "image": image.float() / 255 if image.dtype == torch.uint8 else image.clamp(0, 1),
            "label": self.labels[index],
            "sample": self.samples[index],
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of images, labels and ids; of unmade images, of what they are made of: making all
        would take minutes."""
        digest = hashlib.sha256()
        if not isinstance(self.images, Tensor):
            digest.update(self.images.listing())
        else:
            for first in range(0, len(self), HASHED):
                digest.update(self.images[first : first + HASHED].contiguous().numpy().tobytes())
        for part in (self.labels, self.samples):
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def take(self, index: Tensor | slice) -> "ImageDataset":
        """The samples at these positions, with their own ids."""
        return ImageDataset(self.images[index], self.labels[index], self.samples[index])


def leave_stopping_to_the_program(worker: int) -> None:
    """`worker_init_fn` of a loader: of signals that a whole group of processes gets it heeds those
    of the program itself. Were the loaders gone, that could not end the update that it is in."""
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not say who sent a signal
        return
    numbers, program = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}, os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def heed() -> None:
        while signal.sigwaitinfo(numbers).si_pid != program:
            pass
        os._exit(0)

    threading.Thread(target=heed, daemon=True).start()


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation (count,) of 0 to count - 1 that is a function of its arguments alone."""
    # Hashed, not added: with seed + epoch, one seed's second epoch is the next seed's first.
    digest = hashlib.sha256(f"{seed}:{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randperm(count, generator=generator)


class EpochSampler(DistributedSampler[int]):
    """Every rank's share of `epoch_order`; Lightning calls `set_epoch` before each epoch.

    A DistributedSampler because Lightning wraps any other on several devices, and then calls
    `set_epoch` on its wrapper only: the order would no longer be ours.
    """

    def __init__(self, dataset: ImageDataset, *, seed: int, replicas: int, rank: int) -> None:
        super().__init__(dataset, replicas, rank, shuffle=True, seed=seed, drop_last=True)
        self.given = (0, 0)  # an epoch, and so many of its samples that were given before

    @property
    def skipped(self) -> int:
        """Samples at the beginning of this epoch that are not given again."""
        epoch, given = self.given
        return given if epoch == self.epoch else 0

    def __iter__(self) -> Iterator[int]:
        order = epoch_order(len(self.dataset), self.seed, self.epoch)  # type: ignore[arg-type]
        share = order[self.rank : self.total_size : self.num_replicas]
        return iter(share[self.skipped :].tolist())


class ResumableLoader(DataLoader[Sample]):
    """A loader over an `EpochSampler` that goes on within an epoch: Lightning keeps its state in
    checkpoints, so that a training resumed in the middle of an epoch repeats and loses no batch.
    """

    dataset: ImageDataset
    sampler: EpochSampler
    batch_size: int
    given = 0  # samples of this epoch to this process, those before a resume included

    def __iter__(self) -> Iterator[Sample]:  # type: ignore[override]
        self.given = self.sampler.skipped if self._resumable else 0
        for batch in super().__iter__():
            self.given += self.batch_size
            yield batch

    @property
    def _resumable(self) -> bool:
        """Not where Lightning's overfit_batches put another sampler in the place of ours."""
        return isinstance(self.sampler, EpochSampler)

    def state_dict(self) -> dict[str, Any]:
        """The epoch, how many of its samples all processes together were given, of which images, in
        which order and in what batches."""
        if not self._resumable:
            return {}
        processes = self.sampler.num_replicas
        return {
            "epoch": self.sampler.epoch,
            "samples": self.given * processes,
            "data": self.dataset.fingerprint,
            "seed": self.sampler.seed,
            "processes": processes,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """That epoch goes on after those samples, on as many processes as there now are; every
        other one is whole."""
        if not state or not self._resumable:
            return
        fingerprint = self.dataset.fingerprint
        if state.get("data", fingerprint) != fingerprint:  # older checkpoints do not say
            raise InputError(
                "the checkpoint is of a training on other images than these"
                f" {len(self.dataset)}: give the same files and settings of the data"
            )
        if state["seed"] != self.sampler.seed:
            raise InputError(
                f"the checkpoint is of a training whose data have the seed {state['seed']}: with"
                f" {self.sampler.seed} its epoch would go on in another order of images"
            )
        self.sampler.given = state["epoch"], state["samples"] // self.sampler.num_replicas
