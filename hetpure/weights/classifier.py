"""A classifier's folder: `config.json` (architecture and normalisation) and `model.safetensors`.

`config.json` holds `architecture`, its arguments `network`, `mean` and `std` (a number a channel).
The architecture is a name of `ARCHITECTURES`, a network of another library ("timm:NAME", see
`hetpure.classifiers.adapters`), or the import path of any installed `nn.Module` class
("my_package.Net"). `num_classes`, `in_channels` and `attention_blocks` (module names) may stand
beside it; otherwise they come from `network` and from the class. Other keys are refused. An import
runs that package's code, so such a folder needs the trust that the package has.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hetpure.classifiers import (
    Classifier,
    DeepMindWideResNet,
    MeliketoyWideResNet,
    ResNet,
    VisionTransformer,
    WideResNet,
)
from hetpure.classifiers.adapters import ADAPTERS, advice
from hetpure.errors import InputError
from hetpure.trust import check_ours, import_named
from hetpure.weights.folders import (
    check_numbers,
    in_one_line,
    read_json,
    resolve,
    weights_file,
)

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "DeepMindWideResNet": DeepMindWideResNet,
    "MeliketoyWideResNet": MeliketoyWideResNet,
    "ResNet": ResNet,
    "VisionTransformer": VisionTransformer,
    "WideResNet": WideResNet,
}
CONFIG, WEIGHTS = "config.json", "model.safetensors"
KEYS = ("architecture", "network", "mean", "std", "num_classes", "in_channels", "attention_blocks")


def load_classifier(name: str | Path) -> Classifier:
    """The classifier of a packaged name or folder, frozen and in eval mode."""
    folder = resolve(name)
    if (folder / "unet").is_dir():
        raise InputError(f"{folder} is a diffusion's folder, no classifier's")
    classifier = build_classifier(read_json(folder / CONFIG), where=folder / CONFIG)
    path = weights_file(folder, WEIGHTS)
    try:
        classifier.network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{path} cannot be loaded: {in_one_line(error)}") from None
    check_numbers(path, classifier.network)
    return classifier.eval().requires_grad_(False)


def find_architecture(name: str) -> Callable[..., nn.Module]:
    """What builds the network of a registered name, of another library's ("timm:NAME"), or of a
    dotted import path; nothing is called.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    check_ours(name)
    library, colon, model = name.partition(":")
    module, _, _ = name.rpartition(".")
    if library not in ADAPTERS if colon else not module:
        raise InputError(
            f"architecture {name!r} is unknown: give one of {', '.join(ARCHITECTURES)}, a network "
            f"of another library ({', '.join(f'{key}:NAME' for key in ADAPTERS)}), or the import "
            "path of a class (my_package.Net)"
        )
    try:
        if colon:
            return ADAPTERS[library](model)
        network_class = import_named(name)
    except InputError:
        raise
    # A foreign module runs while it is imported: it can raise anything, or exit.
    except SystemExit:
        exits = library if colon else module
        raise InputError(f"architecture {name!r} cannot be imported: {exits} exits") from None
    except Exception as error:
        reason = in_one_line(error) + advice(name)
        raise InputError(f"architecture {name!r} cannot be imported: {reason}") from None
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        raise InputError(f"architecture {name!r} is no nn.Module class")
    return network_class


def takes(architecture: str, argument: str) -> bool:
    """Whether what builds a network of that name has such an argument."""
    parameters = inspect.signature(find_architecture(architecture)).parameters.values()
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)


def declared(config: dict[str, Any], key: str) -> int:
    """`num_classes` or `in_channels`: of a foreign class from the top level or from `network`; of
    a registered one from `network`, and the top level must agree.
    """
    network = config["network"]
    registered = config["architecture"] in ARCHITECTURES
    source = config if key in config and not registered else network
    if key not in source:
        raise ValueError(f"{key} is missing")
    value = source[key]
    if config.get(key, value) != value:
        raise ValueError(f"{key} is {config[key]}, but the network has {value}")
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} must be a positive integer, got {value!r}")
    return value


def build_classifier(config: dict[str, Any], *, where: Path) -> Classifier:
    """A classifier with fresh weights from the content of its `config.json`."""
    try:
        unknown = [key for key in config if key not in KEYS]
        if unknown:
            raise ValueError(f"key {unknown[0]!r} is not understood: keys are {', '.join(KEYS)}")
        channels = declared(config, "in_channels")
        if not channels == len(config["mean"]) == len(config["std"]):
            raise ValueError(f"mean and std need one number for each of {channels} channels")
        blocks = config.get("attention_blocks")
        if not (blocks is None or isinstance(blocks, list)):
            raise ValueError(f"attention_blocks must be a list of module names, got {blocks!r}")
        return Classifier(
            find_architecture(config["architecture"])(**config["network"]),
            num_classes=declared(config, "num_classes"),
            mean=config["mean"],
            std=config["std"],
            attention_blocks=blocks,
        )
    except InputError as error:
        raise InputError(f"{where} describes no classifier: {error}") from None
    # The constructor of a foreign class can raise anything.
    except Exception as error:
        raise InputError(f"{where} describes no classifier: {in_one_line(error)}") from None


def save_classifier(folder: Path, classifier: Classifier, config: dict[str, Any]) -> None:
    """Writes the folder that `load_classifier` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    weights = {key: value.contiguous() for key, value in classifier.network.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
