"""Small folders of weights, and ways to spoil them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hetpure.classifiers import Classifier, WideResNet
from hetpure.errors import InputError
from hetpure.noise import Noise, Purpose, Stream
from hetpure.weights import save_classifier, save_diffusion
from hetpure.weights.classifier import build_classifier
from tests.hetpure.networks import tiny_unet

CONFIG: dict[str, Any] = {
    "architecture": "WideResNet",
    "network": {"depth": 10, "widen_factor": 1, "num_classes": 4, "in_channels": 3},
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
}
UNET_WEIGHTS = "diffusion_pytorch_model.safetensors"
Loader = Callable[[Path], nn.Module]


def pixels(count: int = 2) -> Tensor:
    like = torch.empty(count, 3, 8, 8)
    return Noise.of(0, Stream.PROBE).on(torch.arange(count)).uniform(Purpose.FORWARD, like)


def classifier_folder(tmp_path: Path) -> tuple[Path, Classifier]:
    """A folder and what was saved there, with batch norms as after training."""
    classifier = Classifier(
        WideResNet(**CONFIG["network"]), num_classes=4, mean=CONFIG["mean"], std=CONFIG["std"]
    )
    classifier(pixels(8))  # in training mode: moves the running means
    folder = tmp_path / "classifier"
    save_classifier(folder, classifier, CONFIG)
    return folder, classifier.eval()


def diffusion_folder(tmp_path: Path, **scheduler: Any) -> tuple[Path, UNet2DModel]:
    folder, unet = tmp_path / "diffusion", tiny_unet()
    save_diffusion(folder, unet, DDPMScheduler(**scheduler))
    return folder, unet


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def refusal(load: Callable[[Path], object], folder: Path) -> str:
    """The message of the InputError, which must be one readable line."""
    with pytest.raises(InputError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert 10 < len(message) < 600
    return message


def refused_config(config: dict[str, Any]) -> str:
    """The line by which a classifier's config is refused."""
    with pytest.raises(InputError) as error:
        build_classifier(config, where=Path("config.json"))
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("config.json describes no classifier: ")
    return message
