"""The options of a command line in its errors: the core names a class and a field, a parser nests
what it tried; a user is told the option and what is wrong with it, in one line."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import isclass, signature
from itertools import accumulate
from os.path import expanduser
from pydoc import locate
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from hetpure import packaged_configs
from hetpure.commands.config_keys import UnknownClass, meant
from hetpure.errors import FieldError, InputError, causes
from hetpure.trust import may_run

# What jsonargparse's errors say, from the outermost to the innermost.
KEY = re.compile(r'Parser key "([^"]+)":')
CLASS = re.compile(r"Problem with given class_path '([^']+)'")
NO_OPTION = re.compile(r"(?:Group '(.+)' does not accept option|Option) '(.+)'")
UNRECOGNIZED = "unrecognized arguments: "
TYPE = "Not of type "
EXPECTED = "Expected"
ALTERNATIVE = re.compile(
    r"Expected (?:a )?(?:typing\.Literal\[(.+?)\]|<class '(\w+)'>)\.?(?:$| Got)", re.MULTILINE
)


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
        ours = [cause for cause in chain if isinstance(cause, InputError)]
        message = str(ours[-1]) if ours else ""
        of_type = [text.partition(": ")[2] for text in messages if text.startswith(TYPE)]
        message = (message or next(iter(of_type), messages[-1])).strip().partition("\n")[0]
        if ours and isinstance(ours[-1], UnknownClass):
            message += _choices(ours[-1], f"--{option}")
        elif message.startswith(UNRECOGNIZED):
            name = message.removeprefix(UNRECOGNIZED).partition("=")[0]
            if name.endswith((".yaml", ".yml")):
                message = f"{name} is no option: a config is given as --config {name}"
            else:
                dashes = "--" if name.startswith("-") else ""
                message = dashes + _no_option(name.lstrip("-"), parser)
        elif unknown := NO_OPTION.match(message):
            if classes and may_run(classes[-1]) and isclass(innermost := locate(classes[-1])):
                parser = ArgumentParser(exit_on_error=False)
                parser.add_class_arguments(innermost, fail_untyped=False)
            name = ".".join(filter(None, unknown.groups()))
            message = "--" + _no_option(name, parser, f"{option}." if option else "")
            option = ""
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


def _no_option(name: str, parser: ArgumentParser, place: str = "") -> str:
    """That a parser, whose options stand at a place of the command line, has no such one, and which
    one may be meant. Of a name in parts the first that is unknown is to blame."""
    known = list(parser.get_defaults().keys(branches=True))
    parts = accumulate(name.split("."), "{}.{}".format)
    unknown = next((part for part in parts if part not in known), name)
    parent, dot, last = unknown.rpartition(".")
    beside = [key.removeprefix(parent + dot) for key in known if key.startswith(parent + dot)]
    return f"{place}{unknown} is no option{meant(last, beside, f'--{place}{parent}{dot}')}"


def _choices(error: UnknownClass, option: str) -> str:
    """Which class may be meant, or which packaged config where the option takes one; and all."""
    kind = packaged_configs.OPTIONS.get(option)
    configs = list(packaged_configs.names(kind)) if kind else []
    near = meant(error.name, [*error.known, *configs]) or "."
    also = f"; packaged configs: {', '.join(configs)}" if configs else ""
    return (
        f"{near} Classes that are known by name: {', '.join(error.known)}{also}; any other class is"
        " given by its import path"
    )


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
