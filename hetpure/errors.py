"""The error that a user can cause, as opposed to a fault of the program."""

from typing import Any, get_args


class InputError(ValueError):
    """What the user gave cannot be used: one line says what, where and what to do; exit code 2."""


def check_choice(name: str, value: object, allowed: Any) -> None:
    """Raises InputError unless `value` is one of the values of the Literal `allowed`."""
    if value not in get_args(allowed):
        raise InputError(f"{name} is {value!r}, allowed are {', '.join(get_args(allowed))}")
