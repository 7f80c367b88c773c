"""The rows of an evaluation: what a config says of each defence, and sweeps of one setting."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import reduce
from operator import or_
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from hetpure.attention import AttentionMask
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.gradients import Policy
from hetpure.purifiers import Purifier

T = TypeVar("T")


@dataclass(frozen=True)
class DefenseConfig:
    """One row of the table.

    Args:
        purifier: what stands before the classifier; nothing is the plain classifier.
        denoiser: key of the diffusion weights in `denoisers`.
        mask: attention mask of a heterogeneous purifier.
        gradient: policy of the gradient; see `hetpure.gradients.Execution`.
        classifier: packaged name or folder of a classifier of its own, in place of the one that
            all rows share.
        purified_size: height and width at which images are purified, where that is not their own:
            they are resized to it and back, bilinearly, within the gradient.
        surrogate: a purifier that the attack differentiates in place of the defence's own, as
            published evaluations did. Weaker than the full attack, and the results say so.
    """

    purifier: Purifier | None = None
    denoiser: str | None = None
    mask: AttentionMask = field(default_factory=AttentionMask)
    gradient: Policy = "auto"
    surrogate: Purifier | None = None
    classifier: str | None = None
    purified_size: int | None = None

    def build(
        self, classifier: Classifier, denoiser: Denoiser | None
    ) -> tuple[Defense, Defense | None]:
        """The defence, and the surrogate that is attacked in its place where one is set."""

        def defense(purifier: Purifier | None, gradient: Policy = self.gradient) -> Defense:
            size = self.purified_size
            return Defense(classifier, purifier, denoiser, self.mask, gradient, size)

        if self.surrogate is None:
            return defense(self.purifier), None
        return defense(self.purifier, "auto"), defense(self.surrogate)


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
            raise InputError(f"--model.sweep.base {self.base!r} is not among the defences: {known}")
        base = defenses[self.base]
        found: dict[str, DefenseConfig] = {}
        for path, values in self.vary.items():
            if not values:
                raise InputError(f"--model.sweep.vary {path} names no value")
            for value in values:
                try:
                    row = with_setting(base, path, value)
                except InputError as error:
                    raise InputError(f"--model.sweep.vary {path}: {error}") from None
                if row == base or row in found.values():
                    continue
                plain = isinstance(value, str | int | float | list | None)
                built = reduce(getattr, path.split("."), row)
                name = f"{path}={_written(value if plain else built)}"
                if name in defenses or name in found:
                    raise InputError(f"--model.sweep.vary: there is another row {name!r} already")
                found[name] = row
        return found


def with_setting(config: T, path: str, value: Any) -> T:
    """A copy of a nested dataclass with the setting of a dotted name changed. The value is read as
    in a config file: a list for a tuple, a class by its class_path."""
    name, dot, rest = path.partition(".")
    allowed = [f.name for f in fields(config)] if is_dataclass(config) else []
    if name not in allowed:
        known = f"only {', '.join(allowed)}" if allowed else f"{config!r} has none"
        raise InputError(f"there is no setting {name!r} to vary, {known}")
    if dot:
        value = with_setting(getattr(config, name), rest, value)
    else:
        value = _read(name, get_type_hints(type(config))[name], value)
    return replace(config, **{name: value})  # type: ignore[type-var]


def differing(surrogate: Purifier | None, purifier: Purifier | None) -> str:
    """In which settings a surrogate is not the defence's purifier."""
    if surrogate is None or type(surrogate) is not type(purifier):
        return f"{type(surrogate).__name__}, not {type(purifier).__name__}"
    pairs = [
        (f.name, getattr(surrogate, f.name), getattr(purifier, f.name)) for f in fields(surrogate)
    ]
    return ", ".join(f"{name} {a}, not {b}" for name, a, b in pairs if a != b) or "no difference"


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
        f"{f.name}={_written(own)}"
        for f in fields(value)
        if (own := getattr(value, f.name))
        != (f.default_factory() if callable(f.default_factory) else f.default)
    )
    return type(value).__name__ + (f"({settings})" if settings else "")
