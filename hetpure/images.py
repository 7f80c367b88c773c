"""Image files to tensors and back, for people who bring one image."""

from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hetpure.errors import InputError

MODES = {1: "L", 3: "RGB"}


def read_image(path: str | Path, shape: tuple[int, int, int]) -> Tensor:
    """A PNG or JPEG file as (1, C, H, W) in pixel [0, 1], for `shape` (C, H, W).

    Turned upright, made grey or colour, and scaled; what does not fit the shape's proportions is
    cropped evenly, and what is transparent becomes black.
    """
    channels, height, width = shape
    if channels not in MODES:
        raise InputError(f"images of {channels} channels cannot be read from a file")
    try:
        with Image.open(path) as file:
            image = _to_8_bits(ImageOps.exif_transpose(file)).convert(MODES[channels])
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from None
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, height, width, channels).permute(0, 3, 1, 2).float() / 255


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Without transparency and with 8 bits a channel: Pillow's own conversion clips 16 bits."""
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value * (255 / 65535)).convert("L")
    if image.mode == "F":
        raise OSError("its pixels are floating-point numbers")
    opaque = Image.new("RGBA", image.size, "black")
    return Image.alpha_composite(opaque, image.convert("RGBA"))


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
