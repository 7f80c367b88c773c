"""One image in, one image out: files, presets and the lazy front door."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import hetpure
from hetpure.errors import InputError
from hetpure.images import read_image, write_image
from hetpure.noise import noise_for
from hetpure.presets import PRESETS, load_defense

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


def test_the_packaged_defence_is_the_quick_evaluations_row() -> None:
    config = yaml.safe_load((ROOT / "configs" / "evaluate" / "quick.yaml").read_text())["model"]
    row, preset = config["defenses"]["heterogeneous + ADDT"], PRESETS["fashion_mnist"]
    assert preset.classifier == config["classifier"]
    assert preset.denoiser == config["denoisers"][row["denoiser"]]
    for name, value in row["purifier"]["init_args"].items():
        assert getattr(preset.purifier, name) == value
    for name, value in row["mask"].items():
        assert getattr(preset.mask, name) == value


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
