"""`python -m hetpure`: look at one purification, convert published weights, search for a defence's
settings, check an evaluation's gradients, report a run anew, or compare the defences of several."""

import sys
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import torch
import yaml
from lightning import LightningDataModule
from rich.console import Console

from hetpure.attacks import Attack
from hetpure.errors import InputError
from hetpure.evaluation import compare as comparing
from hetpure.evaluation.frontier import choose
from hetpure.evaluation.protocol import CLEAN, Protocol
from hetpure.evaluation.records import RunFolder
from hetpure.gradients import APPROXIMATIONS
from hetpure.images import read_image, write_image
from hetpure.noise import noise_for
from hetpure.presets import PRESETS, load_defense
from hetpure.report import comparison
from hetpure.report.figure import draw
from hetpure.report.frontier import draw_frontier, frontier_markdown, frontier_table
from hetpure.report.gradient_checks import failure
from hetpure.report.purification import purification_panels
from hetpure.report.report import report as write_and_print
from hetpure.weights import convert as converting
from hetpure.weights import folder_hash, resolve
from hetpure.weights.check import check_classifier, check_denoiser
from hetpure.weights.formats import Betas, Hints, PublishedPairing
from lightning_modules.cli import quiet, run
from lightning_modules.defenses import DefenseConfig
from lightning_modules.evaluation_cli import evaluation_cli, print_gradient_checks
from lightning_modules.tuning import claim_folder, search, tuned_config

FAILED = 1  # exit code of a check that ran and did not pass


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
    names = PRESETS[defense].classes
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
        custom = converting.CustomNetwork(architecture, num_classes, network or {}, attention_blocks)
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
    place, console = Path(folder), Console(width=None if Console().is_terminal else 140)
    weights = {name: folder_hash(resolve(name)) for name in (classifier, denoiser)}
    claim_folder(place, config | {"weights": weights})
    trials = list(
        search(
            classifier=classifier,
            denoiser=denoiser,
            base=base,
            vary=vary,
            attack=attack,
            protocol=protocol,
            data=data,
            seed=seed,
            folder=place,
            device=device,
            console=console,
        )
    )
    chosen = choose(trials, clean_weight)
    title = f"{getattr(data, 'description', 'data')}: {attack.describe()}; n = {chosen.clean.n}"
    notes = [
        f"{len(trials)} settings tried; the chosen one has the highest mean of clean and robust"
        f" accuracy, clean weighing {clean_weight:g}. These accuracies chose it: they flatter it.",
        f"{protocol.report_draws} report draws, {protocol.selection_draws} selection draws",
        *(f"weaker than full: {line}" for line in attack.weaker_than_full()),
        *(f"weaker than full: {line}" for line in protocol.weaker_than_full()),
        *(f"`{name}@{digest[:12]}`" for name, digest in weights.items()),
    ]
    console.print(frontier_table(trials, chosen, title))
    (place / "frontier.md").write_text(frontier_markdown(trials, chosen, title, notes))
    draw_frontier(trials, chosen, title, place / "frontier.png")
    tuned = place / "tuned.yaml"
    tuned.write_text(yaml.safe_dump(tuned_config(config, chosen.settings), sort_keys=False))
    console.print(
        f"{notes[0]}\nOn all test images: python evaluate.py --config {tuned}", soft_wrap=True
    )


def check_gradient(arguments: list[str]) -> None:
    """Computes the gradient checks of an evaluation, prints them, and fails where one does.

    Args:
        arguments: options of evaluate.py.
    """
    cli = evaluation_cli(arguments)
    if cli.config.plan:
        raise InputError("--plan is an option of evaluate.py: check computes its gradient checks")
    cli.prepare()
    if not cli.trainer.is_global_zero:  # one process says it
        return
    gradient_checks = print_gradient_checks(cli)
    failed = [
        failure(name, found)
        for name, row in gradient_checks.items()
        for found in row.values()
        if not found["passed"]
    ]
    print(*failed, sep="\n", end="\n" if failed else "")
    if failed:
        sys.exit(FAILED)


def report(run: str) -> None:
    """Computes results and report of a finished run anew, from what lies in its folder.

    Args:
        run: the folder, as evaluate.py writes it.
    """
    if not Path(run).is_dir():
        raise InputError(f"{run}: there is no such folder; give its path, as runs/evaluate/NAME")
    write_and_print(RunFolder(Path(run)))


