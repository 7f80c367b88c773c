"""What jsonargparse reads for our command lines: types of ours, no key twice, and what a class that
takes another's place keeps."""

import locale
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import _typehints, get_loader, set_loader, set_parsing_settings
from jsonargparse._typehints import ActionTypeHint
from jsonargparse.typing import register_type

from hetpure.errors import InputError
from hetpure.numbers import Bytes, Number

_load = get_loader("yaml")
LONGEST_PATH = 1000  # characters: values may be longer, and systems refuse to look for them


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


def check_files(arguments: Sequence[str]) -> None:
    """InputError where a config file that the arguments name is no mapping in YAML, as text in
    UTF-8. What is no file is left to the parser."""
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option, _, argument = argument.partition("=")
        path = Path(argument).expanduser()
        is_config = option in ("--config", "-c") or path.suffix in (".yaml", ".yml")
        if not (is_config and len(argument) < LONGEST_PATH and path.is_file()):
            continue
        advice = "write `model: ...`, or give a packaged config (`hetpure configs` lists them)"
        try:
            text = path.read_text(encoding="utf-8")
            content = load(text)
        except UnicodeDecodeError:
            raise InputError(f"{path} is no text in UTF-8: save it in that encoding") from None
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


_adapt_parser()
