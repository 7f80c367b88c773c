"""Networks of other libraries, imported only when a classifier's folder asks for one.

An architecture "LIBRARY:NAME" gives a function that builds the network with fresh weights; its
arguments are the `network` of `config.json`. State-dict keys are the library's own, so published
safetensors of the library load. Nothing is downloaded and no pickle is read.
"""

import importlib
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hetpure.errors import InputError

Build = Callable[..., nn.Module]


def timm_model(name: str) -> Build:
    """`timm.create_model(name)`; arguments as there (`num_classes`, `in_chans`)."""
    # Names with a colon or a slash are addresses: timm would download or read what is there.
    if not re.fullmatch(r"[\w.]+", name):
        raise InputError(f"timm:{name}: give the name of one of timm's models, no address")
    timm = importlib.import_module("timm")
    # Not bound beforehand: these two arguments given once more are an error.
    return lambda **settings: timm.create_model(
        name, pretrained=False, checkpoint_path="", **settings
    )


def transformers_model(kind: str) -> Build:
    """The image classifier of a model type ("vit"); arguments are those of its configuration."""
    library = importlib.import_module("transformers")

    def build(**settings: Any) -> nn.Module:
        config = library.AutoConfig.for_model(kind, **settings)
        automatic = library.AutoModelForImageClassification
        network: nn.Module = automatic.from_config(config, trust_remote_code=False)
        network.register_forward_hook(lambda module, inputs, output: output.logits)
        return network

    return build


def robustbench_model(name: str) -> Build:
    """A network of the model zoo by "DATASET/THREAT/NAME" ("cifar10/Linf/Wong2020Fast").

    Most normalise by themselves: mean 0 and std 1 in `config.json`.
    """
    parts = name.split("/")
    if len(parts) != 3:
        raise InputError(f"robustbench:{name}: give DATASET/THREAT/NAME, as cifar10/Linf/Standard")
    dataset, threat, model = parts
    if dataset == "imagenet" and "Standard" in model:
        raise InputError(f"robustbench:{name} downloads weights when it is built: use ResNet")
    zoo = importlib.import_module("robustbench.model_zoo")
    enums = importlib.import_module("robustbench.model_zoo.enums")
    try:
        known = zoo.model_dicts[enums.BenchmarkDataset(dataset)][enums.ThreatModel(threat)]
        build: Build = known[model]["model"]
    except (KeyError, ValueError):
        raise InputError(f"robustbench:{name} is no network of its model zoo") from None
    return build


ADAPTERS: dict[str, Callable[[str], Build]] = {
    "timm": timm_model,
    "transformers": transformers_model,
    "robustbench": robustbench_model,
}


def advice(architecture: str) -> str:
    """What to do where the import failed: how a library above is installed, else nothing."""
    library = re.split(r"[:.]", architecture, maxsplit=1)[0]
    if library not in ADAPTERS:
        return ""
    return (
        f". Install it with: pip install 'hetpure[{library}]'. It imports torchvision, which must "
        f"be built for this torch ({torch.__version__}): install torch and torchvision from the "
        "same package index. A torchvision of another build fails with 'operator torchvision::nms "
        "does not exist'"
    )
