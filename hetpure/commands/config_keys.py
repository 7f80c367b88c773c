"""What jsonargparse reads for our command lines: types of ours, no key twice, what a class that
takes another's place keeps, and where in a mapping a mistake is."""

import locale
from collections.abc import Callable, Collection, Iterator, Sequence
from difflib import get_close_matches
from inspect import isabstract, isclass, signature
from pathlib import Path
from re import match
from typing import Any, get_origin

import yaml
from jsonargparse import (
    ArgumentParser,
    _typehints,
    get_loader,
    set_loader,
    set_parsing_settings,
)
from jsonargparse._typehints import ActionTypeHint
from jsonargparse._util import NestedArg
from jsonargparse.typing import register_type

from hetpure.errors import InputError
from hetpure.numbers import Bytes, Number

_load = get_loader("yaml")
LONGEST_PATH = 1000  # characters: values may be longer, and systems refuse to look for them
CONFIG = ("--config", "-c")
SCHEMA = "$schema"  # a key for editors, which jsonargparse passes over


class UnknownClass(InputError):
    """A word that names no class of a kind. `known` are the names of those that are imported."""

    def __init__(self, name: str, kind: type) -> None:
        super().__init__(f"{name!r} is no {kind.__name__}")
        self.name = name
        self.known = sorted({known.__name__ for known in _concrete(kind)})


def _adapt_parser() -> None:
    """Settings of jsonargparse, for all parsers of the program: once, when this is imported."""
    register_type(Number, serializer=str, deserializer=Number)
    register_type(Bytes, serializer=str, deserializer=Bytes)
    set_loader("yaml", load, (yaml.YAMLError,))
    # A class_path in a sweep's values is read as its setting's type, never built for being there.
    if "instantiate_subclass_spec_in_any" in signature(set_parsing_settings).parameters:
        set_parsing_settings(instantiate_subclass_spec_in_any=False)
    _typehints.discard_init_args_on_class_path_change = _keep_what_was_set(
        _typehints.discard_init_args_on_class_path_change
    )
    _typehints.adapt_typehints = _saying_where(_typehints.adapt_typehints)


def check_files(arguments: Sequence[str], parser: ArgumentParser) -> None:
    """InputError where a config file that the arguments name is no mapping in YAML, as text in
    UTF-8, or has settings that the parser does not know at its top. What is no file is left to the
    parser."""
    known = {key.partition(".")[0] for key in parser.get_defaults().keys(branches=True)}
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option, _, argument = argument.partition("=")
        path = Path(argument).expanduser()
        is_config = option in CONFIG or path.suffix in (".yaml", ".yml")
        if not (is_config and len(argument) < LONGEST_PATH and path.is_file()):
            continue
        advice = "write `model: ...`, or give a packaged config (`hetpure configs` lists them)"
        try:
            text = path.read_text(encoding="utf-8")
            content = load(text)
        except UnicodeDecodeError:
            raise InputError(
                f"{path} is no text in UTF-8, as a config is: save it in that encoding, or give"
                " another file"
            ) from None
        except InputError as error:  # a key twice
            raise InputError(f"{path}: {error}") from None
        except (yaml.YAMLError, ValueError) as error:
            raise InputError(f"{path} is no YAML: {error}") from None
        if not text.isascii() and locale.getencoding().lower() != "utf-8":  # the parser's
            raise InputError(
                f"{path} has letters that this terminal's {locale.getencoding()} has not: set"
                " PYTHONUTF8=1"
            )
        if content is None:
            raise InputError(f"{path} is empty: {advice}")
        if not isinstance(content, dict):
            raise InputError(f"{path} holds no settings: {advice}")
        if option in CONFIG:
            for key in map(str, content):
                if (root := key.partition(".")[0].rstrip("+")) not in known | {SCHEMA}:
                    raise InputError(
                        f"{path}: {root} is no setting of {parser.prog}"
                        f"{meant(root, known) or '.'} At the top of a config are"
                        f" {', '.join(sorted(known - {'config'}))}"
                    )


def meant(name: str, known: Collection[str], place: str = "") -> str:
    """The question whether the nearest of the known names, at a place, was meant, if one is near;
    capitals do not matter."""
    small = {word.lower(): word for word in known}
    near = get_close_matches(name.lower(), small, n=1)
    return f": did you mean {place}{small[near[0]]}?" if near else ""


class OneOfEachKey(yaml.SafeLoader):
    """Reads YAML; InputError where a mapping has a key twice, of which YAML would keep the last and
    say nothing. What a merge (`<<`) brings may be overridden: that is what it is for."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            value = self.construct_object(key)  # on and yes are one key
            if value in keys:
                raise InputError(
                    f"{key.value!r} is there twice (line {key.start_mark.line + 1} of a config, or"
                    " of an option's value), and the first one would be lost: take one away, or"
                    " give it another name"
                )
            keys.add(value)
        return node


def load(text: str) -> Any:
    """What jsonargparse's own reader makes of YAML (or JSON) without a key twice."""
    yaml.compose(text, Loader=OneOfEachKey)
    return _load(text)


def _keep_what_was_set(discard: Callable[[Any, Any, Any], None]) -> Callable[..., None]:
    """A class that takes another's place keeps what was set for that one and fits, as epsilon; not
    that one's defaults: BPDA's `approximation` would be PGD's, none, and DDPM's `clip_x0` DDIM's.
    jsonargparse has no setting for it."""

    def keep(parser_or_action: Any, previous: Any, value: Any) -> None:
        name = previous["class_path"] if previous and "init_args" in previous else None
        if name is not None and name != value["class_path"]:  # a dataclass has no name
            parser = ActionTypeHint.get_class_parser(name)  # type: ignore[no-untyped-call]
            before = parser.get_defaults()
            for key, set_to in list(previous["init_args"].items()):
                if key in before and str(set_to) == str(before[key]):
                    del previous["init_args"][key]
        discard(parser_or_action, previous, value)

    return keep


def _saying_where(adapt: Callable[..., Any]) -> Callable[..., Any]:
    """Values are read as before. Of one that is refused it is said which entry of a mapping it
    stands in, as a row of a table; and where a word is no class's name, which names there are.
    jsonargparse tells neither."""

    def read(value: Any, kind: Any, **settings: Any) -> Any:
        try:
            return adapt(value, kind, **settings)
        except ValueError as error:
            unknown = match("Expected a dot import path string: (.+)", str(error))
            if unknown and isclass(kind) and kind.__subclasses__():
                raise ValueError(str(error)) from UnknownClass(unknown[1], kind)
            if get_origin(kind) is not dict:
                raise
            if isinstance(value, NestedArg):  # as of --model.defenses.NAME.gradient
                raise _inside(value.key.partition(".")[0], error) from error
            for name, entry in value.items() if isinstance(value, dict) else ():
                try:
                    adapt({name: entry}, kind, **settings)
                except ValueError as of_entry:
                    raise _inside(name, of_entry) from of_entry
            raise

    return read


def _inside(name: Any, error: ValueError) -> ValueError:
    """An error of an entry, in the form in which jsonargparse tells that of a key."""
    return ValueError(f'Parser key "{name}":\n{error}')


def _concrete(kind: type) -> Iterator[type]:
    """The kind itself and the classes below it, as far as they can be built and are no one's own
    matter."""
    if not isabstract(kind) and not kind.__name__.startswith(("_", "LazyInstance_")):
        yield kind
    below: list[type] = kind.__subclasses__()
    for each in below:
        yield from _concrete(each)


_adapt_parser()
