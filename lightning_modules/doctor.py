"""`hetpure doctor`: the weights and data that a config asks for, and which are missing here."""

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
from hetpure.weights.folders import resolve, source_hashes, unpinned
from hetpure.weights.hub import HUB, is_cached
from hetpure.weights.published import FILES

NETWORKS = ("classifier", "diffusion", "guide")  # keys that name a folder of weights
KINDS = {"evaluate": "test", "train": "fit"}  # of configs, and what they do with the data
NEXT = {"evaluate": "plan", "train": "train"}


def doctor(config: str) -> None:
    """Says whether the weights and data of a config are there. Exit code 1 where something is not.

    Args:
        config: a packaged config's name, as paper/hetpure_cifar10_wrn28, or a path. A name that an
            evaluation and a training have stands for both; train/NAME is the training alone.
    """
    found = _found(config)
    missing = 0
    for kind, path in found:
        if len(found) > 1:
            print(f"{kind}/{config}")
        content = _read(path)
        findings = [_network(name) for name in dict.fromkeys(networks_of(content))]
        if data := content.get("data"):
            findings.append(_data(data, KINDS[kind]))
        else:
            print("not looked at: the config names no data")
        for there, said in findings:
            print(f"{'there  ' if there else 'missing'}  {said}")
        lacking = sum(not there for there, _ in findings)
        missing += lacking
        if lacking:
            print(f"{lacking} of {len(findings)} are missing")
        else:
            name = config.removeprefix(f"{kind}/")
            print(f"everything is there; next: hetpure {NEXT[kind]} --config {name}")
    if missing:
        sys.exit(FAILED)


def _found(config: str) -> list[tuple[str, str]]:
    """Kinds and paths of the configs of this name."""
    kind, _, name = config.partition("/")
    if kind in KINDS and name in names(kind):
        return [(kind, find(kind, name))]
    packaged = [(kind, find(kind, config)) for kind in KINDS if config in names(kind)]
    if packaged and not Path(config).is_file():
        return packaged
    path = find("evaluate", config)
    return [("train" if "class_path" in _read(path)["model"] else "evaluate", path)]


def _read(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{path} is no config of an evaluation or a training: it has no `model`")
    return content


def networks_of(settings: Any) -> Iterator[str]:
    """What weights a config, or a part of one, names."""
    if isinstance(settings, list):
        for part in settings:
            yield from networks_of(part)
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        if key == "denoisers":
            yield from _texts(value, key)
        elif key in NETWORKS and value is not None:
            yield from _texts({key: value}, key)
        else:
            yield from networks_of(value)


def _texts(named: Any, where: str) -> Iterator[str]:
    """Names of weights. InputError where they are none."""
    if not isinstance(named, dict) or not all(isinstance(v, str) for v in named.values()):
        raise InputError(f"{where}: {named!r}: a name or a folder of weights is needed")
    yield from named.values()


def _network(name: str) -> tuple[bool, str]:
    """Whether weights are there, and what is known of them or what to do."""
    if name.startswith(HUB):
        return True, f"{name}: {'in the cache' if is_cached(name) else 'a run downloads it'}"
    try:
        folder = resolve(name)
    except InputError as error:
        return False, str(error)
    path, digest = unpinned(name)
    file = FILES.get(Path(path).name)
    if file is None:
        return True, path
    if digest is not None:
        return True, f"{path}: converted from the published file"
    same = file.matches(source_hashes(folder))
    if same is None:
        return True, f"{path}: not compared with the published file ({file.hash})"
    return True, f"{path}: converted from {'that' if same else 'another'} file ({file.hash})"


def _data(data: Mapping[str, Any], stage: str) -> tuple[bool, str]:
    """Whether the images are there, and what to do where not."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        images = parser.instantiate(parser.parse_object({"data": dict(data)})).data
        if getattr(images, "download", False):
            return True, f"{data['class_path']}: downloads what is missing"
        images.setup(stage)
    except Exception as error:
        links = (link for link in causes(error) if isinstance(link, InputError | ArgumentError))
        if (mistake := next(links, None)) is None:
            raise
        return False, " ".join(str(mistake).split())
    return True, f"{getattr(images, 'title', data['class_path'])}: the images are there"


def main(arguments: list[str]) -> None:
    """Parses the arguments and looks."""
    parser = parser_of(doctor, "config")
    parser.add_argument("config", help="a packaged config's name, or a path")
    call(doctor, arguments, parser)
