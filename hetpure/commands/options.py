"""The options of a command line in its errors: the core names a class and a field, a parser nests
what it tried; a user is told the option and what is wrong with it, in one line."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from inspect import signature
from os.path import expanduser
from pydoc import locate
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from hetpure.errors import FieldError, InputError, causes

# What jsonargparse's errors say, from the outermost to the innermost.
KEY = re.compile(r'Parser key "([^"]+)":')
CLASS = re.compile(r"Problem with given class_path '([^']+)'")
UNKNOWN = re.compile(r"(?:Group '(.+)' does not accept option|Option) '(.+)'")
UNRECOGNIZED = "unrecognized arguments: "
TYPE = "Not of type "
EXPECTED = "Expected"
ALTERNATIVE = re.compile(
    r"Expected (?:a )?(?:typing\.Literal\[(.+?)\]|<class '(\w+)'>)\.?(?:$| Got)", re.MULTILINE
)
NEAR = 0.8  # of difflib's ratio


@contextmanager
def naming_options(config: Namespace) -> Iterator[None]:
    """Within it a FieldError becomes an InputError that names the option of the parsed config: the
    one that sets the field, or the first of several. It stays as it is where the config has no such
    class with such a value. So does a package that a class of the config needs and does not find.
    """
    try:
        yield
    except Exception as error:
        chain = causes(error)
        for cause in chain:
            if isinstance(cause, FieldError) and (
                options := list(_options(cause, config.as_dict(), ""))
            ):
                others = f" (or {', '.join(options[1:])})" if len(options) > 1 else ""
                raise InputError(f"{options[0]} {cause.problem}{others}") from error
        names = [match[1] for cause in chain for match in CLASS.finditer(str(cause))]
        if isinstance(chain[-1], ImportError) and names:
            places = ", ".join(_places(names[-1], config.as_dict(), ""))
            raise InputError(f"{places} {names[-1]} cannot be used: {chain[-1]}") from error
        raise


@contextmanager
def parsing(parser: ArgumentParser) -> Iterator[None]:
    """Within it what the parser refuses becomes an InputError of one line: the option, what the
    innermost of its errors says, and for an unknown one the name that is nearest."""
    try:
        yield
    except ArgumentError as error:
        chain = causes(error)
        messages = list(dict.fromkeys(str(cause) for cause in chain))
        option = ".".join(match[1] for text in messages if (match := KEY.match(text)))
        classes = [match[1] for text in messages for match in CLASS.finditer(text)]
        message = next((str(cause) for cause in chain if isinstance(cause, InputError)), "")
        of_type = [text.partition(": ")[2] for text in messages if text.startswith(TYPE)]
        message = (message or next(iter(of_type), messages[-1])).strip().partition("\n")[0]
        if message.startswith(UNRECOGNIZED):
            name = message.removeprefix(UNRECOGNIZED).partition("=")[0]
            message = f"{name} is no option{_nearest(name.lstrip('-'), [], parser)}"
            if name.endswith((".yaml", ".yml")):
                message = f"{name} is no option: a config is given as --config {name}"
        elif unknown := UNKNOWN.match(message):
            name = ".".join(filter(None, (option, *unknown.groups())))
            message, option = f"--{name} is no option{_nearest(name, classes, parser)}", ""
        elif message.startswith(EXPECTED):  # of a union's types the last was tried last
            _, _, given = message.partition(" Got value: ")
            kinds = ALTERNATIVE.findall(messages[-2:][0]) or ALTERNATIVE.findall(message)
            kinds = [words or kind for words, kind in kinds if kind != "NoneType"]
            message = f"{EXPECTED} {' or '.join(kinds)}, got {given}" if kinds else message
        raise InputError(f"--{option}: {message}" if option else message) from error


def home_expanded(value: Any) -> Any:
    """A parsed config, or a part of it, in which `~`, alone or before a slash, is the home
    folder, as a shell makes them where it sees the `~`."""
    if isinstance(value, str):
        return expanduser(value) if value == "~" or value.startswith("~/") else value
    if isinstance(value, list | tuple):
        return type(value)(map(home_expanded, value))
    if isinstance(value, dict):
        return {key: home_expanded(entry) for key, entry in value.items()}
    if isinstance(value, Namespace):
        for key, entry in vars(value).items():
            value[key] = home_expanded(entry)
    return value


def _nearest(name: str, classes: list[str], parser: ArgumentParser) -> str:
    """Which option may be meant, of the innermost class or of the whole parser."""
    place, _, last = name.rpartition(".")
    known = list(parser.get_defaults().keys(branches=True))
    if classes:
        accepted = signature(locate(classes[-1])).parameters  # type: ignore[arg-type]
        near = [f"{place}.{match}" for match in get_close_matches(last, accepted, n=1)]
    else:
        near = get_close_matches(name, known, n=1, cutoff=NEAR)
    return f": did you mean --{near[0]}?" if near else ""


def _places(class_path: str, value: Any, path: str) -> Iterator[str]:
    """The options that are of this class, in a part of a config."""
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _places(class_path, entry, path)
    elif isinstance(value, Mapping):
        if value.get("class_path") == class_path:
            yield f"--{path.removesuffix('.')}"
        for key, child in value.items():
            yield from _places(class_path, child, path if key == "init_args" else f"{path}{key}.")


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
    else:  # a dataclass stands in a config without its name, and may be a part of its module's
        is_owners = settings.keys() >= signature(type(error.owner)).parameters.keys()
    for key, child in settings.items():
        if is_owners and key == error.field and child == getattr(error.owner, key, child):
            yield f"--{path}{key}"
        yield from _options(error, child, f"{path}{key}.")
