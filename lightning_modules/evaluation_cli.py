"""The command line of evaluations: what `evaluate.py` and `python -m hetpure check_gradients` share."""

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from rich.console import Console

from hetpure.errors import InputError
from hetpure.evaluation.records import CONFIG, RunFolder
from hetpure.memory import gigabytes, weight_bytes
from hetpure.report.gradient_checks import gradient_checks_table
from hetpure.report.plan import RowPlan, duration, plan_tables, total_bytes, total_seconds
from lightning_modules.cli import make_cli, with_default_config
from lightning_modules.evaluation import RobustnessEvaluation
from lightning_modules.run_config import chosen_before, same_or_new
from lightning_modules.signals import (
    check_nothing_is_loaded_unasked,
    ending_with_children,
    leave_slurm_to_us,
    say,
)

DEFAULT = Path(__file__).parent.parent / "configs" / "evaluate" / "quick.yaml"
MIXED = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}  # of the network's calls alone


class EvaluationCLI(LightningCLI):
    """Refuses what would give other numbers without saying so, before any process is started."""

    model: RobustnessEvaluation

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--plan", action="store_true", help="say what the evaluation would cost, and stop"
        )
        parser.add_argument(
            "--resume",
            type=Literal["same", "force"],
            default="same",
            help="where --model.run holds a run of another config: same refuses, force starts a"
            " new folder beside it",
        )

    def before_instantiate_classes(self) -> None:
        precision = MIXED.get(str(self.config.trainer.precision))
        if precision is not None:  # Lightning's plugin would run the classifier in it too
            self.config.model.acceleration.precision = precision
            self.config.trainer.precision = "32-true"

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        trainer = self.trainer
        if trainer.precision != "32-true":
            raise InputError(
                f"--trainer.precision {trainer.precision}: an evaluation computes in float32, but"
                " for the diffusion network's calls (bf16-mixed, 16-mixed)"
            )
        strategy = trainer.strategy
        own = isinstance(strategy, DDPStrategy) and strategy._start_method == "popen"
        if not (own or isinstance(strategy, SingleDeviceStrategy)):
            raise InputError("--trainer.strategy: an evaluation on several devices takes ddp")
        limit = trainer.limit_test_batches
        if self.config.trainer.fast_dev_run or isinstance(limit, int) or limit != 1.0:
            raise InputError(
                "an evaluation computes all its blocks: for fewer images set --data.limit, not"
                " --trainer.limit_test_batches or --trainer.fast_dev_run"
            )

    def prepare(self) -> None:
        """Chooses the run's folder, puts the model on its device and has it fix what is left open,
        which becomes part of the config that the run saves."""
        model = self.model
        if self.trainer.is_global_zero:  # other processes will be told
            wanted = model.folder.path
            path = same_or_new(wanted, self._config(), force=self.config.resume == "force")
            self.config.resume = "same"  # in the saved config: it is about this start alone
            if path != wanted:
                print(f"{wanted} holds a run with another config: this one is in {path}")
                self.config.model.run = path.name
            model.folder = RunFolder(path)
            before = chosen_before(path)
            model.execution |= before  # which agrees with what is asked for
            model.kept = set(before)
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32
        model.to(self.trainer.strategy.root_device)
        with one_at_a_time():
            self.datamodule.prepare_data()
        self.datamodule.setup("test")
        loader = self.datamodule.test_dataloader()
        model.prepare(self.datamodule, loader, self.trainer.num_devices)
        if self.trainer.is_global_zero:  # other processes will be told
            model.resolve()
        self.config.model.execution = {
            name: asdict(execution) for name, execution in model.execution.items()
        }

    def evaluate(self) -> None:
        """The evaluation in its folder, which the first process keeps for itself."""
        model = self.model
        leave_slurm_to_us(self.trainer)
        check_nothing_is_loaded_unasked(self.trainer)
        zero = self.trainer.is_global_zero
        if zero:
            print(f"run: {model.folder.path}", flush=True)
        # The bar hides the cursor, and its line has no end.
        terminal = sys.stderr is not None and sys.stderr.isatty()
        after_the_bar = "\x1b[?25h\n" if terminal else ""
        last_words = after_the_bar + model.how_to_go_on if zero else ""
        try:
            # Lightning's handler waits for the end of an epoch: here, the whole run. Finished
            # blocks are on the disk, so ending at once loses no record.
            with self._opened() if zero else nullcontext(), ending_with_children(last_words):
                self.trainer.test(model, model.tasks_claimed(), verbose=False)
        except BaseException as error:
            model.tell_others(str(error).split("\n")[0])
            if zero and isinstance(error, (KeyboardInterrupt, SystemExit)):
                say(model.how_to_go_on)
            raise
        finally:
            model.give_terminal_back()

    @contextmanager
    def _opened(self) -> Iterator[None]:
        folder = self.model.folder
        with folder.locked():
            same_or_new(folder.path, self._config(), force=False)  # nobody came in between
            if not (folder.path / CONFIG).exists():
                folder.write_config(self._config())
            yield

    def _config(self) -> str:
        """All of it, as YAML."""
        config: str = self.parser.dump(self.config, skip_none=False)
        return config


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """The user's processes on this machine after one another: what the first one makes, the others
    find."""
    path = Path(tempfile.gettempdir()) / f"hetpure-{os.getuid()}.lock"
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def evaluation_cli(arguments: Sequence[str]) -> EvaluationCLI:
    """Parses the arguments, the default config where they name none, and builds the program."""
    cli = make_cli(
        EvaluationCLI,
        with_default_config(arguments, DEFAULT),
        model_class=RobustnessEvaluation,
        datamodule_class=LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=None,
        trainer_defaults={"inference_mode": False},
    )
    assert isinstance(cli, EvaluationCLI)
    return cli


def print_plan(cli: EvaluationCLI) -> dict[str, RowPlan]:
    """Prints what the evaluation costs, which is given back too."""
    images = len(cli.model.loader.dataset)  # type: ignore[arg-type]
    rows = cli.model.plan()
    data = getattr(cli.datamodule, "description", "data")
    title = f"{data}: {cli.model.attack.describe()}; n = {images}"
    console = _console()
    for table in plan_tables(rows, title, cli.model.budget):
        console.print(table)
    seconds = total_seconds(rows)
    beside, networks = total_bytes(rows), weight_bytes([cli.model.networks])
    console.print(
        f"the whole evaluation on one device: about {duration(seconds)}; memory: networks"
        f" {gigabytes(networks)}, beside them up to {gigabytes(beside)}",
        highlight=False,
    )
    return rows


def print_gradient_checks(cli: EvaluationCLI) -> dict[str, dict[str, Any]]:
    """Computes the gradient checks of all rows and prints them."""
    console = _console()
    found = {}
    with console.status("gradient checks") as status:
        for name, row in cli.model.rows.items():
            status.update(f"gradient check: {name}")
            found[name] = cli.model.gradient_checks(row)
    console.print(gradient_checks_table(found))
    return found


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 140)
