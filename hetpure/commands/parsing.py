"""A command's options are the arguments of its function."""

from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from hetpure.commands.config_keys import check_files
from hetpure.commands.options import home_expanded, naming_options, parsing


def parser_of(command: Callable[..., None], *skip: str, positional: bool = True) -> ArgumentParser:
    """From the function's signature and docstring; what it requires comes without an option's name
    where it is `positional`. The arguments to `skip` are added by hand."""
    purpose = (command.__doc__ or "").split("Args:")[0].strip()
    name = command.__name__
    parser = ArgumentParser(prog=f"hetpure {name}", exit_on_error=False, description=purpose)
    parser.add_function_arguments(command, as_group=False, as_positional=positional, skip=set(skip))
    return parser


def settings_of(parser: ArgumentParser, arguments: list[str]) -> tuple[Namespace, dict[str, Any]]:
    """What the arguments say, as it was parsed and as the function takes it."""
    check_files(arguments, parser)
    with parsing(parser):
        options: Namespace = home_expanded(parser.parse_args(arguments))
    with naming_options(options):
        settings: dict[str, Any] = parser.instantiate(options).as_dict()
    return options, settings


def call(
    command: Callable[..., None], arguments: list[str], parser: ArgumentParser | None = None
) -> None:
    """Runs the function with what the arguments say."""
    _, settings = settings_of(parser or parser_of(command), arguments)
    command(**settings)
