"""`hetpure analyze`: looks at the rows of an evaluation's config as the stochasticity laboratory
does (`hetpure.analysis`), in the folder of the run."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.text import Text

from hetpure.analysis import ANALYSES, Analysis
from hetpure.analysis.store import PICTURE, AnalysisStore, examine, summarise
from hetpure.analysis.subject import Subject, Work, subject_of
from hetpure.commands.options import naming_options
from hetpure.errors import InputError, only_warned
from hetpure.evaluation.description import Run
from hetpure.evaluation.stopwatch import Stopwatch
from hetpure.numbers import counted
from hetpure.program import FAILED
from hetpure.report.analyses import draw
from hetpure.report.analyses.costs import cost_sheet
from hetpure.report.sheet import Sheet, wide_console
from lightning_modules.cli import make_cli
from lightning_modules.evaluation import RobustnessEvaluation
from lightning_modules.evaluation_cli import EvaluationCLI

IMAGES = 8


@dataclass(frozen=True)
class Request:
    """What is asked for: analyses, on so many of the first images, of these rows; and whether only
    their cost is to be said."""

    analyses: list[Analysis]
    images: int | None
    rows: list[str] | None
    plan: bool


class AnalysisCLI(EvaluationCLI):
    """An evaluation's command line, with the analyses and their settings beside it."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        names = ", ".join(ANALYSES)
        parser.add_argument(
            "--what", nargs="+", default=list(ANALYSES), help=f"analyses: {names}; by default all"
        )
        parser.add_argument(
            "--images",
            type=int | None,
            default=None,
            help=f"so many of the first images; by default {IMAGES}, or all where there are fewer;"
            " means to publish need 64 or more",
        )
        parser.add_argument(
            "--rows", nargs="+", default=None, help="rows of the table; by default all"
        )
        for name, kind in ANALYSES.items():
            parser.add_class_arguments(kind, name)

    def request(self) -> Request:
        """What is asked for. InputError where it names what is not there."""
        config, model = self.config, self.model
        for option, given, known in (
            ("what", config.what, list(ANALYSES)),
            ("rows", config.rows or [], list(model.config.defenses)),
        ):
            if unknown := [name for name in given if name not in known]:
                raise InputError(f"--{option} {unknown[0]!r} is none of: {', '.join(known)}")
        if config.images is not None and config.images < 1:
            raise InputError(f"--images must be >= 1, got {config.images}")
        if self.trainer.world_size > 1:
            raise InputError("analyze takes one device: give --trainer.devices=1")
        analyses = [self.config_init[name] for name in dict.fromkeys(config.what)]
        return Request(analyses, config.images, config.rows, config.plan)

    def saved_config(self) -> Namespace:
        """Without what analyses add: it is the config of an evaluation, which can go on here."""
        config = super().saved_config()
        for name in ("what", "images", "rows", *ANALYSES):
            config.pop(name)
        return config

    def analyze(self, request: Request) -> None:
        """Does what is asked for in the run's folder. Exit code 1 where a row was left out."""
        run, console = self.model.described, wide_console()
        assert run is not None
        there = len(run.images)
        count = min(IMAGES, there) if request.images is None else request.images
        if count > there:
            raise InputError(f"--images {count}: the data have {there}; give a larger --data.limit")
        subjects = subjects_of(run, request.rows)
        with naming_options(self.config):
            for analysis in request.analyses:
                for subject in subjects.values():
                    analysis.check(subject)
        store = AnalysisStore(self.model.store.path, run.block)
        console.print(_costs(run, request.analyses, count, subjects, store).terminal())
        if request.plan:
            return
        whole = True
        kept = self.model.store
        struck = {name: reason for name in subjects if (reason := kept.struck(name)) is not None}
        about = about_attack(run)
        about += [
            f"{name}: its gradient was not checked; `hetpure evaluate` does that"
            for name in subjects
            if name not in struck and kept.get_check(name) is None
        ]
        with self._begun():
            for analysis in request.analyses:
                whole &= _look(analysis, subjects, run, count, store, console, struck, about)
        if not whole:
            sys.exit(FAILED)


def subjects_of(run: Run, names: Sequence[str] | None) -> dict[str, Subject]:
    """The rows to look at, by name."""
    config, first = run.config, int(run.images.samples[0])
    return {
        name: subject_of(row, config.attack, config.protocol, config.seed, first)
        for name, row in run.rows.items()
        if names is None or name in names
    }


def _costs(
    run: Run,
    analyses: Sequence[Analysis],
    count: int,
    subjects: Mapping[str, Subject],
    store: AnalysisStore,
) -> Sheet:
    """Network calls and predicted seconds of what is still to be done."""
    images = run.read(0).images
    clocks = {name: Stopwatch(subject.defense, images, 1) for name, subject in subjects.items()}
    costs = []
    for analysis in analyses:
        for name, subject in subjects.items():
            parts = store.parts(analysis, name, count)
            left = [part for part in parts if not store.has(part)]
            works = [analysis.work(subject)] * sum(part.stop - part.start for part in left)
            if left and left[0].start == 0:
                works.append(analysis.first_work(subject))
            work = sum(works, Work())
            costs.append((analysis.name, name, work.calls, work.seconds(clocks[name])))
    return cost_sheet(costs, count)


def _look(
    analysis: Analysis,
    subjects: Mapping[str, Subject],
    run: Run,
    count: int,
    store: AnalysisStore,
    console: Console,
    struck: Mapping[str, str],
    about: Sequence[str],
) -> bool:
    """One analysis of all rows: computed where it is not yet, written with what it is about, drawn
    and said. Whether no row had to be left out; one that an evaluation struck out is."""
    seen, out = dict(subjects), []
    with console.status(analysis.name) as status:
        for name, subject in subjects.items():
            try:
                if name in struck:
                    raise InputError(struck[name])
                for part in store.parts(analysis, name, count):
                    status.update(Text(f"{analysis.name}: {name}, images from {part.start}"))
                    examine(part, subject, run.images, store)
            except InputError as error:  # it has no gradient, or draws outside its noise
                print(f"{name} is left out of {analysis.name}: {error}", file=sys.stderr)
                out.append(f"{name} is left out: {error}")
                del seen[name]
    store.forget(analysis)
    if not seen:
        return False
    summary = summarise(analysis, list(seen), count, store, [*about, *out])
    folder = store.folder(analysis)
    with only_warned(PICTURE):
        draw(analysis.name, summary, folder / PICTURE, about[0])
    for line in (*summary.finding, *summary.notes):
        console.print(line, soft_wrap=True)
    console.print(f"{analysis.name}: {folder}", soft_wrap=True)
    return not out


def about_attack(run: Run) -> list[str]:
    """The attack that all analyses vary, then in what it is weaker than the full protocol."""
    attack, protocol = run.config.attack, run.config.protocol
    masks = "; mask: recomputed here" if getattr(attack, "mask", "") == "all" else ""
    return [
        f"attack: {attack.describe()}{masks}; {counted(protocol.report_draws, 'report draw')}",
        *(f"weaker than full: {line}" for line in attack.weaker_than_full()),
    ]


def main(arguments: list[str]) -> None:
    """`hetpure analyze`: parses the arguments, builds the program and looks."""
    cli = make_cli(
        AnalysisCLI,
        "evaluate",
        arguments,
        model_class=RobustnessEvaluation,
        save_config_callback=None,
        trainer_defaults={"inference_mode": False},
    )
    with naming_options(cli.config):
        request = cli.request()
    cli.prepare()
    cli.analyze(request)
