"""Image files to tensors and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from hetpure.errors import InputError

MODES = {1: "L", 3: "RGB"}
# Pillow's names. A mode says how pixels are held in memory, a raw mode how the file holds them.
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I;16R")
ANY_DEPTH = ("JPEG2000", "SGI")  # formats of which Pillow does not say how deep the file is
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF and one of its values
ORIENTATION, LYING = 0x0112, (5, 6, 7, 8)  # a tag of EXIF, and where it exchanges the sides


def open_image(path: str | Path, channels: int, *, upright: bool = True) -> Image.Image:
    """The image in a file, with 1 or 3 channels and no transparency: black is behind it.

    Its mode is L or RGB, 8 bits a channel, or F for 16-bit grey: floats in pixel [0,1], one channel
    whatever `channels` is. `upright` turns it as its EXIF orientation says. InputError where the
    file is no image, or where Pillow does not say which value is white.
    """
    if channels not in MODES:
        raise InputError(f"images of {channels} channels cannot be read from a file")
    with _opened(path) as file:
        sixteen_bits = _has_16_bits(file)
        image = ImageOps.exif_transpose(file) if upright else file
        if sixteen_bits:
            values = np.asarray(image).astype(np.float32)
            if (transparent := image.info.get("transparency")) is not None:  # the one grey that is
                values[values == transparent] = 0
            return Image.fromarray(values / 65535)
        if "A" in image.getbands() or "transparency" in image.info:
            black = Image.new("RGBA", image.size, "black")
            image = Image.alpha_composite(black, image.convert("RGBA"))
        return image.convert(MODES[channels])


def image_size(path: str | Path, *, upright: bool = True) -> tuple[int, int]:
    """Height and width of what `open_image` would give. Of most files only the header is read;
    what it shows to be unreadable is refused in the same words."""
    with _opened(path) as file:
        _has_16_bits(file)
        turned = upright and file.getexif().get(ORIENTATION) in LYING
        return file.size if turned else (file.height, file.width)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The file, its pixels not yet read. InputError where Pillow fails, then or later."""
    try:
        with Image.open(path) as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from None


def _has_16_bits(file: Image.Image) -> bool:
    """Whether an opened file is 16-bit grey, or else has 8 bits a channel; OSError if neither."""
    # Before the pixels are loaded: the raw mode is forgotten then.
    tiles: Any = getattr(file, "tile", None)
    arguments = tiles[0].args if tiles else None
    raw, *others = arguments if isinstance(arguments, tuple) and arguments else (arguments,)
    if raw in SIXTEEN_BITS:
        # Pillow inverts such files of 8 bits, and those of 16 bits not.
        if getattr(file, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
            raise OSError("its 16-bit values are inverted (0 is white): save it with 8 bits")
        return True
    if file.mode not in EIGHT_BITS:
        raise OSError(f"which of its values is white is not known (mode {file.mode}): use 8 bits")
    if file.format in ANY_DEPTH:
        raise OSError(f"Pillow rounds {file.format} of 16 bits down: save it as PNG with 8 bits")
    white = others[0] if file.format == "PPM" and others else 255
    if white > 255 or ";16" in str(raw):
        raise OSError("Pillow rounds 16-bit colour and transparency down: save it with 8 bits")
    if raw in ("L;2", "L;4") and "transparency" in file.info:
        raise OSError("Pillow loses which of its 4 or 16 greys is transparent: save it with 8 bits")
    return False


def to_tensor(image: Image.Image, channels: int) -> Tensor:
    """Pixels of what `open_image` gave, (C, H, W): uint8, or float32 in pixel [0,1] of mode F."""
    array = np.array(image)  # a copy, which may be written to
    if image.mode == "F":
        # Resizing with a cubic filter overshoots.
        return torch.from_numpy(array).clamp(0, 1).expand(channels, -1, -1)
    return torch.from_numpy(array.reshape(*array.shape[:2], channels)).movedim(-1, 0)


def read_image(path: str | Path, shape: tuple[int, int, int]) -> Tensor:
    """An image file as (1, C, H, W) in pixel [0, 1], for `shape` (C, H, W).

    Turned upright, made grey or colour, and scaled; what does not fit the shape's proportions is
    cropped evenly, and what is transparent becomes black.
    """
    channels, height, width = shape
    image = open_image(path, channels)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    pixels = to_tensor(image, channels)[None]
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.contiguous()


def write_image(path: str | Path, image: Tensor) -> None:
    """Writes one image, (1, C, H, W) or (C, H, W) in pixel [0, 1], with 8 bits a channel."""
    picture = image.detach().cpu().reshape(image.shape[-3:])
    if len(picture) not in MODES:
        raise InputError(f"an image of {len(picture)} channels cannot be written to a file")
    array = (picture.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).numpy()
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.squeeze(-1) if len(picture) == 1 else array).save(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be written: {error}") from None
