"""The command lines: LightningCLI without sub-commands, errors of the user's in one line."""

import errno
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentError
from lightning import LightningDataModule
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningCLI

from hetpure.errors import InputError
from lightning_modules.config_keys import adapt_parser
from lightning_modules.options import causes, naming_options
from lightning_modules.signals import say

BAD_INPUT, INTERRUPTED = 2, 130
PARTIAL = (
    "; a --config takes the default's place: lay a partial one over a whole one, as --config"
    " configs/evaluate/quick.yaml --config my.yaml (configs/train/quick.yaml)"
)
# What a disk, its permissions or a network's file system can refuse.
WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
WRITING |= {errno.ENOTDIR, errno.EEXIST, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
AnyCLI = TypeVar("AnyCLI", bound=LightningCLI)
adapt_parser()


def _name_a_config(arguments: Sequence[str]) -> bool:
    return any(argument.split("=")[0] in ("--config", "-c") for argument in arguments)


def run(main: Callable[[list[str]], None], arguments: Sequence[str]) -> None:
    """Runs an entry point: what the user can mend is printed in one line, exit code 2."""
    try:
        main(list(arguments))
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning's trainer makes an exit of an interrupt.
        if not any(isinstance(e, KeyboardInterrupt) for e in (error, error.__context__)):
            raise
        say("stopped; records and checkpoints that were written are kept\n")
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = _users_mistake(error) or _of_the_machine(error)
        if message is None:
            raise
        partial = "arguments are required" in str(message) and _name_a_config(arguments)
        hint = PARTIAL if partial else ""
        # A loader's process sends its traceback along: of that, what the error itself said.
        line = " ".join(str(message).rpartition(f"{InputError.__name__}: ")[2].split())
        print(f"error: {line}{hint}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def quiet() -> None:
    """Drops what a user can do nothing about: product tips, and warnings about our own calls."""
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="Precision .* is not supported by the model summary")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # jsonargparse 4.49 renamed what we and Lightning call; versions before it know the old names.
    warnings.filterwarnings("ignore", message=r"\s*By default only one JsonargparseDeprecation")
    warnings.filterwarnings("ignore", message=r"\s*.*deprecated in v4\.49")

    def no_tip(record: logging.LogRecord) -> bool:
        message = record.getMessage()  # the second is about what a checkpoint is to hold
        return "Tip:" not in message and "`weights_only` was not set" not in message

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("lightning"):
            logging.getLogger(name).addFilter(no_tip)


class CLI(LightningCLI):
    """A LightningCLI that names the options of what a class refuses while it is built."""

    def instantiate_classes(self) -> None:
        with naming_options(self.config):
            super().instantiate_classes()


def make_cli(
    kind: type[AnyCLI], arguments: Sequence[str], default: Path, **settings: Any
) -> AnyCLI:
    """A LightningCLI that only parses the arguments, led by the default config where they name
    none, and builds; parse errors are raised, not printed."""
    quiet()
    leading = [] if _name_a_config(arguments) else ["--config", str(default)]
    return kind(
        run=False,
        args=[*leading, *arguments],
        datamodule_class=LightningDataModule,
        subclass_mode_data=True,
        parser_kwargs={"exit_on_error": False},
        **settings,
    )


def _of_the_machine(error: BaseException) -> str | None:
    """What memory, disk or compiler could not do, and what to change."""
    if isinstance(error, OSError) and error.errno in WRITING:
        return f"{error}: mend it and start again; finished records and checkpoints are kept"
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return (
            f"the memory was not enough ({str(error).splitlines()[0][:100]}): set a smaller"
            " --data.batch_size, or in evaluations a smaller --model.memory_budget (a run that goes"
            " on keeps what it began with: give another --model.run)"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return (
            f"the network could not be compiled ({str(error).splitlines()[0][:100]}): set"
            " --model.acceleration.compile=off (in a training --model.compile=false)"
        )
    return None


def _users_mistake(error: BaseException) -> BaseException | None:
    """The error itself or the one inside that the user can mend."""
    kinds = (InputError, ArgumentError, MisconfigurationException)
    links = (link for kind in kinds for link in causes(error) if isinstance(link, kind))
    return next(links, None)
