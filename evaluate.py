"""Evaluates defences under attack: `python evaluate.py` runs the packaged ones in a few minutes.

Every option: `python evaluate.py --help`; other evaluations: `configs/evaluate/`.
"""

import sys
from pathlib import Path

from lightning import LightningDataModule

from lightning_modules.cli import EvaluationCLI, make_cli, run, with_default_config
from lightning_modules.evaluation import RobustnessEvaluation, SaveRunConfig

DEFAULT = Path(__file__).parent / "configs" / "evaluate" / "quick.yaml"


def main(arguments: list[str]) -> None:
    """Parses the arguments, builds the program and runs it."""
    cli = make_cli(
        EvaluationCLI,
        with_default_config(arguments, DEFAULT),
        model_class=RobustnessEvaluation,
        datamodule_class=LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=SaveRunConfig,
        trainer_defaults={"inference_mode": False},
    )
    cli.trainer.test(cli.model, cli.datamodule, verbose=False)


if __name__ == "__main__":
    run(main, sys.argv[1:])
