"""The command lines: LightningCLI without sub-commands, errors of the user's in one line."""

import errno
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import ArgumentError, _typehints, set_parsing_settings
from jsonargparse._typehints import ActionTypeHint
from jsonargparse.typing import register_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from hetpure.errors import InputError
from hetpure.numbers import Bytes, Number
from lightning_modules.config_keys import refuse_repeated_keys
from lightning_modules.signals import say

BAD_INPUT, INTERRUPTED = 2, 130
PARTIAL = (
    "; a --config takes the default's place: lay a partial one over a whole one, as --config"
    " configs/evaluate/quick.yaml --config my.yaml (configs/train/quick.yaml)"
)
CHECKPOINT = {"pytorch-lightning_version", "state_dict", "loops"}  # what every one of them holds
WRITING = (  # what a disk or its permissions can refuse
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EIO,  # and a network's file system
    errno.ESTALE,
    errno.ETIMEDOUT,
)
register_type(Number, serializer=str, deserializer=Number)
register_type(Bytes, serializer=str, deserializer=Bytes)
refuse_repeated_keys()
# A class_path in a sweep's values is read as its setting's type, never built for being there.
if "instantiate_subclass_spec_in_any" in signature(set_parsing_settings).parameters:
    set_parsing_settings(instantiate_subclass_spec_in_any=False)


def _keep_what_was_set(discard: Callable[[Any, Any, Any], None]) -> Callable[..., None]:
    """A class that takes another's place keeps what was set for that one and fits, as epsilon; not
    that one's defaults: BPDA's `approximation` would be PGD's, none, and DDPM's `clip_x0` DDIM's.
    jsonargparse has no setting for it."""

    def keep(parser_or_action: Any, previous: Any, value: Any) -> None:
        name = previous["class_path"] if previous and "init_args" in previous else None
        if name is not None and name != value["class_path"]:  # a dataclass has no name
            parser = ActionTypeHint.get_class_parser(name)  # type: ignore[no-untyped-call]
            before = parser.get_defaults()
            for key, set_to in list(previous["init_args"].items()):
                if key in before and str(set_to) == str(before[key]):
                    del previous["init_args"][key]
        discard(parser_or_action, previous, value)

    return keep


_typehints.discard_init_args_on_class_path_change = _keep_what_was_set(
    _typehints.discard_init_args_on_class_path_change
)


def with_default_config(arguments: Sequence[str], default: Path) -> list[str]:
    """The arguments, led by the default config where they name none."""
    named = _name_a_config(arguments)
    return list(arguments) if named else ["--config", str(default), *arguments]


def _name_a_config(arguments: Sequence[str]) -> bool:
    return any(argument.split("=")[0] in ("--config", "-c") for argument in arguments)


def run(main: Callable[[list[str]], None], arguments: Sequence[str]) -> None:
    """Runs an entry point: what the user can mend is printed in one line, exit code 2."""
    try:
        main(list(arguments))
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning's trainer makes an exit of an interrupt.
        if not any(isinstance(one, KeyboardInterrupt) for one in (error, error.__context__)):
            raise
        say("stopped; records and checkpoints that were written are kept\n")
        sys.exit(INTERRUPTED)
    except Exception as error:
        said = _users_mistake(error) or _of_the_machine(error)
        if said is None:
            raise
        partial = "arguments are required" in str(said) and _name_a_config(arguments)
        hint = PARTIAL if partial else ""
        print(f"error: {_one_line(str(said))}{hint}", file=sys.stderr)
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
        told = record.getMessage()  # the second is about what a checkpoint is to hold
        return "Tip:" not in told and "`weights_only` was not set" not in told

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("lightning"):
            logging.getLogger(name).addFilter(no_tip)


class KeepConfig(SaveConfigCallback):
    """Saves a training's config in its folder. One that holds a training already, as under SLURM
    that of the same job, is for going on from its own checkpoints."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir).resolve()
        path = self.config.ckpt_path
        from_here = path is not None and folder in Path(path).resolve().parents
        taken = any((folder / "checkpoints").glob("*.ckpt")) and not from_here
        if trainer.strategy.broadcast(taken):
            raise InputError(
                f"{folder} holds another training: give another --trainer.default_root_dir, or go"
                " on from its checkpoint (--ckpt_path)"
            )
        super().setup(trainer, pl_module, stage)


class TrainingCLI(LightningCLI):
    """Adds the checkpoint to go on from."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="checkpoint to continue from"
        )

    def before_instantiate_classes(self) -> None:
        path = self.config.ckpt_path
        if path is not None:
            check_checkpoint(Path(path))


def check_checkpoint(path: Path) -> None:
    """InputError unless a checkpoint of Lightning's is there and holds tensors and plain values
    only: whatever else its pickle holds would be run. So would the index of torch's distributed
    format, which is a folder."""
    if not path.exists():
        raise InputError(f"--ckpt_path {path}: there is no such file")
    if path.is_dir():
        raise InputError(
            f"--ckpt_path {path} is a folder: only files are read, as a sharded training writes"
            " them with --trainer.strategy.save_distributed_checkpoint=false"
        )
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # of whatever kind the file's damage is
        raise InputError(
            f"--ckpt_path {path} is no checkpoint of tensors and plain values"
            f" ({_one_line(str(error))[:100]}): give one that train.py wrote"
        ) from None
    if not isinstance(content, dict) or not content.keys() >= CHECKPOINT:
        raise InputError(
            f"--ckpt_path {path} is no checkpoint of a training: give one that train.py wrote;"
            " weights alone are given as --model.diffusion"
        )


def make_cli(kind: type[LightningCLI], arguments: list[str], **settings: Any) -> LightningCLI:
    """A LightningCLI that only parses and builds; parse errors are raised, not printed."""
    quiet()
    return kind(
        run=False,
        args=arguments,
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
    """The error itself or the one inside that the user can mend: the parser wraps what our
    constructors say in messages of its own."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for kind in (InputError, ArgumentError, MisconfigurationException):
        for found in chain:
            if isinstance(found, kind):
                return found
    return None


def _one_line(message: str) -> str:
    """A loader's process sends its traceback along: of that, what the error itself said."""
    return " ".join(message.rpartition(f"{InputError.__name__}: ")[2].split())
