"""Networks of timm, transformers and RobustBench, by a folder's config.

None of the three is installed where these tests run, since each brings torchvision. Stand-ins of
their names and signatures show what the adapters ask of them; the real libraries are not run.
"""

import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hetpure.attention import AttentionMask
from hetpure.classifiers.adapters import ADAPTERS
from hetpure.errors import InputError
from hetpure.weights import load_classifier
from hetpure.weights.classifier import build_classifier, find_architecture
from tests.hetpure.weights.folders import edit, refused_config

Install = Callable[..., None]
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stem(x).relu().mean((2, 3)))
        return logits


class WithOutput(Net):
    """As transformers' networks: the logits are an attribute of what is returned."""

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(x))


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    def put(name: str, **content: Any) -> None:
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)

    return put


def config(architecture: str, network: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "network": network,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "num_classes": 5,
        "in_channels": 3,
        **more,
    }


def folder(path: Path, content: dict[str, Any], weights: nn.Module) -> Path:
    """Weights as the library publishes them, beside our config."""
    path.mkdir()
    (path / "config.json").write_text("{}")
    edit(path / "config.json", lambda empty: empty.update(content))
    save_file(weights.state_dict(), path / "model.safetensors")
    return path


def test_a_timm_network_loads_under_timms_own_names(tmp_path: Path, install: Install) -> None:
    calls: list[tuple[Any, ...]] = []

    def create_model(
        model_name: str, pretrained: bool = True, checkpoint_path: str = "weights", **kwargs: Any
    ) -> nn.Module:
        calls.append((model_name, pretrained, checkpoint_path))
        return Net(kwargs["num_classes"], kwargs["in_chans"])

    install("timm", create_model=create_model)
    network = {"num_classes": 5, "in_chans": 3}
    published = Net(5)
    content = config("timm:convnext_tiny.fb_in1k", network, attention_blocks=["stem"])
    loaded = load_classifier(folder(tmp_path / "timm", content, published))
    assert calls == [("convnext_tiny.fb_in1k", False, "")]  # nothing fetched, no pickle read
    torch.testing.assert_close(loaded(IMAGES), published((IMAGES - 0.5) / 0.25))
    assert AttentionMask(threshold=0.5)(loaded, IMAGES).shape == (2, 1, 8, 8)
    for more in ({"pretrained": True}, {"checkpoint_path": "model.pth"}):
        assert "multiple values" in refused_config(config("timm:resnet50", {**network, **more}))
    for name in ("hf-hub:owner/net", "hf_hub:owner/net", "local-dir:net", "../net", ""):
        assert "no address" in refused_config(config(f"timm:{name}", network))
    assert len(calls) == 1


def test_a_transformers_network_gives_its_logits(tmp_path: Path, install: Install) -> None:
    calls: list[Any] = []

    def from_config(settings: SimpleNamespace, **kwargs: Any) -> nn.Module:
        calls.append((settings.kind, kwargs))
        return WithOutput(settings.num_labels)

    install(
        "transformers",
        AutoConfig=SimpleNamespace(
            for_model=lambda model_type, **kwargs: SimpleNamespace(kind=model_type, **kwargs)
        ),
        AutoModelForImageClassification=SimpleNamespace(from_config=from_config),
    )
    published = Net(5)
    content = config("transformers:vit", {"num_labels": 5})
    loaded = load_classifier(folder(tmp_path / "transformers", content, published))
    assert calls == [("vit", {"trust_remote_code": False})]
    torch.testing.assert_close(loaded(IMAGES), published((IMAGES - 0.5) / 0.25))


def test_a_network_of_robustbenchs_zoo_by_its_name(install: Install) -> None:
    datasets = Enum("datasets", {"cifar_10": "cifar10", "imagenet": "imagenet"})
    threats = Enum("threats", {"Linf": "Linf", "L2": "L2"})
    entries = {"Wong2020Fast": {"model": lambda: Net(5), "gdrive_id": "never asked"}}
    dicts = {datasets["cifar_10"]: {threats["Linf"]: entries}}
    install("robustbench")
    install("robustbench.model_zoo", model_dicts=dicts)
    install("robustbench.model_zoo.enums", BenchmarkDataset=datasets, ThreatModel=threats)
    built = build_classifier(config("robustbench:cifar10/Linf/Wong2020Fast", {}), where=Path())
    assert isinstance(built.network, Net)
    for name in ("cifar10/Linf/Wong2021", "cifar10/L2/Wong2020Fast", "svhn/Linf/Wong2020Fast"):
        assert "is no network of its model zoo" in refused_config(config(f"robustbench:{name}", {}))
    assert "DATASET/THREAT/NAME" in refused_config(config("robustbench:Wong2020Fast", {}))
    # Its constructor asks torchvision for trained weights.
    message = refused_config(config("robustbench:imagenet/Linf/Standard_R50", {}))
    assert "downloads weights when it is built" in message


NAMES = {"timm": "resnet50", "transformers": "vit", "robustbench": "cifar10/Linf/Standard"}


@pytest.mark.parametrize("library", ADAPTERS)
def test_an_absent_library_is_explained(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    for architecture in (f"{library}:{NAMES[library]}", f"{library}.models.Net"):
        message = refused_config(config(architecture, {}))
        assert f"architecture '{architecture}' cannot be imported: " in message
        assert f"pip install 'hetpure[{library}]'" in message
        assert torch.__version__ in message
        assert "torch and torchvision from the same package index" in message


def test_an_unknown_library_is_refused_with_the_known_ones() -> None:
    message = refused_config(config("keras:resnet50", {}))
    assert "'keras:resnet50' is unknown" in message
    assert "timm:NAME, transformers:NAME, robustbench:NAME" in message
    with pytest.raises(InputError, match="is unknown"):
        find_architecture(":resnet50")
