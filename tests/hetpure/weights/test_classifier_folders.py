"""Classifiers on disk: what was saved is loaded; folders have names and hashes."""

import json
import re
import shutil
from pathlib import Path

import torch

from hetpure.weights import ASSETS, folder_hash, load_classifier, resolve, save_classifier
from tests.hetpure.weights.folders import CONFIG, classifier_folder, edit, pixels


def test_classifier_round_trip(tmp_path: Path) -> None:
    folder, saved = classifier_folder(tmp_path)
    loaded = load_classifier(folder)
    assert torch.equal(loaded(pixels()), saved(pixels()))
    assert loaded.attention_blocks == saved.attention_blocks
    assert (loaded.num_classes, loaded.channels) == (4, 3)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert load_classifier(str(folder)).num_classes == 4


def test_classifier_saved_in_another_memory_format_loads(tmp_path: Path) -> None:
    """safetensors refuses tensors that are not contiguous; channels_last training makes them."""
    folder, saved = classifier_folder(tmp_path)
    for parameter in saved.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    save_classifier(tmp_path / "last", saved, CONFIG)
    assert folder_hash(tmp_path / "last") == folder_hash(folder)


def test_a_packaged_name_is_its_folder() -> None:
    names = [path.name for path in ASSETS.iterdir() if path.is_dir()]
    assert names
    for name in names:
        assert resolve(name) == ASSETS / name


def test_packaged_classifiers_load() -> None:
    for config in ASSETS.glob("*/config.json"):
        if "architecture" in json.loads(config.read_text()):
            classifier = load_classifier(config.parent.name)
            shape = (1, classifier.channels, 28, 28)
            assert classifier(torch.zeros(shape)).shape == (1, classifier.num_classes)


def test_hash_is_of_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    folder, _ = classifier_folder(tmp_path)
    original = folder_hash(folder)
    assert re.fullmatch("[0-9a-f]{64}", original)
    copied = shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    assert folder_hash(copied) == original
    (copied / "README.md").write_text("notes are no weights")
    assert folder_hash(copied) == original

    changed = {"original": original}
    data = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    changed["one bit of a weight"] = folder_hash(copied)
    (copied / "model.safetensors").write_bytes(data)
    assert folder_hash(copied) == original
    edit(copied / "config.json", lambda content: content.update(mean=[0.4, 0.5, 0.61]))
    changed["the mean"] = folder_hash(copied)
    shutil.copy(folder / "config.json", copied / "config.json")
    (copied / "sub").mkdir()
    (copied / "model.safetensors").rename(copied / "sub" / "model.safetensors")
    changed["a file's place"] = folder_hash(copied)
    (copied / "extra.json").write_text("{}")
    changed["one more file"] = folder_hash(copied)
    assert len(set(changed.values())) == len(changed)
