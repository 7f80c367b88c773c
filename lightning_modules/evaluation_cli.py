"""The command line of evaluations: `hetpure evaluate`, which `evaluate.py` is, `plan` and
`gradcheck`."""

import itertools
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from rich.text import Text

from hetpure.commands.options import naming_options
from hetpure.disk import write_whole
from hetpure.errors import InputError
from hetpure.evaluation.description import Evaluation, Networks, describe
from hetpure.evaluation.facts import run_record
from hetpure.evaluation.plan import RowPlan, plan
from hetpure.evaluation.row_check import check_gradients
from hetpure.evaluation.store import CONFIG, Store
from hetpure.memory import gigabytes, weight_bytes
from hetpure.program import FAILED, say
from hetpure.report.finish import finish
from hetpure.report.gradient_checks import gradient_checks_sheet
from hetpure.report.plan import cost_sheet, duration, memory_sheet
from hetpure.report.recommended import saving
from hetpure.report.sheet import wide_console
from lightning_modules.cli import CLI, make_cli
from lightning_modules.evaluation import Describe, RobustnessEvaluation
from lightning_modules.images import images_of
from lightning_modules.signals import check_nothing_is_loaded_unasked

MIXED = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}  # of the network's calls alone


class EvaluationCLI(CLI):
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
        given = self.config.trainer.strategy
        popen = (
            given in ("auto", "ddp")
            if isinstance(given, str)
            else given.get("init_args.start_method", "popen") == "popen"
        )
        if not (isinstance(strategy, DDPStrategy) and popen) and not isinstance(
            strategy, SingleDeviceStrategy
        ):
            raise InputError("--trainer.strategy: an evaluation on several devices takes ddp")
        limit = trainer.limit_test_batches
        if self.config.trainer.fast_dev_run or isinstance(limit, int) or limit != 1.0:
            raise InputError(
                "an evaluation computes all its blocks: for fewer images set --data.limit, not"
                " --trainer.limit_test_batches or --trainer.fast_dev_run"
            )

    def prepare(self) -> None:
        """Puts networks on their device and has the first process describe the run on the data's
        test images. What it chose becomes part of the config that is saved."""
        model, trainer = self.model, self.trainer
        device, sharing = trainer.strategy.root_device, trainer.num_devices
        model.describe = describer(model.config, model.loaded, self.datamodule, device, sharing)
        if trainer.is_global_zero:
            with naming_options(self.config):
                model.store = self._store(model.store, model.describe)
                if (
                    self.config.trainer.logger is True
                ):  # beside the results, not in a folder of its own
                    trainer.loggers = [TensorBoardLogger(model.store.path, name="", version="")]
                model.described = model.describe(model.store)

    def _store(self, store: Store, describe: Describe) -> Store:
        """The folder of the run. One that holds another run is refused with the difference; or it
        is left as it is, where that is forced, and the run gets a folder of its own."""
        wanted = store.path
        for number in itertools.count(2):
            if (before := store.read_run()) is None:
                break
            now = describe(store).identity()
            try:
                store.check_same(before["identity"], now, f"{store.path} holds a run with")
            except InputError as error:
                if self.config.resume != "force":
                    raise InputError(
                        f"{error} (--model.run names the folder, --resume=force takes a new one)"
                    ) from None
                store = Store(wanted.with_name(f"{wanted.name}-{number}"))
                continue
            begun, threads = before["provenance"]["threads"], torch.get_num_threads()
            if threads != begun:
                print(
                    f"the run goes on with the {begun} threads a process that it began with"
                    f" ({threads} would be now): another number gives other roundings"
                )
            torch.set_num_threads(begun)
            break
        if store.path != wanted:
            print(f"{wanted} holds a run with another config: this one is in {store.path}")
        return store

    def evaluate(self) -> None:
        """The evaluation in its folder, which the first process keeps for itself. Exit code 1 where
        a row was struck out."""
        check_nothing_is_loaded_unasked(self.trainer)
        model, zero = self.model, self.trainer.is_global_zero
        whole = True
        try:
            with self._begun() if zero else nullcontext():
                self.trainer.test(model, [0], verbose=False)  # one step: all of it
                if zero and model.described is not None:
                    results = finish(model.described, model.store)
                    whole = not (results["struck"] or results["missing"])
        except (KeyboardInterrupt, SystemExit):
            if zero:
                say(f"stopped; go on with --model.run={shlex.quote(model.store.path.name)}\n")
            raise
        if not whole:
            sys.exit(FAILED)

    def saved_config(self) -> Namespace:
        """What the folder is to hold of the config."""
        config: Namespace = self.config.clone()
        config.resume = "same"  # it is about this start alone
        return config

    @contextmanager
    def _begun(self) -> Iterator[None]:
        model = self.model
        assert model.described is not None
        with model.store.locked():
            model.store.begin(run_record(model.described))
            config = self.saved_config()
            config.model.run = model.store.path.name
            config.model.acceleration.precision = model.described.config.acceleration.precision
            config.model.execution = {
                name: asdict(execution) for name, execution in model.described.execution.items()
            }
            text: str = self.parser.dump(config, skip_none=False)
            write_whole(model.store.path / CONFIG, text.encode())
            with suppress(BrokenPipeError):  # nobody reads it, and the evaluation goes on
                print(f"run: {model.store.path}", flush=True)
            yield


