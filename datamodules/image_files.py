"""Image files in place of a tensor of images: each is read, resized and cropped when asked for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image
from torch import Tensor

from hetpure.errors import InputError
from hetpure.images import image_size, open_image, to_tensor

Size = tuple[int, int]  # height, width


def resized_size(size: Size, to: int | Size) -> Size:
    """Of an image of that size. A number is the shorter side's length, the other side keeps the
    proportions and is rounded down; (height, width) does not keep them."""
    if isinstance(to, tuple):
        return to
    height, width = size
    return (int(to * height / width), to) if width <= height else (to, int(to * width / height))


def resized(image: Image.Image, to: int | Size) -> Image.Image:
    """Pillow's antialiased bilinear resize, which torchvision's `Resize` calls too. An image of
    that size is left as it is."""
    height, width = resized_size((image.height, image.width), to)
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def center_cropped(image: Image.Image, size: int) -> Image.Image:
    """The square of that side in the middle, where torchvision's `CenterCrop` has it."""
    width, height = image.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class ImageFiles:
    """The images (N, C, H, W) of N files, all of one size once they are resized and cropped.

    Args:
        folder: that the names lie in.
        names: (N,) strings.
        channels: 1 or 3.
        size: height and width of every image, as resized and cropped.
        resize: the shorter side's length, or height and width; None leaves images as they are.
        crop: side of the square in the middle that is kept; None keeps all.
        upright: turns images as their EXIF orientation says.
    """

    folder: Path
    names: "np.ndarray[Any, Any]"
    channels: int
    size: Size
    resize: int | Size | None = None
    crop: int | None = None
    upright: bool = True

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice | Tensor) -> "ImageFiles": ...
    def __getitem__(self, index: int | slice | Tensor) -> "Tensor | ImageFiles":
        """An image (C, H, W), uint8 or, of 16-bit grey, float32 in pixel [0,1]; of several indices
        the files, still unread."""
        if isinstance(index, int):
            return self._read(self.folder / str(self.names[index]))
        names = self.names[index.numpy() if isinstance(index, Tensor) else index]
        return replace(self, names=names)

    def make(self) -> list[Tensor]:
        """Reads all of them."""
        return [self[index] for index in range(len(self))]

    def _read(self, path: Path) -> Tensor:
        image = open_image(path, self.channels, upright=self.upright)
        self._check(path, (image.height, image.width))
        image = image if self.resize is None else resized(image, self.resize)
        image = image if self.crop is None else center_cropped(image, self.crop)
        return to_tensor(image, self.channels)

    def check(self) -> None:
        """Raises InputError unless all files are images that get the one size. Of most only the
        header is read."""
        for name in self.names:
            path = self.folder / str(name)
            self._check(path, image_size(path, upright=self.upright))

    def _check(self, path: Path, stored: Size) -> None:
        size = stored if self.resize is None else resized_size(stored, self.resize)
        if self.crop is not None and min(size) >= self.crop:
            size = (self.crop, self.crop)
        if size != self.size:
            raise InputError(
                f"{path} is {size[0]} x {size[1]} in the end, expected {self.size[0]} x"
                f" {self.size[1]}: set resize and crop so that all images get one"
                " size"
            )

    def listing(self) -> bytes:
        """How images are made of files, then a line for each file, in order: its name and its size
        in bytes. No file is opened."""
        lines = [f"{self.size} {self.channels} {self.resize} {self.crop} {self.upright}\n"]
        try:
            lines += [f"{name}\t{(self.folder / name).stat().st_size}\n" for name in self.names]
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read: {error.strerror}") from None
        return "".join(lines).encode(errors="surrogateescape")
