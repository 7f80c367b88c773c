"""The options that set what a class refuses: the core names the field, a command line the path."""

import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

from hetpure.errors import FieldError, InputError


@contextmanager
def naming_options(config: Any) -> Iterator[None]:
    """Within it a FieldError becomes an InputError that names the option of the parsed config."""
    try:
        yield
    except Exception as error:
        field_error = _field_error(error)
        if field_error is None:
            raise
        raise InputError(named(field_error, config)) from error


def named(error: FieldError, config: Any) -> str:
    """What the error says, led by the option that sets the field, or the first of several; as the
    core says it where the config has no such class with such a value."""
    options = list(_options(error, config, ""))
    if not options:
        return str(error)
    others = f" (or {', '.join(options[1:])})" if len(options) > 1 else ""
    return f"{options[0]} {error.said}{others}"


def _field_error(error: BaseException | None) -> FieldError | None:
    """The error or the one that it came from: jsonargparse wraps what constructors say."""
    while error is not None and not isinstance(error, FieldError):
        error = error.__cause__ or error.__context__
    return error


def _options(error: FieldError, value: Any, path: str) -> Iterator[str]:
    """Dotted keys of a part of a config whose class and field and value are the error's."""
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _options(error, entry, path)
    settings = _mapping(value)
    if settings is None:
        return
    name = settings.get("class_path")
    if isinstance(name, str):
        settings = _mapping(settings.get("init_args")) or {}
        is_owners = _resolved(name) is type(error.owner)
    else:  # a dataclass stands in a config without its name
        is_owners = settings.keys() == signature(type(error.owner)).parameters.keys()
    for key, child in settings.items():
        if is_owners and key == error.field and child == getattr(error.owner, key, child):
            yield f"--{path}{key}"
        yield from _options(error, child, f"{path}{key}.")


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """A mapping, or what jsonargparse makes of one."""
    if isinstance(value, Mapping):
        return value
    return vars(value) if type(value).__name__ == "Namespace" else None


def _resolved(name: str) -> object:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return None
