"""`hetpure tune`: a search for a defence's settings on validation images."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning import LightningDataModule
from rich.text import Text

from hetpure.attacks import Attack
from hetpure.commands.parsing import parser_of, settings_of
from hetpure.errors import InputError, only_warned
from hetpure.evaluation.description import Evaluation, Networks
from hetpure.evaluation.protocol import Protocol
from hetpure.evaluation.rows import DefenseConfig
from hetpure.evaluation.search import Settings, choose, search
from hetpure.evaluation.store import Store
from hetpure.gradients import APPROXIMATIONS
from hetpure.noise import SEEDS
from hetpure.packaged_configs import CONFIGS, with_paths
from hetpure.report.frontier import draw_frontier, frontier_page
from hetpure.report.sheet import wide_console
from lightning_modules.cli import quiet
from lightning_modules.evaluation_cli import describer
from lightning_modules.sweep import combinations

DENOISER = "tuned"  # its key in the configs of the evaluations


def tune(
    config: dict[str, Any],
    classifier: str,
    denoiser: str,
    base: DefenseConfig,
    vary: dict[str, list[Any]],
    attack: Attack,
    data: LightningDataModule,
    protocol: Protocol = Protocol(),  # noqa: B008 (frozen)
    clean_weight: float = 0.5,
    seed: int = 0,
    folder: str = "runs/tune",
    device: Literal["cpu", "cuda", "mps"] = "cpu",
) -> None:
    """Searches a defence's settings on validation images, prints the frontier, writes a config.

    Args:
        config: all of the following as plain values.
        classifier: packaged name or folder.
        denoiser: packaged name or folder of the diffusion.
        base: the defence whose settings vary.
        vary: dotted names of settings (mask.threshold, purifier.t_large), and values; every
            combination is tried.
        attack: the small attack that a trial is measured under.
        data: datamodule; its test_split must be validation, so that nothing is chosen on images
            that results are reported on.
        protocol: how draws are counted.
        clean_weight: the chosen trial has the highest weighted mean of clean and robust accuracy;
            this is the weight of clean.
        seed: of all noise.
        folder: where trials, frontier and the chosen config go. The same command goes on where it
            was stopped.
        device: where to compute.
    """
    if not 0 <= clean_weight <= 1:
        raise InputError(f"--clean_weight must be in [0, 1], got {clean_weight}")
    if not 0 <= seed < SEEDS:
        raise InputError(f"--seed must be in [0, {SEEDS}), got {seed}")
    if getattr(data, "test_split", None) != "validation":
        raise InputError("tuning chooses, so it needs data with a test_split, set to validation")
    if base.purifier is None or base.denoiser is not None or base.surrogate is not None:
        raise InputError(
            "the base of a search has a purifier, no denoiser of its own (it is --denoiser) and no"
            " surrogate"
        )
    if "gradient" in vary or base.gradient in APPROXIMATIONS:
        raise InputError("the gradient is the attack's, not a setting to tune: give an exact one")
    if device != "cpu" and not getattr(torch, device).is_available():
        raise InputError(f"this machine or this build of torch has no {device}: use --device=cpu")
    store, console = Store(Path(folder)), wide_console()
    base = replace(base, denoiser=DENOISER)
    candidates, refused = combinations(base, vary)
    for reason in refused:
        console.print(Text(f"left out: {reason}", style="dim"), soft_wrap=True)
    evaluation = Evaluation(
        classifier=classifier,
        denoisers={DENOISER: denoiser},
        defenses={name: defense for name, (_, defense) in candidates.items()},
        attack=attack,
        protocol=protocol,
        audit=None,
        seed=seed,
    )
    run = describer(evaluation, Networks.load(evaluation), data, torch.device(device))(store)
    settings = {name: settings for name, (settings, _) in candidates.items()}
    trials = []
    for number, (name, trial) in enumerate(search(run, store, base, settings), start=1):
        if trial is None:
            result = f"struck out: {store.struck(name)}"
        else:
            trials.append(trial)
            result = (
                f"clean {trial.clean.accuracy:.1%}, robust {trial.robust.accuracy:.1%}"
                f" ({trial.seconds:.0f} s)"
            )
        line = f"{number}/{len(settings)} {name}: {result}"
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if not trials:
        raise InputError("every trial was struck out: nothing can be chosen")
    chosen = choose(trials, clean_weight)
    sheet, notes = frontier_page(run, trials, chosen, clean_weight)
    console.print(sheet.terminal())
    console.print(notes[0], soft_wrap=True)
    (store.path / "frontier.md").write_text(
        "\n".join([sheet.markdown(), "", *(f"- {note}" for note in notes)]) + "\n", "utf-8"
    )
    tuned = store.path / "tuned.yaml"
    tuned.write_text(yaml.safe_dump(tuned_config(config, chosen.settings), sort_keys=False))
    with only_warned("frontier.png"):
        draw_frontier(trials, chosen, sheet.title, store.path / "frontier.png")
    console.print(f"On all test images: hetpure evaluate --config {tuned}", soft_wrap=True)


def main(arguments: list[str]) -> None:
    """`hetpure tune`: parses the arguments and searches."""
    quiet()
    parser = parser_of(tune, "config", positional=False)
    parser.add_argument("--config", action="config", help="a YAML file with what follows")
    options, settings = settings_of(parser, with_paths("tune", arguments))
    del settings["config"]  # the files, whose settings are read
    tune(yaml.safe_load(parser.dump(options)), **settings)


def tuned_config(config: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """A config of an evaluation with the chosen settings, on all test images."""
    row = copy.deepcopy(config["base"]) | {"denoiser": DENOISER}
    for path, value in settings.items():
        _change(row, path, value)
    data = copy.deepcopy(config["data"])
    data["init_args"] |= {"test_split": "test", "limit": None}
    return {
        "seed_everything": config["seed"],
        "model": {
            "classifier": config["classifier"],
            "denoisers": {DENOISER: config["denoiser"]},
            "defenses": {"plain classifier": {}, "tuned": row},
            "attack": config["attack"],
            "protocol": config["protocol"],
            "seed": config["seed"],
        },
        "data": data,
        "trainer": yaml.safe_load(CONFIGS.joinpath("evaluate", "quick.yaml").read_text())["trainer"]
        | {"accelerator": "cpu" if config["device"] == "cpu" else "auto"},
    }


def _change(node: dict[str, Any], path: str, value: Any) -> None:
    """Changes a setting, in a config, where a class's settings are beside its class_path."""
    settings = node["init_args"] if "class_path" in node else node
    name, _, rest = path.partition(".")
    if rest:
        _change(settings[name], rest, value)
    else:
        settings[name] = value
