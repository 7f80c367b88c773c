"""`hetpure verify`: is what a run claims so?"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import _actions, _typehints
from rich.text import Text

from hetpure.commands.config_keys import load
from hetpure.commands.parsing import call, parser_of
from hetpure.errors import InputError
from hetpure.evaluation.store import CONFIG, Store
from hetpure.evaluation.verification import check_is_that_run, misreported, replay
from hetpure.program import FAILED
from hetpure.report.sheet import wide_console
from hetpure.report.verification import verdict, verification_sheet
from hetpure.weights.classifier import only_our_networks
from lightning_modules.evaluation_cli import EvaluationCLI, describer, evaluation_cli

TRUST = "read that code, and give --trust if you trust it"
OURS = ("hetpure.", "datamodules.", "lightning_modules.")
BASES = ("lightning.LightningDataModule",)  # which the parser imports for itself
QUIET = ("--trainer.logger=false", "--trainer.devices=1", "--trainer.enable_checkpointing=false")


def verify(run: str, seed: int = 0, trust: bool = False) -> None:
    """Replays a run's saved images with fresh report draws, and says of each row and attack whether
    the accuracy that the run claims agrees. Exit code 1 where one does not, 2 where the run cannot
    be replayed.

    Args:
        run: the folder, as hetpure evaluate writes it. The weights and the images that its config
            names have to be here.
        seed: of the replay's draws. Take one that nobody could foresee.
        trust: run classes that are not hetpure's, where the run's config or its weights name some.
            Without it they are refused, and nothing of them is imported.
    """
    store = Store(Path(run))
    if store.read_run() is None:
        raise InputError(f"RUN {run}: it holds no run; give a folder that hetpure evaluate wrote")
    cli = _program(store.path, trust)
    device = cli.trainer.strategy.root_device
    described = describer(cli.model.config, cli.model.loaded, cli.datamodule, device)(store)
    check_is_that_run(described, store)
    console = wide_console()
    with console.status("replay") as status:
        claims = replay(described, store, seed, lambda *now: status.update(Text(", ".join(now))))
    wrong = misreported(store)
    console.print(verification_sheet(claims, f"{run}, replayed").terminal())
    console.print(*verdict(claims, wrong), sep="\n")
    if wrong or not all(claim.holds for claim in claims):
        sys.exit(FAILED)


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
    with tempfile.TemporaryDirectory() as place, ExitStack() as guard:
        if not trust:
            guard.enter_context(only_our_code())
        written = Path(place, CONFIG)
        written.write_text(yaml.safe_dump(wanted, sort_keys=False), "utf-8")
        return evaluation_cli([f"--config={written}", *QUIET])


@contextmanager
def only_our_code() -> Iterator[None]:
    """Within it neither the parser nor a folder of weights imports what is not hetpure's. Whatever
    names a class in a config, in whatever form, comes to one function of jsonargparse, before
    anything is imported."""
    allowed: Callable[..., Any] = _typehints.import_object  # type: ignore[attr-defined]

    def checked(name: Any, **settings: Any) -> Any:
        if isinstance(name, str) and not name.startswith(OURS) and name not in BASES:
            raise InputError(f"{name!r} is not hetpure's, and its code would run here: {TRUST}")
        return allowed(name, **settings)

    modules = (_typehints, _actions)
    for module in modules:
        module.import_object = checked  # type: ignore[attr-defined]
    try:
        with only_our_networks():
            yield
    finally:
        for module in modules:
            module.import_object = allowed  # type: ignore[attr-defined]


def main(arguments: list[str]) -> None:
    """Parses the arguments and verifies."""
    parser = parser_of(verify, "run", "trust")
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--trust", action="store_true", help="run classes that are not hetpure's")
    call(verify, arguments, parser)
