"""Coloured garments of Fashion-MNIST anywhere over coloured textures: data with something to look
away from. An image is painted when it is asked for, a pure function of its split, id and seed."""

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import Literal, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.dataset import ImageDataset
from datamodules.fashion_mnist import FULL_PREFIX, FashionMNIST, Split
from hetpure.attention import Mask, Size
from hetpure.classifiers import Classifier
from hetpure.errors import InputError, check_choice
from hetpure.noise import BatchNoise, Noise, Purpose, Stream, check_seed

SIDE, GARMENT = 32, 28  # pixels of an image and of a garment
SMALLEST = 14  # side of the smallest garment
TEXTURES = ("gradient", "stripes", "value noise", "blobs")
LATTICES = (4, 8)  # cells a side of the two layers of value noise, the second half as strong
BLOBS, CANDIDATES = 6, 8  # of an image; colours that a garment's is chosen from
COVERED = 0.1  # a garment's pixel, of [0, 1]; darker ones between such are part of it too
VERSION = 1  # another one paints other images
PUBLISHED = {"train": 0, "t10k": 1}  # files that ids count in, as addresses have them


class Part(IntEnum):
    """What random numbers of an image are for."""

    PLACE = 0
    COLOURS = 1
    WAVES = 2
    LATTICE = 3
    BLOBS = 4


@dataclass(frozen=True)
class Clutter:
    """Images (N, 3, 32, 32), uint8, painted when they are asked for.

    Args:
        garments: (N, 1, 28, 28), uint8.
        samples: (N,) their ids.
        split: of the published files, 0 the training and 1 the test images.
        seed: of everything that is not the garment.
    """

    garments: Tensor
    samples: Tensor
    split: int
    seed: int

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice | Tensor) -> "Clutter": ...
    def __getitem__(self, index: int | slice | Tensor) -> "Tensor | Clutter":
        """An image (3, 32, 32), uint8; of several indices the images, still to paint."""
        if isinstance(index, int):
            return self[torch.tensor([index])].make()[0]
        return replace(self, garments=self.garments[index], samples=self.samples[index])

    def listing(self) -> bytes:
        """What the images are made of."""
        recipe = f"clutter {VERSION} {self.split} {self.seed}\n".encode()
        return recipe + self.garments.contiguous().numpy().tobytes()

    def make(self) -> Tensor:
        """Paints all of them, (N, 3, 32, 32), uint8."""
        noise = self._noise()
        colour, cover = self._placed(noise)
        behind, seen = _background(noise)
        own = _farthest(_numbers(noise, Part.COLOURS, 2 + CANDIDATES, 3)[:, 2:], seen)
        pixels = colour * own[:, :, None, None] + (1 - cover) * behind
        return (255 * pixels).round().to(torch.uint8)

    def objects(self) -> Tensor:
        """Where the garments are, (N, 1, 32, 32), boolean."""
        # Half covered pixels are common; rounding must not decide which they are.
        return self._placed(self._noise())[1] > 0.5 + 1e-6

    def _noise(self) -> BatchNoise:
        return Noise.of(self.seed, Stream.DATA, self.split).on(self.samples)

    def _placed(self, noise: BatchNoise) -> tuple[Tensor, Tensor]:
        """The garments' brightness, .3 to 1 and 0 outside, and how much of each pixel they cover,
        both (N, 1, 32, 32)."""
        size, top, left = _numbers(noise, Part.PLACE, 3).unbind(1)
        side = SMALLEST + (size * (GARMENT - SMALLEST + 1)).floor()
        rows, columns = (_resampling(side, (at * (SIDE - side + 1)).floor()) for at in (top, left))
        grey = self.garments.double() / 255
        inside = (grey > COVERED).double()
        closed = -F.max_pool2d(-F.max_pool2d(inside, 3, 1, 1), 3, 1, 1)
        covered = torch.cat([(0.3 + 0.7 * grey) * closed, closed], 1)
        placed = rows[:, None] @ covered @ columns[:, None].transpose(2, 3)
        return placed[:, :1], placed[:, 1:]


def _numbers(noise: BatchNoise, part: Part, *shape: int) -> Tensor:
    """(N, *shape), uniform on (0, 1)."""
    like = torch.empty(len(noise), *shape, dtype=torch.float64)
    return noise.uniform(Purpose.PAINTING, like, step=part)


