"""The rows of an evaluation: what a config says of each defence, and sweeps of one setting."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

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
        gradient: memory policy of the exact gradient.
        surrogate: a purifier that the attack differentiates in place of the defence's own, as
            published evaluations did. Weaker than the full attack, and the results say so.
    """

    purifier: Purifier | None = None
    denoiser: str | None = None
    mask: AttentionMask = field(default_factory=AttentionMask)
    gradient: Policy = "checkpoint"
    surrogate: Purifier | None = None

    def build(
        self, classifier: Classifier, denoiser: Denoiser | None
    ) -> tuple[Defense, Defense | None]:
        """The defence, and the surrogate that is attacked in its place where one is set."""
        defense = Defense(classifier, self.purifier, denoiser, self.mask, self.gradient)
        if self.surrogate is None:
            return defense, None
        return defense, Defense(classifier, self.surrogate, denoiser, self.mask, self.gradient)


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
        """The varied rows by name. A value that the base has already gives no row."""
        if self.base not in defenses:
            known = ", ".join(defenses)
            raise InputError(f"--model.sweep.base {self.base!r} is not among the defences: {known}")
        base = defenses[self.base]
        found = {}
        for path, values in self.vary.items():
            for value in values:
                row = with_setting(base, path, tuple(value) if isinstance(value, list) else value)
                if row != base:
                    found[f"{path}={_written(value)}"] = row
        return found


def with_setting(config: T, path: str, value: Any) -> T:
    """A copy of a nested dataclass with the setting of a dotted name changed."""
    name, _, rest = path.partition(".")
    allowed = [f.name for f in fields(config)] if is_dataclass(config) else []
    if name not in allowed:
        raise InputError(
            f"there is no setting {name!r} to vary, only {', '.join(allowed) or 'none'}"
        )
    if rest:
        value = with_setting(getattr(config, name), rest, value)
    try:
        return replace(config, **{name: value})  # type: ignore[type-var]
    except TypeError as error:
        raise InputError(f"{path} cannot be {value!r}: {error}") from None


def _written(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
