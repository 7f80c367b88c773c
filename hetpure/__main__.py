"""`python -m hetpure`: look at one purification, or search for a defence's settings."""

import sys
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import torch
import yaml
from lightning import LightningDataModule
from rich.console import Console

from datamodules.fashion_mnist import FashionMNIST
from hetpure.attacks import Attack
from hetpure.errors import InputError
from hetpure.evaluation.frontier import choose
from hetpure.evaluation.protocol import Protocol
from hetpure.images import read_image, write_image
from hetpure.noise import noise_for
from hetpure.presets import load_defense
from hetpure.report.figure import draw
from hetpure.report.frontier import draw_frontier, frontier_markdown, frontier_table
from hetpure.report.purification import purification_panels
from lightning_modules.cli import quiet, run
from lightning_modules.defenses import DefenseConfig
from lightning_modules.tuning import claim_folder, search, tuned_config

CLASS_NAMES = {"fashion_mnist": FashionMNIST.class_names}


def purify(
    source: str,
    target: str,
    defense: str = "fashion_mnist",
    seed: int = 0,
    figure: str | None = None,
) -> None:
    """Purifies one image file.

    Args:
        source: PNG or JPEG to read; it is scaled to the diffusion network's size.
        target: PNG to write.
        defense: name of a packaged defence.
        seed: of the noise; another seed is another purification.
        figure: where to draw the steps between, as PNG.
    """
    loaded = load_defense(defense)
    image = read_image(source, loaded.image_shape)
    noise = noise_for(image, seed)
    purified = loaded.purify(image, noise)
    write_image(target, purified)
    names = CLASS_NAMES[defense]
    before, after = (names[loaded.classifier(p).argmax(1)] for p in (image, purified))
    print(f"{target}: classified as {after}, {before} before; {loaded.network_calls} network calls")
    if figure is not None:
        draw(purification_panels(loaded, image, noise, names), Path(figure))
        print(f"{figure}: the steps between")


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
    if getattr(data, "test_split", "validation") != "validation":
        raise InputError("tuning chooses, so it needs --data.test_split validation")
    if device != "cpu" and not getattr(torch, device).is_available():
        raise InputError(f"this machine or this build of torch has no {device}: use --device=cpu")
    place, console = Path(folder), Console(width=None if Console().is_terminal else 140)
    claim_folder(place, config)
    trials = list(
        search(
            classifier, denoiser, base, vary, attack, protocol, data, seed, place, device, console
        )
    )
    chosen = choose(trials, clean_weight)
    title = f"{getattr(data, 'description', 'data')}: {attack.describe()}; n = {chosen.clean.n}"
    console.print(frontier_table(trials, chosen, title))
    (place / "frontier.md").write_text(frontier_markdown(trials, chosen, title))
    draw_frontier(trials, chosen, title, place / "frontier.png")
    tuned = place / "tuned.yaml"
    tuned.write_text(yaml.safe_dump(tuned_config(config, chosen.settings), sort_keys=False))
    console.print(
        "These accuracies chose the settings, so they flatter them. On the test images:\n"
        f"  python evaluate.py --config {tuned}",
        soft_wrap=True,
    )


def main(arguments: list[str]) -> None:
    """Parses the arguments and runs the command."""
    quiet()
    parser = jsonargparse.ArgumentParser(
        prog="python -m hetpure",
        description="Look at one purification, or search for a defence's settings.",
        exit_on_error=False,
    )
    commands = parser.add_subcommands()
    purifying = jsonargparse.ArgumentParser(exit_on_error=False, description=purify.__doc__)
    purifying.add_function_arguments(purify, as_positional=True)
    commands.add_subcommand("purify", purifying, help="purify one image file")
    tuning = jsonargparse.ArgumentParser(exit_on_error=False)
    tuning.add_argument("--config", action="config", help="a YAML file with what follows")
    tuning.add_function_arguments(tune, skip={"config"}, as_positional=False)
    commands.add_subcommand("tune", tuning, help="search for a defence's settings")

    parsed = parser.parse_args(arguments)
    if parsed.subcommand == "purify":
        purify(**parsed.purify)
        return
    plain = yaml.safe_load(tuning.dump(parsed.tune))
    ready = tuning.instantiate_classes(parsed.tune).as_dict()
    ready.pop("config", None)
    tune({name: plain[name] for name in ready if name in plain}, **ready)


if __name__ == "__main__":
    run(main, sys.argv[1:])
