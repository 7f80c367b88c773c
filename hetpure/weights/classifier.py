"""A classifier's folder: `config.json` (architecture and normalisation) and `model.safetensors`."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hetpure.classifiers import Classifier, WideResNet
from hetpure.errors import InputError
from hetpure.weights.folders import in_one_line, read_json, resolve, weights_file

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
        raise InputError(f"{path} cannot be loaded: {in_one_line(error)}") from None
    return classifier.eval().requires_grad_(False)


def build_classifier(config: dict[str, Any], *, where: Path) -> Classifier:
    """A classifier with fresh weights from the content of its `config.json`."""
    try:
        network = config["network"]
        channels = network["in_channels"]
        if not channels == len(config["mean"]) == len(config["std"]):
            raise ValueError(f"mean and std need one number for each of {channels} channels")
        return Classifier(
            ARCHITECTURES[config["architecture"]](**network),
            num_classes=network["num_classes"],
            mean=config["mean"],
            std=config["std"],
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{where} describes no classifier: {in_one_line(error)}") from None


def save_classifier(folder: Path, classifier: Classifier, config: dict[str, Any]) -> None:
    """Writes the folder that `load_classifier` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    weights = {key: value.contiguous() for key, value in classifier.network.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
