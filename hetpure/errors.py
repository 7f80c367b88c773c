"""The error that a user can cause, as opposed to a fault of the program."""


class InputError(ValueError):
    """What the user gave cannot be used: one line says what, where and what to do; exit code 2."""
