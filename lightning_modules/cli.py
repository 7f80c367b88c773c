"""The command lines: LightningCLI without sub-commands, errors of the user's in one line."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningCLI

from hetpure.errors import InputError

BAD_INPUT = 2


def with_default_config(arguments: Sequence[str], default: Path) -> list[str]:
    """The arguments, led by the default config where they name none."""
    if any(argument.split("=")[0] in ("--config", "-c") for argument in arguments):
        return list(arguments)
    return ["--config", str(default), *arguments]


def run(main: Callable[[list[str]], None], arguments: Sequence[str]) -> None:
    """Runs an entry point: what the user can mend is printed in one line, exit code 2."""
    try:
        main(list(arguments))
    except (InputError, ArgumentError) as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def make_cli(arguments: list[str], **settings: Any) -> LightningCLI:
    """A LightningCLI that only parses and builds; parse errors are raised, not printed."""
    return LightningCLI(
        run=False,
        args=arguments,
        parser_kwargs={"exit_on_error": False},
        **settings,
    )


def _one_line(message: str) -> str:
    return " ".join(message.split())
