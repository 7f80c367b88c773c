"""The programs: LightningCLI without sub-commands."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

from lightning import LightningDataModule
from lightning.pytorch.cli import LightningCLI

from hetpure.commands.config_keys import check_files
from hetpure.commands.options import home_expanded, naming_options, parsing
from hetpure.errors import InputError
from hetpure.packaged_configs import with_paths

SEEDS = 2**32  # numpy's, which Lightning seeds too

AnyCLI = TypeVar("AnyCLI", bound=LightningCLI)


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

    def parse_arguments(self, parser: Any, args: Any) -> None:
        check_files(args, parser)
        with parsing(parser):
            super().parse_arguments(parser, args)
        self.config = home_expanded(self.config)
        seed = self.config.seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < SEEDS:
            raise InputError(f"--seed_everything must be in [0, {SEEDS}), got {seed}")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        try:
            return super().instantiate_trainer(**kwargs)
        except InputError:
            raise
        except (TypeError, ValueError) as error:  # names and numbers that Lightning does not know
            raise InputError(f"--trainer: {error}") from error

    def instantiate_classes(self) -> None:
        with naming_options(self.config):
            super().instantiate_classes()


def make_cli(program: type[AnyCLI], kind: str, arguments: Sequence[str], **settings: Any) -> AnyCLI:
    """A LightningCLI that only parses the arguments, led by the quick config of their kind
    (evaluate, train) where they name none, and builds; parse errors are raised, not printed."""
    quiet()
    return program(
        run=False,
        args=with_paths(kind, arguments, default="quick"),
        datamodule_class=LightningDataModule,
        subclass_mode_data=True,
        parser_kwargs={"prog": f"hetpure {kind}", "exit_on_error": False},
        **settings,
    )
