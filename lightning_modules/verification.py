"""`hetpure verify`: do a run's saved images give its accuracies on fresh draws?"""

import re
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import yaml
from jsonargparse import set_parsing_settings
from rich.text import Text

from hetpure.commands.config_keys import load
from hetpure.commands.parsing import call, parser_of
from hetpure.errors import InputError, causes
from hetpure.evaluation.run_results import Contents
from hetpure.evaluation.store import CONFIG, Store
from hetpure.evaluation.verification import (
    check_is_that_run,
    check_is_up_to_date,
    misreported,
    replay,
)
from hetpure.program import FAILED
from hetpure.report.sheet import wide_console
from hetpure.report.verification import verdict, verification_sheet
from hetpure.trust import OURS, foreign, only_our_code
from lightning_modules.evaluation_cli import EvaluationCLI, describer, evaluation_cli

# Which the parser imports for itself, and where it is defined.
BASE = ("lightning.LightningDataModule", "lightning.pytorch.core.datamodule")
DENIED = re.compile(r"Importing '([^']*)' is not allowed")
QUIET = ("--trainer.logger=false", "--trainer.devices=1", "--trainer.enable_checkpointing=false")


def verify(run: str, seed: int = 0, trust: bool = False) -> None:
    """Replays a run's saved images with fresh report draws, and says of each row and attack whether
    the accuracy that the run claims is within chance. What else results say is compared with the
    records alone. Exit code 1 where an accuracy is not within chance, or where images, records and
    results do not agree; 2 where the run cannot be replayed.

    Args:
        run: the folder, as hetpure evaluate writes it. The weights and the images that its config
            names have to be here.
        seed: of the replay's draws. Take one that nobody could foresee.
        trust: run classes that are not hetpure's, where the run's config or its weights name some,
            and download what the config asks for. Without it both are refused, and nothing foreign
            is imported.
    """
    store = Store(Path(run))
    if store.read_run() is None:
        raise InputError(f"RUN {run}: it holds no run; give a folder that hetpure evaluate wrote")
    with nullcontext() if trust else only_our_code():
        contents = Contents.read(store)
        cli = _program(store.path, trust)
        device = cli.trainer.strategy.root_device
        described = describer(cli.model.config, cli.model.loaded, cli.datamodule, device)(store)
        check_is_that_run(described, store)
        console = wide_console()
        with console.status("replay") as status:
            replayed = replay(
                described, store, seed, lambda *at: status.update(Text(", ".join(at)))
            )
        # Of records that cannot be, results are nothing to compare with.
        wrong = [] if replayed.problems else misreported(store)
    console.print(verification_sheet(replayed, f"{run}, replayed").terminal())
    console.print(*verdict(replayed, wrong, contents.missing, contents.struck), sep="\n")
    if wrong or not replayed.within_chance:
        sys.exit(FAILED)
    check_is_up_to_date(store)


def _program(folder: Path, trust: bool) -> EvaluationCLI:
    """What evaluates the run's model on the run's data. The trainer is not the config's: its
    loggers and callbacks are of no use here, and may be anyone's."""
    path = folder / CONFIG
    try:
        config = load(path.read_text("utf-8"))
        wanted = {key: config[key] for key in ("model", "data")}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is no config of an evaluation ({reason}): restore it") from None
    if not trust:  # from now on, for the whole process
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*OURS, *BASE])
    with tempfile.TemporaryDirectory() as place:
        written = Path(place, CONFIG)
        written.write_text(yaml.safe_dump(wanted, sort_keys=False), "utf-8")
        try:
            return evaluation_cli([f"--config={written}", *QUIET])
        except InputError as error:
            denied = next(filter(None, (DENIED.search(str(e)) for e in causes(error))), None)
            if denied is None:
                raise
            raise foreign(denied[1]) from None


def main(arguments: list[str]) -> None:
    """Parses the arguments and verifies."""
    parser = parser_of(verify, "run", "trust")
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--trust", action="store_true", help="run classes that are not hetpure's")
    call(verify, arguments, parser)
