"""`python -m hetpure`: look at one purification, convert published weights, search for a defence's
settings, check an evaluation's gradients, report a run anew, or compare the defences of several."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from datamodules.fashion_mnist import FashionMNIST
from hetpure.errors import InputError
from hetpure.evaluation import compare as comparing
from hetpure.evaluation.protocol import CLEAN
from hetpure.evaluation.results import Counting
from hetpure.images import read_image, write_image
from hetpure.noise import noise_for
from hetpure.presets import load_defense
from hetpure.report import comparison
from hetpure.report.figure import draw
from hetpure.report.purification import purification_panels
from hetpure.report.report import report as write_and_print
from hetpure.report.sheet import wide_console
from hetpure.weights import convert as converting
from hetpure.weights.check import check_classifier, check_denoiser
from hetpure.weights.formats import Betas, Hints, PublishedPairing
from lightning_modules.cli import quiet, run
from lightning_modules.evaluation_cli import FAILED, evaluation_cli, print_gradient_checks
from lightning_modules.options import naming_options
from lightning_modules.tuning import tune


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
    names = FashionMNIST.class_names  # of every packaged defence
    before, after = (names[loaded.classifier(p).argmax(1)] for p in (image, purified))
    print(f"{target}: classified as {after}, {before} before; {loaded.network_calls} network calls")
    if figure is not None:
        draw(purification_panels(loaded, image, noise, names), Path(figure))
        print(f"{figure}: the steps between")


def convert(
    source: str,
    target: str,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    sample_size: int | None = None,
    head_channels: int | None = None,
    beta_schedule: Betas | None = None,
    steps: int | None = None,
    pairing: PublishedPairing | None = None,
    part: str | None = None,
    architecture: str | None = None,
    num_classes: int | None = None,
    network: dict[str, Any] | None = None,
    attention_blocks: list[str] | None = None,
    check: bool = False,
) -> None:
    """Turns a published file of weights into a folder that evaluate.py and train.py read.

    The format is recognised by the names in the file. No pickle is executed.

    Args:
        source: the file: safetensors, what torch.save wrote, or a pickle.
        target: folder to write.
        mean: a classifier's normalisation, pixel [0, 1], where not its format's.
        std: as mean.
        sample_size: height and width of a diffusion's images, where not the published network's; of
            a classifier's, for check.
        head_channels: channels of an attention head of OpenAI's networks, where not published.
        beta_schedule: noise schedule of OpenAI's networks, where not published.
        steps: of that schedule.
        pairing: of time and noise level, of score_sde's networks: network is their training's and
            the default, table that of HetPure's code, diffpure that of DiffPure's.
        part: entry of the file to take where it holds several, as state_dict.
        architecture: import path of the class of a classifier of your own (my_package.Net), or
            another library's, as timm:NAME, in place of a format; its code is imported.
        num_classes: logits of that classifier.
        network: arguments of that class, as JSON.
        attention_blocks: modules of that classifier that the attention mask reads.
        check: run what was written once; a wrong map shows in the numbers.
    """
    hints, custom = Hints(sample_size, head_channels, beta_schedule, steps, pairing), None
    if architecture is not None:
        if num_classes is None:
            raise InputError("--architecture needs --num_classes, the number of its logits")
        custom = converting.CustomNetwork(
            architecture, num_classes, network or {}, attention_blocks
        )
    elif (num_classes, network, attention_blocks) != (None, None, None):
        raise InputError("--num_classes, --network, --attention_blocks belong to --architecture")
    converted = converting.convert(
        Path(source), Path(target), hints, mean=mean, std=std, part=part, custom=custom
    )
    print(f"{source}: {converted.format}")
    for line in converted.remarks:
        print(f"  {line}")
    if check:
        diffusion = converted.kind == "diffusion"
        folder = converted.folder
        lines = check_denoiser(folder) if diffusion else check_classifier(folder, sample_size)
        print(*(f"  {line}" for line in lines), sep="\n")
    option = "--model.classifier" if converted.kind == "classifier" else "--model.denoisers.ddpm"
    print(f"{target}: a {converted.kind}, for evaluate.py {option} {target}")


def check_gradients(arguments: list[str]) -> None:
    """Computes the gradient checks of an evaluation, prints them, and fails where one does.

    Args:
        arguments: options of evaluate.py.
    """
    cli = evaluation_cli(arguments)
    if cli.config.plan:
        raise InputError("--plan is an option of evaluate.py: check_gradients computes the checks")
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


def report(run: str) -> None:
    """Writes and prints results and report of a run, finished or not, from what its folder holds.

    Args:
        run: the folder, as evaluate.py writes it.
    """
    if not Path(run).is_dir():
        raise InputError(f"{run}: there is no such folder; give its path, as runs/evaluate/NAME")
    write_and_print(Path(run))


def compare(
    runs: list[str],
    baseline: str | None = None,
    attack: str = comparing.ROBUST,
    protocol: Counting = "single",
    tolerance: float = 0.0,
    csv: str | None = None,
    latex: str | None = None,
) -> None:
    """Compares every defence of these runs with one of them, on the samples that both have.

    Exit code 0: under attack no defence is significantly worse than the baseline; 1: one is, its
    whole 95% interval is below zero, or below the tolerated drop; 2: the input cannot be compared.
    Intervals are not corrected for their number.

    Args:
        runs: folders of runs, as evaluate.py writes them.
        baseline: defence that all others are compared with, as DEFENCE or RUN:DEFENCE, RUN being
            the folder's name; by default the first defence of the first run.
        attack: robust, for each sample the worst over the attacks of its run, or an attack's name.
        protocol: what counts as right: single, the mean over draws; vote, their majority; worst,
            all of them; dw_box, the mean under an attack that knew noise.
        tolerance: drop in points that is allowed.
        csv: file to write every number to.
        latex: file to write a tabular to; it needs the package booktabs.
    """
    if not 0 <= tolerance <= 100:
        raise InputError(f"--tolerance must be in [0, 100] points, got {tolerance:g}")
    for name, target in (("csv", csv), ("latex", latex)):
        if target is not None and (Path(target).is_dir() or not Path(target).parent.is_dir()):
            raise InputError(f"--{name} {target}: a file in a folder that exists is needed")
    read = comparing.read_runs(runs)
    columns, absent = comparing.read_columns(read, attack, protocol)
    reference = comparing.find_baseline(columns, baseline)
    compared = comparing.compare(columns, reference, attack, protocol)
    for line in comparison.cautions(read, columns, absent, reference, protocol):
        print(f"warning: {line}", file=sys.stderr)
    remarks = comparison.notes(compared, reference, protocol)
    _, clean = comparison.verdict(compared, reference, CLEAN, tolerance)
    passed, attacked = comparison.verdict(compared, reference, attack, tolerance)
    console = wide_console()
    sheets = comparison.sheets(compared)
    console.print(*(sheet.terminal(wrap=False) for sheet in sheets))
    for line in (*remarks, clean, attacked):
        console.print(line)
    if csv is not None:
        comparison.write_csv(compared, reference, protocol, Path(csv))
    if latex is not None:
        Path(latex).write_text(comparison.latex(sheets, remarks))
    if not passed:
        sys.exit(FAILED)


def main(arguments: list[str]) -> None:
    """Parses the arguments and runs the command."""
    quiet()
    if arguments[:1] == ["check_gradients"]:  # its options are those of evaluate.py
        check_gradients(arguments[1:])
        return
    parser = jsonargparse.ArgumentParser(
        prog="python -m hetpure", description=__doc__, exit_on_error=False
    )
    subcommands = parser.add_subcommands()
    commands = _commands()
    for name, (command, of_command) in commands.items():
        summary = (command.__doc__ or "").split("\n")[0]
        subcommands.add_subcommand(name, of_command, help=summary)
    parsed = parser.parse_args(arguments)
    command, of_command = commands[parsed.subcommand]
    options = parsed[parsed.subcommand]
    with naming_options(options):
        settings = of_command.instantiate_classes(options).as_dict()
    if command is tune:
        settings["config"] = yaml.safe_load(of_command.dump(options))
    command(**settings)


def _commands() -> dict[str, tuple[Callable[..., None], jsonargparse.ArgumentParser]]:
    """By name; arguments are those of the function, but for lists and switches."""
    converter = _parser(convert, "mean", "std", "attention_blocks", "check")
    for name in ("mean", "std"):
        of_channels = "of a classifier, pixel [0, 1], by channel"
        converter.add_argument(f"--{name}", type=float, nargs="+", help=of_channels)
    converter.add_argument(
        "--attention_blocks", nargs="+", help="its modules that the attention mask reads"
    )
    converter.add_argument("--check", action="store_true", help="run what was written once")
    comparer = _parser(compare, "runs")
    comparer.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    tuner = _parser(tune, "config", positional=False)
    tuner.add_argument("--config", action="config", help="a YAML file with what follows")
    parsers: dict[Callable[..., None], jsonargparse.ArgumentParser] = {
        purify: _parser(purify),
        convert: converter,
        tune: tuner,
        compare: comparer,
        report: _parser(report),
        check_gradients: _parser(check_gradients, "arguments"),
    }
    return {command.__name__: (command, parser) for command, parser in parsers.items()}


def _parser(
    command: Callable[..., None], *skip: str, positional: bool = True
) -> jsonargparse.ArgumentParser:
    """From the command's signature and docstring; what it requires comes without an option's
    name where it is `positional`."""
    purpose = (command.__doc__ or "").split("Args:")[0].strip()
    parser = jsonargparse.ArgumentParser(exit_on_error=False, description=purpose)
    parser.add_function_arguments(command, as_group=False, as_positional=positional, skip=set(skip))
    return parser


if __name__ == "__main__":
    run(main, sys.argv[1:])
