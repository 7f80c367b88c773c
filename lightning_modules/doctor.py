"""`hetpure doctor`: what a config asks for, and what of it is missing on this machine."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning import LightningDataModule

from hetpure.commands.parsing import call, parser_of
from hetpure.errors import InputError, causes
from hetpure.packaged_configs import find, names
from hetpure.program import FAILED
from hetpure.weights.folders import resolve, unpinned
from hetpure.weights.hub import HUB
from hetpure.weights.published import FILES

NETWORKS = ("classifier", "diffusion", "guide")  # options that name a folder of weights
KINDS = {"evaluate": "test", "train": "fit"}  # of configs, and what they do with the data


def doctor(config: str) -> None:
    """Says whether the weights and data of a config are there. Exit code 1 where something is not.

    Args:
        config: a packaged config's name, as paper/hetpure_cifar10_wrn28, or a path.
    """
    kind, path = _found(config)
    content = _read(path)
    findings = [_network(name) for name in dict.fromkeys(networks_of(content["model"]))]
    if data := content.get("data"):
        findings.append(_data(data, KINDS[kind]))
    for there, said in findings:
        print(f"{'there  ' if there else 'missing'}  {said}")
    missing = sum(not there for there, _ in findings)
    if missing:
        print(f"{missing} of {len(findings)} are missing")
        sys.exit(FAILED)
    command = "plan" if kind == "evaluate" else "train"
    print(f"everything is there; next: hetpure {command} --config {config}")


def _found(config: str) -> tuple[str, str]:
    """The kind and the path of a config."""
    for kind in KINDS:
        if config in names(kind):
            return kind, find(kind, config)
    path = find("evaluate", config)
    content = _read(path)
    return ("train" if "class_path" in content["model"] else "evaluate"), path


def _read(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{path} is no config of an evaluation or a training: it has no `model`")
    return content


def networks_of(settings: Mapping[str, Any]) -> Iterator[str]:
    """What weights a part of a config names."""
    for key, value in settings.items():
        if key in NETWORKS and isinstance(value, str):
            yield value
        elif key == "denoisers" and isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, dict):
            yield from networks_of(value)


def _network(name: str) -> tuple[bool, str]:
    """Whether weights are there, and what is known of them or what to do."""
    if name.startswith(HUB):
        return True, f"{name}: taken from the hub, or from its cache"
    try:
        resolve(name)
    except InputError as error:
        return False, str(error)
    path, digest = unpinned(name)
    file = FILES.get(Path(path).name)
    compared = "" if file is None else ": of the published file" if digest else f": {file.hash}"
    return True, path + compared


def _data(data: Mapping[str, Any], stage: str) -> tuple[bool, str]:
    """Whether the images are there, and what to do where not."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        images = parser.instantiate(parser.parse_object({"data": data})).data
        images.setup(stage)
    except Exception as error:
        links = (link for link in causes(error) if isinstance(link, InputError | ArgumentError))
        if (mistake := next(links, None)) is None:
            raise
        return False, " ".join(str(mistake).split())
    return True, f"{images.title}: {images.origin}"


def main(arguments: list[str]) -> None:
    """Parses the arguments and looks."""
    parser = parser_of(doctor, "config")
    parser.add_argument("config", help="a packaged config's name, or a path")
    call(doctor, arguments, parser)
