"""The command line of evaluations: what `evaluate.py` and `python -m hetpure certify` share."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console
from torch import Tensor

from hetpure.errors import InputError
from hetpure.report.certificate import certificates_table
from hetpure.report.plan import duration, plan_tables, total_seconds
from lightning_modules.cli import make_cli, with_default_config
from lightning_modules.evaluation import RobustnessEvaluation
from lightning_modules.run_config import SaveRunConfig, chosen_before

DEFAULT = Path(__file__).parent.parent / "configs" / "evaluate" / "quick.yaml"
Batch = dict[str, Tensor]


class EvaluationCLI(LightningCLI):
    """Refuses what would give other numbers without saying so, before any process is started."""

    model: RobustnessEvaluation

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--plan", action="store_true", help="say what the evaluation would cost, and stop"
        )

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        trainer = self.trainer
        if trainer.num_devices * trainer.num_nodes > 1 or trainer.precision != "32-true":
            raise InputError(
                "evaluation runs on one device so far, and low precision is for the network call"
                " alone: set --trainer.devices=1 --trainer.precision=32-true, and for speed"
                " --model.acceleration.precision=bfloat16"
            )

    def prepare(self) -> Batch:
        """Puts the model on its device, has it fix what is left open, and gives the first block.
        What was fixed becomes part of the config that the run saves."""
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32
        self.model.to(self.trainer.strategy.root_device)
        self.datamodule.prepare_data()
        self.datamodule.setup("test")
        batch = next(iter(self.datamodule.test_dataloader()))
        batch = {key: value.to(self.model.device) for key, value in batch.items()}
        self.model.execution = chosen_before(self.model.folder.path) | self.model.execution
        self.model.prepare(self.datamodule, batch)
        self.config.model.execution = {
            name: asdict(execution) for name, execution in self.model.execution.items()
        }
        return batch


def evaluation_cli(arguments: Sequence[str]) -> EvaluationCLI:
    """Parses the arguments, the default config where they name none, and builds the program."""
    cli = make_cli(
        EvaluationCLI,
        with_default_config(arguments, DEFAULT),
        model_class=RobustnessEvaluation,
        datamodule_class=LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=SaveRunConfig,
        trainer_defaults={"inference_mode": False},
    )
    assert isinstance(cli, EvaluationCLI)
    return cli


def print_plan(cli: EvaluationCLI, batch: Batch) -> float:
    """Prints what the evaluation costs; the predicted seconds."""
    images = len(cli.datamodule.test_dataloader().dataset)
    rows = cli.model.plan(batch["image"], images)
    data = getattr(cli.datamodule, "description", "data")
    title = f"{data}: {cli.model.attack.describe()}; n = {images}"
    console = _console()
    for table in plan_tables(rows, title, cli.model.budget):
        console.print(table)
    seconds = total_seconds(rows)
    console.print(f"the whole evaluation: about {duration(seconds)}", highlight=False)
    return seconds


def print_certificates(cli: EvaluationCLI, batch: Batch) -> dict[str, dict[str, Any]]:
    """Computes the certificates of all rows and prints them."""
    console = _console()
    with console.status("gradient certificates") as status:
        for name in cli.model.certify(batch["image"], batch["sample"]):
            status.update(f"gradient certificate: {name}")
    console.print(certificates_table(cli.model.certificates))
    return cli.model.certificates


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 140)