def compare(
    runs: list[str],
    baseline: str | None = None,
    attack: str = comparing.ROBUST,
    protocol: comparing.Counting = "single",
    tolerance: float = 0.0,
    csv: str | None = None,
    latex: str | None = None,
) -> None:
    """Compares every defence of these runs with one of them, on the samples that both have.

    Exit code 0: under attack no defence is significantly worse than the baseline; 1: one is, its
    whole 95% interval is below zero, or below the tolerated drop; 2: the input cannot be compared.
    Intervals are not corrected for their number.

    Args:
        runs: folders with records.jsonl, as evaluate.py writes them.
        baseline: defence that all others are compared with, as DEFENCE or RUN:DEFENCE, RUN being
            the folder's name; by default the first defence of the first run.
        attack: robust, for each sample the worst over the attacks of its run, or an attack's name.
        protocol: what counts as right: single, the mean over draws; vote, their majority; worst,
            all of them; locked, the mean under an attack that knew noise.
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
    found = comparing.compare(columns, reference, attack, protocol)
    for line in comparison.cautions(read, columns, absent, reference, protocol):
        print(f"warning: {line}", file=sys.stderr)
    remarks = comparison.notes(found, reference, protocol)
    _, clean = comparison.verdict(found, reference, CLEAN, tolerance)
    passed, attacked = comparison.verdict(found, reference, attack, tolerance)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(*comparison.tables(found))
    for line in (*remarks, clean, attacked):
        console.print(line, markup=False, highlight=False, emoji=False)  # :a: is a name
    if csv is not None:
        comparison.write_csv(found, reference, protocol, Path(csv))
    if latex is not None:
        Path(latex).write_text(comparison.latex(found, remarks))
    if not passed:
        sys.exit(FAILED)


def main(arguments: list[str]) -> None:
    """Parses the arguments and runs the command."""
    quiet()
    parser = jsonargparse.ArgumentParser(
        prog="python -m hetpure",
        description="Look at one purification, convert published weights, search for a defence's"
        " settings, check gradients, compare defences, report a run.",
        exit_on_error=False,
    )
    commands = parser.add_subcommands()
    purifying = jsonargparse.ArgumentParser(
        exit_on_error=False, description="Purifies one image file."
    )
    purifying.add_function_arguments(purify, as_positional=True)
    commands.add_subcommand("purify", purifying, help="purify one image file")
    converter = jsonargparse.ArgumentParser(
        exit_on_error=False, description=(convert.__doc__ or "").split("Args:")[0]
    )
    converter.add_function_arguments(
        convert, as_positional=True, skip={"mean", "std", "attention_blocks", "check"}
    )
    for name in ("mean", "std"):
        converter.add_argument(
            f"--{name}", type=float, nargs="+", help="of a classifier, pixel [0, 1], by channel"
        )
    converter.add_argument(
        "--attention_blocks", nargs="+", help="its modules that the attention mask reads"
    )
    converter.add_argument("--check", action="store_true", help="run what was written once")
    commands.add_subcommand("convert", converter, help="turn a published file into a folder")
    tuning = jsonargparse.ArgumentParser(exit_on_error=False)
    tuning.add_argument("--config", action="config", help="a YAML file with what follows")
    tuning.add_function_arguments(tune, skip={"config"}, as_positional=False)
    commands.add_subcommand("tune", tuning, help="search for a defence's settings")
    purpose = (compare.__doc__ or "").split("Args:")[0]
    paired = jsonargparse.ArgumentParser(exit_on_error=False, description=purpose)
    paired.add_argument("runs", nargs="+", metavar="RUN", help="folders with records.jsonl")
    paired.add_function_arguments(compare, skip={"runs"}, as_group=False)
    commands.add_subcommand("compare", paired, help="compare defences, paired by sample")
    reporting = jsonargparse.ArgumentParser(exit_on_error=False)
    reporting.add_function_arguments(report, as_positional=True)
    commands.add_subcommand("report", reporting, help="results of a finished run, from its records")
    checking = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    commands.add_subcommand("check_gradients", checking, help="check an evaluation's gradients")
    if arguments[:1] == ["check_gradients"]:  # its options are those of evaluate.py
        check_gradient(arguments[1:])
        return

    parsed = parser.parse_args(arguments)
    if parsed.subcommand == "purify":
        purify(**parsed.purify)
        return
    if parsed.subcommand == "convert":
        convert(**parsed.convert)
        return
    if parsed.subcommand == "report":
        report(**parsed.report)
        return
    if parsed.subcommand == "compare":
        compare(**parsed.compare)
        return
    plain = yaml.safe_load(tuning.dump(parsed.tune))
    ready = tuning.instantiate_classes(parsed.tune).as_dict()
    ready.pop("config", None)
    tune({name: plain[name] for name in ready if name in plain}, **ready)


if __name__ == "__main__":
    run(main, sys.argv[1:])
