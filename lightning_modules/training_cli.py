"""The command line of trainings: the folder they write to and the checkpoint they go on from."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from hetpure.commands.options import naming_options
from hetpure.errors import InputError
from hetpure.weights.folders import in_one_line
from lightning_modules.cli import CLI, make_cli
from lightning_modules.processes import run_folder
from lightning_modules.signals import SaveWhenStopped, check_nothing_is_loaded_unasked
from lightning_modules.training_progress import TrainingProgress

DISTRIBUTED = "init_args.save_distributed_checkpoint"
CHECKPOINT = {"pytorch-lightning_version", "state_dict", "loops"}  # what every one of them holds


class KeepConfig(SaveConfigCallback):
    """Saves a training's config in its folder. One that holds a training already, as under SLURM
    that of the same job, is for going on from its own checkpoints."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = run_folder(trainer).resolve()
        path = self.config.ckpt_path
        from_here = path is not None and folder in Path(path).resolve().parents
        taken = any((folder / "checkpoints").glob("*.ckpt")) and not from_here
        if trainer.strategy.broadcast(taken):
            raise InputError(
                f"{folder} holds another training: give another --trainer.default_root_dir, or go"
                " on from its checkpoint (--ckpt_path)"
            )
        super().setup(trainer, pl_module, stage)


class TrainingCLI(CLI):
    """Adds the checkpoint to go on from, and a progress bar that knows of trainings without a last
    epoch."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="checkpoint to continue from"
        )

    def before_instantiate_classes(self) -> None:
        if self.config.ckpt_path is not None:
            check_checkpoint(Path(self.config.ckpt_path))
        strategy = self.config.trainer.strategy
        if isinstance(strategy, Namespace) and strategy.get(DISTRIBUTED, False):
            raise InputError(
                "--trainer.strategy.save_distributed_checkpoint must be false: the index of a"
                " distributed checkpoint is a pickle, which no training would go on from"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        given = self.config_init.trainer
        callbacks = given.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        another = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if given.enable_progress_bar is not False and not another:
            kwargs["callbacks"] = [*callbacks, TrainingProgress()]
        return super().instantiate_trainer(**kwargs)


def check_checkpoint(path: Path) -> None:
    """InputError unless a checkpoint of Lightning's is there and holds tensors and plain values
    only: whatever else its pickle holds would be run. So would the index of torch's distributed
    format, which is a folder."""
    if not path.exists():
        raise InputError(f"--ckpt_path {path}: there is no such file")
    if path.is_dir():
        raise InputError(
            f"--ckpt_path {path} is a folder: give a checkpoint of it, as checkpoints/last.ckpt"
        )
    if path.is_file() and path.open("rb").read(9)[8:] == b"{":
        raise InputError(
            f"--ckpt_path {path} is safetensors, weights and no checkpoint of a training: a"
            " diffusion's folder of them is given as --model.diffusion"
        )
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # of whatever kind the file's damage is
        raise InputError(
            f"--ckpt_path {path} is no file of tensors and plain values that can be read"
            f" ({in_one_line(error)[:100]}): give a checkpoint that hetpure train wrote"
        ) from None
    if not isinstance(content, dict) or not content.keys() >= CHECKPOINT:
        raise InputError(
            f"--ckpt_path {path} is no checkpoint of a training: give one that hetpure train wrote;"
            " weights alone are given as --model.diffusion"
        )


def main(arguments: list[str]) -> None:
    """`hetpure train`: parses the arguments, builds the program and runs it."""
    cli = make_cli(
        TrainingCLI,
        "train",
        arguments,
        model_class=L.LightningModule,
        subclass_mode_model=True,
        trainer_defaults={"callbacks": [SaveWhenStopped()]},
        save_config_callback=KeepConfig,
        save_config_kwargs={"overwrite": True},  # it says where that may be
    )
    # First, so that a signal while another callback begins is heard.
    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    callbacks.sort(key=lambda callback: not isinstance(callback, SaveWhenStopped))
    if cli.config.ckpt_path is None:
        check_nothing_is_loaded_unasked(cli.trainer)
    with naming_options(cli.config):
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path)
