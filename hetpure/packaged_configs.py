"""The configs that come along: `configs/` of a clone, `hetpure/configs` in a wheel."""

import re
from collections.abc import Sequence
from pathlib import Path

from hetpure.errors import InputError

WHEELS, CLONES = Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs"
CONFIGS = WHEELS if WHEELS.is_dir() else CLONES
OPTIONS = {"--model.attack": "attack"}  # options besides --config that read a file


def names(kind: str) -> dict[str, Path]:
    """The configs of a kind (a folder: evaluate, train, tune, attack) by their names."""
    folder = CONFIGS / kind
    files = sorted(folder.rglob("*.yaml"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def find(kind: str, name: str) -> str:
    """Path of a config that is given by its path or its name. InputError where a plain word is
    neither, and of a folder."""
    path, packaged = Path(name).expanduser(), names(kind)
    if path.is_file():
        return str(path)
    if name in packaged:
        return str(packaged[name])
    if path.is_dir():
        raise InputError(f"--config {name} is a folder: give a file, as {path / 'my.yaml'}")
    if path.suffix:
        return str(path)
    raise InputError(
        f"--config {name}: there is no such file, and no packaged config of that name:"
        f" {', '.join(packaged)}"
    )


def with_paths(kind: str, arguments: Sequence[str], default: str | None = None) -> list[str]:
    """Arguments with the paths of the configs that they name, led by the default's where they name
    none."""
    options = {"--config": kind, **OPTIONS}
    given = [re.sub(r"^-c=?", "--config=", a) if re.match("-c.", a) else a for a in arguments]
    given = ["--config" if argument == "-c" else argument for argument in given]
    for place, argument in enumerate(given):
        option, equals, value = argument.partition("=")
        if option not in options:
            continue
        where = place if equals else place + 1
        value = value if equals else "".join(given[where : where + 1])
        if option in OPTIONS and value not in names(options[option]):
            continue  # a class, or values
        if value:
            path = find(options[option], value)
            given[where] = f"{option}={path}" if equals else path
    named = any(argument.partition("=")[0] == "--config" for argument in given)
    return given if named or default is None else ["--config", find(kind, default), *given]
