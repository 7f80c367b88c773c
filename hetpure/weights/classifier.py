"""A classifier's folder: `config.json` (architecture and normalisation) and `model.safetensors`."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hetpure.classifiers import Classifier, WideResNet
from hetpure.errors import InputError
from hetpure.weights.folders import read_json, resolve, weights_file

ARCHITECTURES = {"WideResNet": WideResNet}
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def load_classifier(name: str | Path) -> Classifier:
    """The classifier of a packaged name or folder, frozen and in eval mode."""
    folder = resolve(name)
    classifier = build_classifier(read_json(folder / CONFIG), where=folder / CONFIG)
    path = weights_file(folder, WEIGHTS)
    try:
        classifier.network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{path} cannot be loaded: {_first_line(error)}") from None
    return classifier.eval().requires_grad_(False)


def build_classifier(config: dict[str, Any], *, where: Path) -> Classifier:
    """A classifier with fresh weights from the content of its `config.json`."""
    try:
        architecture = ARCHITECTURES[config["architecture"]]
        network = architecture(**config["network"])
        return Classifier(
            network,
            num_classes=config["network"]["num_classes"],
            mean=config["mean"],
            std=config["std"],
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{where} describes no classifier: {_first_line(error)}") from None


def save_classifier(folder: Path, classifier: Classifier, config: dict[str, Any]) -> None:
    """Writes the folder that `load_classifier` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    weights = {key: value.contiguous() for key, value in classifier.network.state_dict().items()}
    save_file(weights, folder / WEIGHTS)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
