"""Many rows from one: a row with one of its settings changed, or several at once."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import reduce
from operator import or_
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from hetpure.errors import InputError
from hetpure.evaluation.rows import DefenseConfig
from hetpure.evaluation.search import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Sweep:
    """Many rows from one: each setting in turn takes each of its values, the others stay.

    Args:
        base: name of the row to vary.
        vary: dotted names of its settings (`mask.threshold`, `purifier.t_large`), and values.
    """

    base: str
    vary: dict[str, list[Any]]

    def rows(self, defenses: Mapping[str, DefenseConfig]) -> dict[str, DefenseConfig]:
        """The varied rows by name. A value that the base or a row before it has gives no row."""
        if self.base not in defenses:
            known = ", ".join(defenses)
            raise InputError(f"sweep.base {self.base!r} is not among the defences: {known}")
        base = defenses[self.base]
        varied: dict[str, DefenseConfig] = {}
        for path, values in self.vary.items():
            if not values:
                raise InputError(f"sweep.vary {path} names no value")
            for value in values:
                try:
                    row = with_settings(base, {path: value})
                except InputError as error:
                    raise InputError(f"sweep.vary {path}: {error}") from None
                if row == base or row in varied.values():
                    continue
                plain = isinstance(value, str | int | float | list | None)
                built = reduce(getattr, path.split("."), row)
                name = f"{path}={_written(value if plain else built)}"
                if name in defenses or name in varied:
                    raise InputError(f"sweep.vary: there is another row {name!r} already")
                varied[name] = row
        return varied


def combinations(
    base: DefenseConfig, vary: Mapping[str, list[Any]]
) -> tuple[dict[str, tuple[Settings, DefenseConfig]], list[str]]:
    """Every combination of the values by a name, each defence once, and why some combinations are
    impossible (t_small above t_large). InputError where all are."""
    empty = [path for path, values in vary.items() if not values]
    if empty or not vary:
        raise InputError(f"vary names no value for {', '.join(empty) or 'any setting'}")
    possible: dict[str, tuple[Settings, DefenseConfig]] = {}
    refused: list[str] = []
    for values in itertools.product(*vary.values()):
        settings = dict(zip(vary, values, strict=True))
        name = " ".join(f"{path}={value}" for path, value in settings.items())
        try:
            defense = with_settings(base, settings)
        except InputError as error:
            refused.append(f"{name}: {error}")
            continue
        if defense not in (known for _, known in possible.values()):
            possible[name] = settings, defense
    if not possible:
        raise InputError(f"vary: no combination is possible: {refused[0]}")
    return possible, refused


def with_settings(config: T, settings: Settings) -> T:
    """A copy of a nested dataclass with settings of dotted names changed. Values are read as in a
    config file: a list for a tuple, a class by its class_path. Each dataclass is made once, with
    all that changes in it: two noise levels that move together are never half moved."""
    allowed = [f.name for f in fields(config)] if is_dataclass(config) else []
    values: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for path, value in settings.items():
        name, dot, rest = path.partition(".")
        if name not in allowed:
            known = f"only {', '.join(allowed)}" if allowed else f"{config!r} has none"
            raise InputError(f"there is no setting {name!r} to vary, {known}")
        if dot:
            inner.setdefault(name, {})[rest] = value
        else:
            values[name] = _read(name, get_type_hints(type(config))[name], value)
    for name, changes in inner.items():
        values[name] = with_settings(values.get(name, getattr(config, name)), changes)
    return replace(config, **values)  # type: ignore[type-var]


def _read(name: str, kind: Any, value: Any) -> Any:
    """A raw value as its type; InputError where it is none."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None:
        if NoneType not in kinds:
            raise InputError(f"{name} cannot be null")
        return None
    if isinstance(value, Namespace):  # what the command line's parser makes of a class_path
        value = value.as_dict()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=reduce(or_, (k for k in kinds if k is not NoneType)))
    try:
        return parser.instantiate_classes(parser.parse_object({name: value}))[name]
    except InputError:
        raise
    except (ArgumentError, ValueError) as error:
        raise InputError(f"{name} cannot be {value!r}: {error}") from None
    except TypeError:  # no mapping, where the type is a dataclass
        raise InputError(f"{name} cannot be {value!r}") from None


def _written(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    if not is_dataclass(value):
        return str(value)
    settings = ", ".join(
        f"{f.name}={_written(setting)}"
        for f in fields(value)
        if (setting := getattr(value, f.name))
        != (f.default_factory() if callable(f.default_factory) else f.default)
    )
    return type(value).__name__ + (f"({settings})" if settings else "")
