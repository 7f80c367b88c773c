"""Weights that are missing, torn, pickled or of another network are refused by name."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hetpure.weights import load_classifier, load_denoiser, resolve
from hetpure.weights.folders import weights_file
from tests.hetpure.weights.files import Bomb
from tests.hetpure.weights.folders import (
    UNET_WEIGHTS,
    Loader,
    classifier_folder,
    diffusion_folder,
    edit_weights,
    refusal,
)

LOADERS: dict[str, tuple[Callable[[Path], tuple[Path, nn.Module]], Loader, str, str]] = {
    "classifier": (classifier_folder, load_classifier, ".", "model.safetensors"),
    "diffusion": (diffusion_folder, load_denoiser, "unet", UNET_WEIGHTS),
}


@pytest.fixture(params=LOADERS)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Loader, Path]:
    """(folder, its loader, its weights file), for both kinds of folder."""
    make, load, sub, name = LOADERS[request.param]
    folder, _ = make(tmp_path)
    return folder, load, folder / sub / name


Stored = tuple[Path, Loader, Path]


def test_missing_folder_is_named_with_the_packaged_weights(tmp_path: Path) -> None:
    for load in (load_classifier, load_denoiser, resolve):
        message = refusal(load, tmp_path / "nowhere")
        assert str(tmp_path / "nowhere") in message
        assert "packaged" in message
    (tmp_path / "file").write_text("no folder")
    message = f"{tmp_path / 'file'} is a file, no folder: `hetpure convert"
    for load in (load_classifier, load_denoiser):
        assert message in refusal(load, tmp_path / "file")


def test_missing_weights_are_named(stored: Stored) -> None:
    folder, load, weights = stored
    weights.unlink()
    assert f"{weights.parent} holds no {weights.name}" in refusal(load, folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-4],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"\0" * 8,
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:9] + b"?" + data[10:],
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
    ids=["empty", "torn", "half", "longer", "length", "header", "lfs-pointer"],
)
def test_corrupt_weights_are_named(stored: Stored, damage: Callable[[bytes], bytes]) -> None:
    folder, load, weights = stored
    weights.write_bytes(damage(weights.read_bytes()))
    assert f"{weights} cannot be loaded: " in refusal(load, folder)


@pytest.mark.parametrize("kind", ["pickle-2", "pickle-5", "torch.save", "torch.save-legacy"])
def test_a_renamed_pickle_is_refused_unopened(stored: Stored, tmp_path: Path, kind: str) -> None:
    folder, load, weights = stored
    bomb = Bomb(tmp_path / "exploded")
    if kind.startswith("pickle"):
        weights.write_bytes(pickle.dumps(bomb, protocol=int(kind[-1])))
    else:
        torch.save(bomb, weights, _use_new_zipfile_serialization=kind == "torch.save")
    assert f"{weights} is a pickle, not safetensors" in refusal(load, folder)
    assert not bomb.path.exists()


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0x4B50], ids=hex)
def test_a_header_whose_length_looks_like_a_pickle_is_not_one(tmp_path: Path, length: int) -> None:
    """A safetensors file begins with its header's length: 640 is 80 02, as a pickle begins."""
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(1)}, path)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(length.to_bytes(8, "little") + data[8:end].ljust(length) + data[end:])
    assert torch.equal(load_file(path)["weight"], torch.ones(1))  # spaces at the end are allowed
    assert weights_file(tmp_path, path.name) == path


@pytest.mark.parametrize("name", ["pytorch_model.bin", "net.pt", "net.pth", "last.ckpt", "w.pkl"])
def test_a_folder_of_pickles_says_what_it_holds(stored: Stored, name: str) -> None:
    folder, load, weights = stored
    weights.unlink()
    bomb = Bomb(folder / "exploded")
    (weights.parent / name).write_bytes(pickle.dumps(bomb))
    message = refusal(load, folder)
    assert f"{weights.parent} holds {name}, a pickle" in message
    assert weights.name in message
    assert not bomb.path.exists()


def test_missing_keys_are_never_left_random(stored: Stored) -> None:
    """diffusers warns and initialises them; the purifier would then be a random network."""
    folder, load, weights = stored
    key = next(key for key in load_file(weights) if key.endswith("conv1.weight"))
    edit_weights(weights, lambda content: content.pop(key))
    message = refusal(load, folder)
    assert str(weights) in message
    assert key in message


def test_unexpected_keys_are_refused(stored: Stored) -> None:
    folder, load, weights = stored
    edit_weights(weights, lambda content: content.update({"extra.weight": torch.zeros(1)}))
    message = refusal(load, folder)
    assert str(weights) in message
    assert "extra.weight" in message


def test_weights_of_another_size_are_refused(stored: Stored) -> None:
    folder, load, weights = stored
    key = next(key for key in load_file(weights) if key.endswith("conv1.weight"))
    edit_weights(weights, lambda content: content.update({key: torch.zeros(1, 1, 1, 1)}))
    assert str(weights) in refusal(load, folder)
