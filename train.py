"""Trains a network: `python train.py` fine-tunes the packaged diffusion with ADDT.

Every option: `python train.py --help`; other trainings: `configs/train/`.
"""

import sys
from pathlib import Path

from lightning import LightningModule

from lightning_modules.cli import make_cli, run
from lightning_modules.options import naming_options
from lightning_modules.signals import SaveWhenStopped, check_nothing_is_loaded_unasked
from lightning_modules.training_cli import KeepConfig, TrainingCLI

DEFAULT = Path(__file__).parent / "configs" / "train" / "quick.yaml"


def main(arguments: list[str]) -> None:
    """Parses the arguments, builds the program and runs it."""
    cli = make_cli(
        TrainingCLI,
        arguments,
        DEFAULT,
        model_class=LightningModule,
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


if __name__ == "__main__":
    run(main, sys.argv[1:])
