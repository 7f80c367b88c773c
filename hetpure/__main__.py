"""`hetpure COMMAND OPTIONS`, or `python -m hetpure COMMAND OPTIONS`."""

import sys
from importlib import import_module
from importlib.metadata import version

from hetpure.errors import InputError
from hetpure.program import run

# What it does, and where: only the command that is asked for is imported.
COMMANDS = {
    "evaluate": ("attack defences, count, audit", "lightning_modules.evaluation_cli:main"),
    "train": ("train or fine-tune a network", "lightning_modules.training_cli:main"),
    "plan": ("what an evaluation would cost", "lightning_modules.evaluation_cli:plan_main"),
    "gradcheck": (
        "are an evaluation's gradients the gradients?",
        "lightning_modules.evaluation_cli:gradcheck",
    ),
    "analyze": (
        "look at a defence's randomness: knowledge, paths, landscapes",
        "lightning_modules.analysis_cli:main",
    ),
    "tune": ("search a defence's settings on validation images", "lightning_modules.tuning:main"),
    "purify": ("purify images, or look at one purification", "hetpure.commands.purify:main"),
    "benchmark": (
        "how fast is this machine, and how fast could it be?",
        "hetpure.commands.benchmark:main",
    ),
    "convert": ("make a folder of a published file of weights", "hetpure.commands.convert:main"),
    "compare": ("compare the defences of several runs", "hetpure.commands.compare:main"),
    "verify": (
        "ask a run's saved images again: are its accuracies within chance?",
        "lightning_modules.verification:main",
    ),
    "report": ("write and print a run's results", "hetpure.commands.report:main"),
    "configs": ("list the packaged configs, or print one", "hetpure.commands.configs:main"),
    "doctor": ("what of a config is missing on this machine", "lightning_modules.doctor:main"),
}


def main(arguments: list[str]) -> None:
    """Runs the command that the first argument names, with the others."""
    name, *options = arguments or ["--help"]
    if name in ("-h", "--help"):
        print("usage: hetpure COMMAND [--help] [OPTIONS]\n")
        print(
            *(f"  {command:10} {purpose}" for command, (purpose, _) in COMMANDS.items()), sep="\n"
        )
        return
    if name == "--version":
        print(version("hetpure"))
        return
    if name not in COMMANDS:
        raise InputError(f"{name!r} is no command; these are: {', '.join(COMMANDS)}")
    module, _, function = COMMANDS[name][1].partition(":")
    getattr(import_module(module), function)(options)


def console() -> None:
    """The program `hetpure`."""
    run(main, sys.argv[1:])


if __name__ == "__main__":
    console()
