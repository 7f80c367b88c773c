"""The errors that a user can cause, as opposed to a fault of the program."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, get_args


class InputError(ValueError):
    """What the user gave cannot be used: one line says what, where and what to do; exit code 2."""


class FieldError(InputError):
    """A setting that cannot be used: a field of a config's class. The class and the field are named
    here; a command line, which knows where the class stands in its config, says the option.

    Args:
        owner: the object that has the field.
        field: its name.
        problem: what is wrong and what is allowed, as "must be >= 0, got -1".
    """

    def __init__(self, owner: object, field: str, problem: str) -> None:
        super().__init__(f"{type(owner).__name__}.{field} {problem}")
        self.owner = owner
        self.field = field
        self.problem = problem


def causes(error: BaseException) -> list[BaseException]:
    """The error and those that it came from: a parser wraps what our constructors say."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


@contextmanager
def only_warned(what: str) -> Iterator[None]:
    """Within it whatever fails is one line of warning: results are there, and `what`, as a picture
    of them, is an extra."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        print(f"warning: {what} could not be drawn: {reason}", file=sys.stderr)


def check_choice(owner: object, field: str, allowed: Any) -> None:
    """FieldError unless the owner's field is one of the values of the Literal `allowed`."""
    value = getattr(owner, field)
    if value not in get_args(allowed):
        choices = ", ".join(map(str, get_args(allowed)))
        raise FieldError(owner, field, f"is {value!r}, allowed are {choices}")


def check_at_least(owner: object, least: int, *fields: str) -> None:
    """FieldError unless these fields of the owner are finite and at least so much, or None."""
    for field in fields:
        value = getattr(owner, field)
        if value is not None and not least <= value < inf:
            raise FieldError(owner, field, f"must be >= {least}, got {value}")


def check_at_most(owner: object, most: int, *fields: str) -> None:
    """FieldError unless these fields of the owner are at most so much, or None: what an address of
    noise has room for."""
    for field in fields:
        value = getattr(owner, field)
        if value is not None and value > most:
            raise FieldError(owner, field, f"must be <= {most}, got {value}")


def check_positive(owner: object, *fields: str) -> None:
    """FieldError unless these fields of the owner are finite and above 0."""
    for field in fields:
        if not 0 < (value := getattr(owner, field)) < inf:
            raise FieldError(owner, field, f"must be > 0, got {value}")


def check_fraction(owner: object, *fields: str) -> None:
    """FieldError unless these fields of the owner are in (0, 1], or None."""
    for field in fields:
        value = getattr(owner, field)
        if value is not None and not 0 < value <= 1:
            raise FieldError(owner, field, f"must be in (0, 1], got {value}")