def _resampling(side: Tensor, first: Tensor) -> Tensor:
    """(N, 32, 28) weights of a garment's pixels in each pixel of a line of the image, of which it
    takes `side` pixels from `first` on: linear interpolation, wider where it shrinks."""
    scale = (side / GARMENT)[:, None, None]
    place = torch.arange(SIDE).double()[None, :, None]
    centre = (place - first[:, None, None] + 0.5) / scale - 0.5
    distance = (centre - torch.arange(GARMENT).double()).abs()
    weights = (1 - distance * scale.clamp(max=1)).clamp(min=0)
    end = first + side
    there = (place >= first[:, None, None]) & (place < end[:, None, None])
    return there * weights / weights.sum(2, keepdim=True).clamp(min=1e-9)


def _background(noise: BatchNoise) -> tuple[Tensor, Tensor]:
    """Textures (N, 3, 32, 32), pixel [0, 1], and the colours (N, 1 + BLOBS, 3) in each."""
    ground = _numbers(noise, Part.COLOURS, 2 + CANDIDATES, 3)[:, :2]
    kind, angle, periods, phase = _numbers(noise, Part.WAVES, 4).unbind(1)
    angle = 2 * math.pi * angle[:, None, None]
    steps = torch.arange(SIDE).double() / (SIDE - 1) - 0.5
    along = steps[:, None] * angle.sin() + steps * angle.cos()  # -.71 to .71
    ramp = along / (angle.sin().abs() + angle.cos().abs()) + 0.5
    turns = (2 + 4 * periods)[:, None, None] * along + phase[:, None, None]
    fields = [ramp, 0.5 + 0.5 * (2 * math.pi * turns).sin(), _value_noise(noise)]
    first, second = ground[:, 0, :, None, None], ground[:, 1, :, None, None]
    mixed = [first + field[:, None] * (second - first) for field in fields]
    blobs = _numbers(noise, Part.BLOBS, BLOBS, 6)
    painted = torch.stack([*mixed, _blobs(blobs, first.expand_as(mixed[0]))])
    chosen = (kind * len(TEXTURES)).long()
    second_and_others = torch.where(
        (chosen == TEXTURES.index("blobs"))[:, None, None], blobs[..., 3:], ground[:, 1:]
    )
    seen = torch.cat([ground[:, :1], second_and_others], 1)
    return painted[chosen, torch.arange(len(noise))], seen


def _value_noise(noise: BatchNoise) -> Tensor:
    """(N, 32, 32) in [0, 1]: random values on two lattices, interpolated."""
    counts = [(cells + 1) ** 2 for cells in LATTICES]
    total: Tensor = torch.zeros(())
    values = torch.split(_numbers(noise, Part.LATTICE, sum(counts)), counts, 1)
    for layer, (cells, lattice) in enumerate(zip(LATTICES, values, strict=True)):
        grid = lattice.reshape(-1, 1, cells + 1, cells + 1)
        fine = F.interpolate(grid, (SIDE, SIDE), mode="bilinear", align_corners=True)
        total = total + fine[:, 0] / 2**layer
    return total / sum(2.0**-layer for layer in range(len(LATTICES)))


def _blobs(blobs: Tensor, canvas: Tensor) -> Tensor:
    """Discs (N, BLOBS, 6), place, size and colour of each, one over the other, on a canvas
    (N, 3, 32, 32)."""
    place = torch.arange(SIDE).double()
    for blob in blobs.unbind(1):
        across, down, size = (value[:, None, None] for value in blob[:, :3].unbind(1))
        distance = torch.hypot(place[:, None] - SIDE * down, place - SIDE * across)
        cover = (3 + 5 * size - distance + 0.5).clamp(0, 1)[:, None]
        canvas = canvas + cover * (blob[:, 3:, None, None] - canvas)
    return canvas


def _farthest(colours: Tensor, seen: Tensor) -> Tensor:
    """Of colours (N, K, 3) the one whose nearest of those seen (N, S, 3) is farthest, (N, 3)."""
    nearest = torch.cdist(colours, seen).amin(2)
    return colours[torch.arange(len(colours)), nearest.argmax(1)]


def boxes(objects: Tensor) -> Tensor:
    """The bounding boxes (N, 1, H, W) of objects (N, 1, H, W), boolean."""
    rows, columns = objects.any(3, keepdim=True), objects.any(2, keepdim=True)

    def between(line: Tensor, dimension: int) -> Tensor:
        seen = line.long()
        return (seen.cumsum(dimension) > 0) & (seen.flip(dimension).cumsum(dimension) > 0).flip(
            dimension
        )

    return between(rows, 2) & between(columns, 3)


