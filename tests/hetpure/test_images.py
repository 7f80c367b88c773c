"""One image in, one image out: files, presets and the lazy front door."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import hetpure
from hetpure.errors import InputError
from hetpure.images import image_size, read_image, write_image
from hetpure.noise import noise_for
from hetpure.presets import load_defense
from hetpure.weights import load_classifier, load_denoiser

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_to_8_bits(channels: int, tmp_path: Path) -> None:
    image = torch.rand(1, channels, 6, 5)
    write_image(tmp_path / "new" / "x.png", image)
    read = read_image(tmp_path / "new" / "x.png", (channels, 6, 5))
    assert read.shape == image.shape
    assert (read - image).abs().max() <= 0.5 / 255 + 1e-6


def test_values_outside_are_clamped_not_wrapped(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", torch.tensor([-0.2, 1.3]).reshape(1, 1, 1, 2))
    assert read_image(tmp_path / "x.png", (1, 1, 2)).flatten().tolist() == [0, 1]


def test_any_file_becomes_the_shape_asked_for(tmp_path: Path) -> None:
    """Colour to grey, larger to smaller, and the middle of what is too wide."""
    wide = Image.new("RGB", (90, 30), "black")
    wide.paste("white", (30, 0, 60, 30))
    wide.save(tmp_path / "wide.jpg")
    read = read_image(tmp_path / "wide.jpg", (1, 28, 28))
    assert read.shape == (1, 1, 28, 28)
    assert read.dtype == torch.float32
    assert read[..., 2:-2].min() > 0.95


def test_a_camera_held_sideways_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("L", (2, 2), 0)
    image.putpixel((0, 0), 255)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera's top is the picture's right
    image.save(tmp_path / "x.png", exif=exif)
    assert read_image(tmp_path / "x.png", (1, 2, 2))[0, 0].tolist() == [[0, 1], [0, 0]]


def test_unreadable_and_unwritable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for path in ("text.png", "missing.png", "."):
        with pytest.raises(InputError, match=str(tmp_path / path)):
            read_image(tmp_path / path, (1, 2, 2))
    for path in ("x.unknown", "text.png/x.png"):
        with pytest.raises(InputError, match=str(tmp_path / path)):
            write_image(tmp_path / path, torch.zeros(1, 1, 2, 2))
    with pytest.raises(InputError, match="2 channels"):
        read_image(tmp_path / "x.png", (2, 4, 4))
    with pytest.raises(InputError, match="2 channels"):
        write_image(tmp_path / "x.png", torch.zeros(2, 4, 4))


def png(path: Path, depth: int, colour: int, row: bytes, width: int, extra: bytes = b"") -> Path:
    """One row of pixels as the PNG standard lays it out; `extra` is the content of tRNS."""
    chunks = [(b"IHDR", struct.pack(">2I5B", width, 1, depth, colour, 0, 0, 0))]
    chunks += [(b"tRNS", extra)] if extra else []
    chunks += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    whole = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        checked = kind + content
        whole += struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))
    path.write_bytes(whole)
    return path


def tiff(path: Path, bits: int, photometric: int, kind: int, values: bytes, order: str) -> Path:
    """One row of three grey values as TIFF 6 lays it out; `kind` is its SampleFormat."""
    tags = {256: 3, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1}
    tags |= {279: len(values), 339: kind}
    entries = b"".join(
        struct.pack(f"{order}2HI", tag, 4, 1) + struct.pack(f"{order}I", value)
        for tag, value in tags.items()
    )
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    directory = struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4
    path.write_bytes(magic + struct.pack(f"{order}I", 8 + len(values)) + values + directory)
    return path


@pytest.mark.parametrize("harm", ["chunk", "text", "torn"])
def test_a_png_that_is_damaged_or_blown_up_is_named(harm: str, tmp_path: Path) -> None:
    """A chunk with a wrong checksum, text of more megabytes than Pillow unpacks, half a file."""
    path = png(tmp_path / "x.png", 8, 0, bytes(3), 3)
    whole = path.read_bytes()
    text = b"zTXta\0\0" + zlib.compress(bytes(2 * 2**20))
    packed = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    harmed = {
        "chunk": whole[:33] + b"\0\0\0\1tEXtxBAD!" + whole[33:],
        "text": whole[:33] + packed + whole[33:],
        "torn": whole[:45],
    }
    path.write_bytes(harmed[harm])
    with pytest.raises(InputError, match=f"{path} cannot be read as an image: "):
        read_image(path, (1, 1, 3))


DEEP = np.array([[0, 257, 32768]], np.uint16)  # 257 / 65535 is 1 / 255


def grey_16_bits(folder: Path) -> dict[str, Path]:
    """The same three values in every form in which files hold 16-bit grey."""
    for name in ("x.png", "x.tif", "x.pgm"):
        Image.fromarray(DEEP).save(folder / name)
    big = tiff(folder / "big.tif", 16, 1, 1, DEEP.astype(">u2").tobytes(), ">")
    return {name: folder / name for name in ("x.png", "x.tif", "x.pgm")} | {"big.tif": big}


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm", "big.tif"])
def test_16_bit_grey_is_scaled_by_65535(name: str, tmp_path: Path) -> None:
    path = grey_16_bits(tmp_path)[name]
    expected = torch.tensor([0, 257, 32768]) / 65535
    assert torch.equal(read_image(path, (1, 1, 3))[0, 0, 0], expected)
    colour = read_image(path, (3, 1, 3))
    assert all(torch.equal(colour[0, channel, 0], expected) for channel in range(3))


def save(path: Path, mode: str, pixel: object, **options: object) -> Path:
    Image.new(mode, (2, 2), pixel).save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("name", "mode", "pixel", "options", "expected"),
    [
        ("x.png", "1", 1, {}, (255, 255, 255)),
        ("x.png", "L", 51, {}, (51, 51, 51)),
        ("x.png", "LA", (200, 51), {}, (40, 40, 40)),
        ("x.png", "L", 51, {"transparency": 51}, (0, 0, 0)),
        ("x.png", "RGB", (10, 20, 30), {}, (10, 20, 30)),
        ("x.png", "RGB", (10, 20, 30), {"transparency": (10, 20, 30)}, (0, 0, 0)),
        ("x.png", "RGBA", (200, 100, 50, 51), {}, (40, 20, 10)),
        ("x.tif", "RGBA", (200, 100, 50, 255), {}, (200, 100, 50)),
        ("x.webp", "RGBA", (200, 100, 50, 0), {"lossless": True}, (0, 0, 0)),
        ("x.gif", "P", 0, {"transparency": 0}, (0, 0, 0)),
        ("x.tif", "CMYK", (0, 0, 0, 255), {}, (0, 0, 0)),
        ("x.tif", "CMYK", (0, 51, 255, 0), {}, (255, 204, 0)),
        ("x.tif", "YCbCr", (51, 128, 128), {}, (51, 51, 51)),
        ("x.bmp", "RGB", (10, 20, 30), {}, (10, 20, 30)),
    ],
)
def test_8_bit_modes(
    name: str,
    mode: str,
    pixel: object,
    options: dict[str, object],
    expected: object,
    tmp_path: Path,
) -> None:
    """Alpha 51 is one fifth; black is behind what is transparent."""
    path = save(tmp_path / name, mode, pixel, **options)
    read = read_image(path, (3, 2, 2)) * 255
    assert torch.allclose(read[0, :, 0, 0], torch.tensor(expected).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("colour", [2, 4, 6], ids=["RGB", "grey and alpha", "RGBA"])
def test_16_bit_colour_and_alpha_are_refused(colour: int, tmp_path: Path) -> None:
    """Pillow keeps the upper 8 bits of each: 511 would be 1 / 255."""
    channels = {2: 3, 4: 2, 6: 4}[colour]
    path = png(tmp_path / "x.png", 16, colour, struct.pack(">H", 511) * channels, 1)
    with pytest.raises(InputError, match="16-bit colour and transparency"):
        read_image(path, (3, 1, 1))


def test_16_bit_colour_of_other_formats_is_refused(tmp_path: Path) -> None:
    """Pillow rounds them down too, and its raw mode does not say so."""
    values = [511, 0, 65535]
    deep = {
        "x.ppm": b"P6 1 1 65535\n" + struct.pack(">3H", *values),
        "plain.ppm": b"P3 1 1 65535\n511 0 65535\n",
        "ten.ppm": b"P6 1 1 1023\n" + struct.pack(">3H", 511, 0, 1023),
        "x.sgi": struct.pack(">HBB4H", 474, 0, 2, 3, 1, 1, 3).ljust(512, b"\0")
        + struct.pack(">3H", *values),
    }
    for name, content in deep.items():
        (tmp_path / name).write_bytes(content)
        for read in (lambda path: read_image(path, (3, 1, 1)), image_size):
            with pytest.raises(InputError, match=f"{name} .*rounds"):
                read(tmp_path / name)
    with pytest.raises(InputError, match="JPEG2000"):
        image_size(save(tmp_path / "x.jp2", "RGB", (10, 20, 30)))


def test_values_of_unknown_range_are_refused(tmp_path: Path) -> None:
    values = [0, 128, 255]
    unknown = {
        "32-bit integers": tiff(tmp_path / "i.tif", 32, 1, 2, struct.pack("<3i", *values), "<"),
        "floats": tiff(tmp_path / "f.tif", 32, 1, 3, struct.pack("<3f", *values), "<"),
        "signed": tiff(tmp_path / "s.tif", 16, 1, 2, struct.pack("<3h", *values), "<"),
        "12 bits": tiff(tmp_path / "12.tif", 12, 1, 1, bytes(5), "<"),
        "LAB": save(tmp_path / "lab.tif", "LAB", (1, 2, 3)),
    }
    for path in unknown.values():
        with pytest.raises(InputError, match="which of its values is white is not known"):
            read_image(path, (1, 1, 3))
    with pytest.raises(InputError, match="inverted"):
        read_image(tiff(tmp_path / "w.tif", 16, 0, 1, DEEP.tobytes(), "<"), (1, 1, 3))
    few = png(tmp_path / "2.png", 2, 0, bytes([0b00011011]), 4, extra=struct.pack(">H", 1))
    with pytest.raises(InputError, match="which of its 4 or 16 greys"):
        read_image(few, (1, 1, 4))
    plain = png(tmp_path / "2.png", 2, 0, bytes([0b00011011]), 4)
    assert read_image(plain, (1, 1, 4)).flatten().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_the_packaged_defence_is_the_quick_evaluations_row() -> None:
    config = yaml.safe_load((ROOT / "configs" / "evaluate" / "quick.yaml").read_text())["model"]
    row, defense = config["defenses"]["heterogeneous + ADDT"], load_defense()
    denoiser = load_denoiser(config["denoisers"][row["denoiser"]])
    assert defense.denoiser is not None
    for ours, named in (
        (defense.classifier, load_classifier(config["classifier"])),
        (defense.denoiser, denoiser),
    ):
        torch.testing.assert_close(ours.state_dict(), named.state_dict(), rtol=0, atol=0)
    for name, value in row["purifier"]["init_args"].items():
        assert getattr(defense.purifier, name) == value
    for name, value in row["mask"].items():
        assert getattr(defense.attention_mask, name) == value


def test_packaged_defence_purifies_and_classifies() -> None:
    defense = load_defense()
    assert defense.image_shape == (1, 28, 28)
    images = torch.rand(2, 1, 28, 28)
    first, again = (defense.purify(images, noise_for(images)) for _ in range(2))
    other = defense.purify(images, noise_for(images, seed=1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= first.min() <= first.max() <= 1
    with pytest.raises(InputError, match=r"'mnist' .* fashion_mnist"):
        load_defense("mnist")


def test_the_front_door_offers_what_it_names() -> None:
    for name in hetpure.__all__:
        assert callable(getattr(hetpure, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hetpure.nothing


def test_import_is_quick_until_something_is_used() -> None:
    code = "import sys, hetpure; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
