"""Image files in place of a tensor of images: each is read, resized and cropped when asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image
from torch import Tensor

from hetpure.errors import InputError
from hetpure.images import open_image, to_tensor

Size = tuple[int, int]  # height, width


def resized(image: Image.Image, size: int | Size) -> Image.Image:
    """Pillow's antialiased bilinear resize, which torchvision's `Resize` calls too.

    A number is the shorter side's length, the other side keeps the proportions and is rounded
    down; (height, width) does not keep them. An image of that size is left as it is.
    """
    width, height = image.size
    if isinstance(size, tuple):
        height, width = size
    elif width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
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
        return ImageFiles(
            self.folder, names, self.channels, self.size, self.resize, self.crop, self.upright
        )

    def _read(self, path: Path) -> Tensor:
        image = open_image(path, self.channels, upright=self.upright)
        image = image if self.resize is None else resized(image, self.resize)
        if self.crop is not None and min(image.size) >= self.crop:
            image = center_cropped(image, self.crop)
        pixels = to_tensor(image, self.channels)
        if pixels.shape[1:] != self.size:
            height, width = pixels.shape[1:]
            raise InputError(
                f"{path} is {height} x {width} in the end, expected {self.size[0]} x"
                f" {self.size[1]}: set --data.resize and --data.crop so that all images get one"
                " size"
            )
        return pixels

    def listing(self) -> bytes:
        """How images are made of files, then a line for each file, in order: its name and its size
        in bytes. No file is opened."""
        lines = [f"{self.size} {self.channels} {self.resize} {self.crop} {self.upright}\n"]
        try:
            lines += [f"{name}\t{(self.folder / name).stat().st_size}\n" for name in self.names]
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read: {error.strerror}") from None
        return "".join(lines).encode(errors="surrogateescape")
