"""The options that set what a class refuses: the core names the field, a command line the path."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from os.path import expanduser
from typing import Any

from jsonargparse import Namespace

from hetpure.errors import FieldError, InputError, causes


@contextmanager
def naming_options(config: Namespace) -> Iterator[None]:
    """Within it a FieldError becomes an InputError that names the option of the parsed config: the
    one that sets the field, or the first of several. It stays as it is where the config has no such
    class with such a value."""
    try:
        yield
    except Exception as error:
        for cause in causes(error):
            if isinstance(cause, FieldError) and (
                options := list(_options(cause, config.as_dict(), ""))
            ):
                others = f" (or {', '.join(options[1:])})" if len(options) > 1 else ""
                raise InputError(f"{options[0]} {cause.problem}{others}") from error
        raise


def home_expanded(config: Namespace) -> Namespace:
    """A parsed config in which values that begin with `~/` begin with the home folder, as a shell
    makes them where it sees the `~`."""
    for key, value in config.items():
        if isinstance(value, str) and value.startswith("~/"):
            config[key] = expanduser(value)
    return config


def _options(error: FieldError, value: Any, path: str) -> Iterator[str]:
    """Dotted keys of a part of a config whose class and field and value are the error's."""
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _options(error, entry, path)
    if not isinstance(value, Mapping):
        return
    name, settings = value.get("class_path"), value
    if isinstance(name, str):
        settings = value.get("init_args", {})
        is_owners = name.rpartition(".")[2] == type(error.owner).__name__
    else:  # a dataclass stands in a config without its name
        is_owners = settings.keys() == signature(type(error.owner)).parameters.keys()
    for key, child in settings.items():
        if is_owners and key == error.field and child == getattr(error.owner, key, child):
            yield f"--{path}{key}"
        yield from _options(error, child, f"{path}{key}.")
