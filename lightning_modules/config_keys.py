"""Configs in which no key stands twice: YAML would keep the last of them and say nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from hetpure.errors import InputError

_load = get_loader("yaml")


def refuse_repeated_keys() -> None:
    """From now on jsonargparse reads no YAML, a file or an option's value, with a key twice."""
    set_loader("yaml", load, (yaml.YAMLError,))


def load(text: str) -> Any:
    """What jsonargparse's own reader makes of YAML (or JSON); InputError where a key is in it
    twice."""
    for name, mark in repeated_keys(text):
        raise InputError(
            f"{_named(text)}, line {mark.line + 1}: {name!r} is there twice, the first one would be"
            " lost: take one away, or give it another name"
        )
    return _load(text)


def repeated_keys(text: str) -> Iterator[tuple[str, yaml.Mark]]:
    """Dotted names of keys that repeat one of their own mapping, and where. What a merge (`<<`)
    brings may be overridden: that is what it is for."""
    keys = yaml.constructor.SafeConstructor()
    seen: set[yaml.Node] = set()

    def walk(node: yaml.Node | None, path: str) -> Iterator[tuple[str, yaml.Mark]]:
        if node is None or node in seen:  # an alias
            return
        seen.add(node)
        if isinstance(node, yaml.SequenceNode):
            for child in node.value:
                yield from walk(child, path)
        elif isinstance(node, yaml.MappingNode):
            found = set()
            for key, child in node.value:
                name = f"{path}.{key.value}".lstrip(".")
                if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                    value = keys.construct_object(key)  # on and yes are one key
                    if value in found:
                        yield name, key.start_mark
                    found.add(value)
                yield from walk(child, name)

    yield from walk(yaml.compose(text, Loader=yaml.SafeLoader), "")


def _named(text: str) -> str:
    """jsonargparse gives a file's text without its name, but reads it in the file's own folder."""
    lines, size = text.splitlines(), len(text.encode())
    for path in sorted(Path.cwd().iterdir()):
        about = path.is_file() and size <= path.stat().st_size <= size + len(lines)  # as \r\n
        if about and path.read_text(errors="replace").splitlines() == lines:
            return str(path)
    return "an option's value"