class ClutteredFashionMNIST(FashionMNIST):
    """Fashion-MNIST's garments, coloured, half to all of their size and anywhere, over gradients,
    stripes, value noise or blobs, in batches {"image", "label", "sample"}.

    image: float32 (B, 3, 32, 32) in pixel [0,1], 8-bit values; label and sample as FashionMNIST's,
    whose splits these are. Nothing is stored: images are painted in float64 from numbers that are a
    function of (split, sample id, `clutter_seed`) alone.
    """

    title = "Cluttered Fashion-MNIST"
    channels = 3
    image_size = SIDE

    def __init__(
        self,
        clutter_seed: int = 0,
        data_dir: str | None = None,
        source: Literal["auto", "packaged"] = "auto",
        batch_size: int = 64,
        test_split: Literal["test", "validation", "unseen"] = "test",
        limit: int | None = None,
        skip: int = 0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        """Finds the files of the garments; reads none before `setup`.

        Args:
            clutter_seed: of places, sizes, colours and textures. Another seed is another data set.
            data_dir: as FashionMNIST's, as are all that follow.
            source: auto takes data_dir, else Debian's folder, else the packaged subset.
            batch_size: images in a batch, on each device.
            test_split: the split that `test_dataloader` gives.
            limit: evaluate only so many samples of that split.
            skip: leave out the first so many: images that were looked at before.
            num_workers: processes that load batches.
            seed: with the epoch, decides the order of training.
        """
        super().__init__(data_dir, source, batch_size, test_split, limit, skip, num_workers, seed)
        self.clutter_seed = clutter_seed
        check_seed(self, "clutter_seed")
        self.details = (*self.details, f"clutter seed {clutter_seed}")

    @property
    def data_set(self) -> str:
        return f"{self.title}, clutter seed {self.clutter_seed}"

    def garments(self, split: Split) -> ImageDataset:
        """The images of Fashion-MNIST that a split is made of."""
        return super()._read(split)

    def _read(self, split: Split) -> ImageDataset:
        garments = self.garments(split)
        return ImageDataset(self.clutter(split, garments), garments.labels, garments.samples)

    def clutter(self, split: Split, garments: ImageDataset) -> Clutter:
        """What the garments of a split become."""
        images = cast(Tensor, garments.images)
        published = PUBLISHED[FULL_PREFIX[split]]
        return Clutter(images, garments.samples, published, self.clutter_seed)


@dataclass(frozen=True)
class ObjectMask(Mask):
    """Where the garments of the cluttered images are: an oracle, which no defence has. The mask of
    an image is that of its sample id, whatever an attacker makes of its pixels.

    A mask in the garment's shape tells the classifier what it is: two levels of noise draw its
    outline. Its bounding box tells less.

    Args:
        shape: of the mask, the garment's own or its bounding box.
        clutter_seed: of the images.
        test_split: the split that they are of.
        data_dir: of the garments, see ClutteredFashionMNIST.
        source: as data_dir.
    """

    shape: Literal["garment", "box"] = "garment"
    clutter_seed: int = 0
    test_split: Literal["test", "validation", "unseen"] = "test"
    data_dir: str | None = None
    source: Literal["auto", "packaged"] = "auto"

    control = True

    def __post_init__(self) -> None:
        check_choice(self, "shape", Literal["garment", "box"])
        check_seed(self, "clutter_seed")

    def check(self, images: Tensor, samples: Tensor) -> None:
        if not torch.equal((255 * images).round().to(torch.uint8).cpu(), self._of(samples).make()):
            raise InputError(
                "the mask of objects is about other images than these: give it their clutter_seed,"
                " test_split and source"
            )

    def _of(self, samples: Tensor) -> Clutter:
        """The images with these ids."""
        images, places = self._images
        wanted = samples.tolist()
        if unknown := [sample for sample in wanted if sample not in places]:
            raise InputError(
                f"the mask of objects knows no sample {unknown[0]}: give it the test_split and"
                " source of the images"
            )
        return images[torch.tensor([places[sample] for sample in wanted])]

    @cached_property
    def _images(self) -> tuple[Clutter, dict[int, int]]:
        """The split, and where each id is in it."""
        data = ClutteredFashionMNIST(
            self.clutter_seed, self.data_dir, self.source, test_split=self.test_split
        )
        images = data.clutter(self.test_split, data.garments(self.test_split))
        return images, {sample: at for at, sample in enumerate(images.samples.tolist())}

    def __call__(
        self,
        classifier: Classifier,
        pixels: Tensor,
        samples: Tensor | None = None,
        size: Size | None = None,
        *,
        soft: bool = False,
    ) -> Tensor:
        if samples is None:
            raise InputError("the mask of objects needs the images' sample ids")
        objects = self._of(samples).objects()
        mask = (objects if self.shape == "garment" else boxes(objects)).to(pixels)
        return mask if size is None else F.interpolate(mask, size)
