"""Classifiers that a config names: the registered architectures, and a class of the user's own."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hetpure.attention import AttentionMask
from hetpure.weights import load_classifier, save_classifier
from hetpure.weights.classifier import ARCHITECTURES, build_classifier
from tests.hetpure.weights.folders import refused_config

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width, fails=False):
        super().__init__()
        assert not fails, "no such net"
        self.stem = torch.nn.Conv2d(3, width, 3, padding=1)
        self.act = torch.nn.ReLU()
        self.head = torch.nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.act(self.stem(x)).mean((2, 3)))

calls = []

def make(**settings):
    calls.append(settings)
    return Net(4)

class Data:
    def __init__(self, **settings):
        calls.append(settings)

net = Net(4)
"""
OWN: dict[str, Any] = {
    "architecture": "foreign_net.Net",
    "network": {"width": 4},
    "num_classes": 5,
    "in_channels": 3,
    "attention_blocks": ["act"],
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
}


def images(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable `foreign_net`, and modules that fail or exit while they are imported."""
    (tmp_path / "foreign_net.py").write_text(NET)
    (tmp_path / "foreign_broken.py").write_text("raise OSError('torn')\n")
    (tmp_path / "foreign_exit.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_net", raising=False)
    return tmp_path


def test_registered_architectures_load(tmp_path: Path) -> None:
    """Mean and std of a config, the network's own blocks, and a round trip bit for bit."""
    networks: dict[str, dict[str, Any]] = {
        "DeepMindWideResNet": {"depth": 10, "widen_factor": 1, "activation": "silu"},
        "MeliketoyWideResNet": {"depth": 10, "widen_factor": 1},
        "ResNet": {"depth": 18},
        "VisionTransformer": {"image_size": 32, "patch_size": 8, "width": 12, "depth": 4},
        "WideResNet": {"depth": 10, "widen_factor": 1},
    }
    assert set(networks) == set(ARCHITECTURES)
    for name, settings in networks.items():
        network = {**settings, "num_classes": 5, "in_channels": 3}
        config = {"architecture": name, "network": network, "mean": [0.5] * 3, "std": [0.2] * 3}
        saved = build_classifier(config, where=tmp_path).eval()
        save_classifier(tmp_path / name, saved, config)
        loaded = load_classifier(tmp_path / name)
        assert torch.equal(loaded(images(32)), saved(images(32)))
        assert len(loaded.attention_blocks) == 4
        assert "in_channels is 1" in refused_config({**config, "in_channels": 1})
        assert "num_classes is 6" in refused_config({**config, "num_classes": 6})


def test_a_class_of_the_users_own_loads(foreign: Path) -> None:
    saved = build_classifier(OWN, where=foreign)
    save_classifier(foreign / "own", saved, OWN)
    loaded = load_classifier(foreign / "own")
    assert torch.equal(loaded(images(16)), saved(images(16)))
    assert (loaded.num_classes, loaded.channels) == (5, 3)
    assert loaded.attention_blocks == ("act",)
    assert AttentionMask(threshold=0.5)(loaded, images(16)).shape == (2, 1, 16, 16)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": "Net"}, "'Net' is unknown: .*ResNet.*import path"),
        ({"architecture": "foreign_absent.Net"}, "No module named 'foreign_absent'"),
        ({"architecture": "foreign_net.Absent"}, "no attribute 'Absent'"),
        ({"architecture": "foreign_broken.Net"}, "cannot be imported: torn"),
        ({"architecture": "foreign_exit.Net"}, "foreign_exit exits"),
        ({"architecture": "foreign_net.make"}, "no nn.Module class"),
        ({"architecture": "foreign_net.Data"}, "no nn.Module class"),
        ({"architecture": "foreign_net.net"}, "no nn.Module class"),
        ({"architecture": "os.system"}, "no nn.Module class"),
        ({"architecture": "..foreign_net.Net"}, "cannot be imported"),
        ({"architecture": 3}, ""),
        ({"network": {"width": 4, "fails": True}}, "no such net"),
        ({"network": {}}, "width"),
        ({"network": [4]}, ""),
        ({"mean": 0.5}, ""),
        ({"std": None}, ""),
        ({"num_classes": 0}, "num_classes must be a positive integer, got 0"),
        ({"num_classes": "5"}, "num_classes must be a positive integer"),
        ({"in_channels": 1}, "for each of 1 channels"),
        ({"attention_blocks": "act"}, "must be a list of module names"),
        ({"attention_blocks": ["layer9"]}, "'layer9' is no module"),
        ({"attention_blocks": [["act"]]}, ""),
        ({"normalise": True}, "key 'normalise' is not understood: keys are architecture, .*blocks"),
        ({"Mean": [0.1] * 3}, "key 'Mean' is not understood"),
        ({"activation": "silu"}, "key 'activation' is not understood"),
        ({"mean": [125.3, 123.0, 113.9]}, "not of pixels in .*divide those of 0..255 by 255"),
        ({"std": [63.0, 62.1, 66.7]}, "not of pixels in .*divide those of 0..255 by 255"),
        ({"mean": [0.5, 0.5, float("nan")]}, "nan is no finite number"),
        ({"std": [0.5, True, 0.5]}, "True is no finite number"),
        ({"mean": ["0.5", "0.5", "0.5"]}, "'0.5' is no finite number"),
    ],
    ids=str,
)
def test_a_config_that_fits_no_class_is_refused(
    foreign: Path, change: dict[str, Any], says: str
) -> None:
    assert re.search(says, refused_config({**OWN, **change}))
    if "foreign_net" in str(change):
        assert importlib.import_module("foreign_net").calls == []


@pytest.mark.parametrize("key", ["num_classes", "in_channels"])
def test_a_number_that_stands_nowhere_is_named(foreign: Path, key: str) -> None:
    config = {name: value for name, value in OWN.items() if name != key}
    assert f"{key} is missing" in refused_config(config)