def describer(
    config: Evaluation, networks: Networks, data: Any, device: torch.device, sharing: int = 1
) -> Describe:
    """What describes a run, in the store that it is given, on the data's test images; networks and
    images are on the device from now on."""
    networks.modules().to(device)
    lock = Path(tempfile.gettempdir()) / f"hetpure-{os.getuid()}.lock"
    with FileLock(lock):  # what one process makes, the user's others here find
        data.prepare_data()
    data.setup("test")
    loader = data.test_dataloader()
    images = images_of(data, loader, device)
    size = loader.batch_size
    return partial(describe, config, networks, images, device=device, largest=size, sharing=sharing)


def evaluation_cli(arguments: Sequence[str]) -> EvaluationCLI:
    """Parses the arguments, the default config where they name none, and builds the program."""
    return make_cli(
        EvaluationCLI,
        "evaluate",
        arguments,
        model_class=RobustnessEvaluation,
        save_config_callback=None,
        trainer_defaults={"inference_mode": False},
    )


def print_plan(cli: EvaluationCLI) -> dict[str, RowPlan]:
    """Prints what the evaluation costs, which is given back too."""
    run = cli.model.described
    assert run is not None
    rows = plan(run)
    title = f"{run.images.description}: {run.config.attack.describe()}; n = {len(run.images)}"
    console = wide_console()
    console.print(cost_sheet(rows, title).terminal(), memory_sheet(rows, run.budget).terminal())
    networks = gigabytes(weight_bytes([cli.model.networks]))
    seconds = sum(row.seconds for row in rows.values())
    more = sum(max(row.most_check_seconds - row.check_seconds, 0) for row in rows.values())
    most = max(max(row.gradient_bytes, row.check_bytes) for row in rows.values())
    console.print(
        f"the whole evaluation on one device: about {duration(seconds)}, at most"
        f" {duration(seconds + more)} where gradient checks take all the time that they may;"
        f" blocks of {run.block} images; memory: networks {networks}, beside them up to"
        f" {gigabytes(most)}",
        highlight=False,
    )
    if (line := saving(run.config.attack)) is not None:
        console.print(line, highlight=False)
    return rows


def print_gradient_checks(cli: EvaluationCLI) -> dict[str, dict[str, Any]]:
    """Computes the gradient checks of all rows and prints them."""
    run = cli.model.described
    assert run is not None
    console = wide_console()
    checks = {}
    with console.status("gradient checks") as status:
        for name, row in run.rows.items():
            status.update(Text(f"gradient check: {name}"))  # as it is: names may look like markup
            checks[name] = check_gradients(run, row)
    console.print(gradient_checks_sheet(checks, "Gradient checks").terminal())
    return checks


def main(arguments: list[str]) -> None:
    """`hetpure evaluate`: parses the arguments, builds the program and runs it, or says what it
    would cost."""
    cli = evaluation_cli(arguments)
    cli.prepare()
    if not cli.config.plan:
        cli.evaluate()
    elif cli.trainer.is_global_zero:  # the others chose nothing
        print_plan(cli)


def plan_main(arguments: list[str]) -> None:
    """`hetpure plan`: what an evaluation with these options would cost."""
    main([*arguments, "--plan"])


def gradcheck(arguments: list[str]) -> None:
    """`hetpure gradcheck`: computes the gradient checks of an evaluation with these options, prints
    them, and fails where one does."""
    cli = evaluation_cli(arguments)
    if cli.config.plan:
        raise InputError("--plan is another command's: gradcheck computes the checks")
    cli.prepare()
    if not cli.trainer.is_global_zero:  # one process says it
        return
    failures = [
        f"{row}, {name.replace('_', ' ')}: {check['failure']}"
        for row, checks in print_gradient_checks(cli).items()
        for name, check in checks.items()
        if not check["passed"]
    ]
    if failures:
        print(*failures, sep="\n")
        sys.exit(FAILED)
