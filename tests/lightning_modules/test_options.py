"""What a class refuses is told by the option that sets it."""

from dataclasses import dataclass

import pytest
from jsonargparse import ArgumentParser

import train
from hetpure.adversarial_training import AdversarialTraining
from hetpure.attacks import PGD, Attack
from hetpure.errors import FieldError, InputError, check_at_least
from lightning_modules.cli import run
from lightning_modules.options import named, naming_options


@dataclass(frozen=True)
class Counts:
    """Stands in a config without its name."""

    draws: int = 1
    images: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, 1, "draws", "images")


@dataclass(frozen=True)
class Row:
    """Holds an attack."""

    attack: Attack | None = None


PROBE = "--trainer.callbacks=lightning_modules.monitor.RobustProbe"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.limit=0"], "--data.limit must be >= 1, got 0"),
        (["--model.perturbation.steps=0"], "--model.perturbation.steps must be >= 1, got 0"),
        (["--model.perturbation.ranks=image", "--model.perturbation.cap=2"],
         "--model.perturbation.cap must be in [0, 1], got 2.0"),
        (["--model.levels=ContinuousLevels", "--model.levels.t_min=1"],
         "--model.levels.t_min must be in (0, 1), got 1.0"),
        (["--model.levels.highest=1000"],
         "--model.levels.highest gives timesteps 0 to 1000: the schedule has 0 to 999"),
        ([PROBE, "--trainer.callbacks.attack.epsilon=-8/255"],
         "--trainer.callbacks.attack.epsilon must be >= 0, got"),
        ([PROBE, "--trainer.callbacks.images=0"], "--trainer.callbacks.images must be >= 1, got 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[-1],
)  # fmt: skip
def test_a_command_line_names_the_option(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(train.main, options)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(f"error: {message}")


def test_dataclasses_lists_and_rows_of_any_parser() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--counts", type=Counts, default=Counts())
    parser.add_argument("--rows", type=dict[str, Row], default={})
    parser.add_argument("--attacks", type=list[Attack], default=[])
    for arguments, message in (
        (["--counts.images=0"], "--counts.images must be >= 1, got 0"),
        (['--rows={"a": {}, "b c": {"attack": {"class_path": "PGD", "init_args": {"steps": -1}}}}'],
         "--rows.b c.attack.steps must be"),
        (['--attacks=[{"class_path": "PGD", "init_args": {"steps": -1}}]'],
         "--attacks.steps must be"),
    ):  # fmt: skip
        config = parser.parse_args(arguments)
        with pytest.raises(InputError) as error, naming_options(config):
            parser.instantiate_classes(config)
        assert str(error.value).startswith(message)


def test_several_options_or_none() -> None:
    """The first of several is named with the others; without one the class itself is."""
    error = FieldError(AdversarialTraining(steps=3), "steps", "must be odd")
    fields = {"method": 0, "epsilon": 0, "step_size": 0, "norm": 0, "beta": 0}
    config = {
        "a": {**fields, "steps": 3},
        "b": {**fields, "steps": 4},
        "c": [{**fields, "steps": 3}],
    }
    assert named(error, config) == "--a.steps must be odd (or --c.steps)"
    assert named(error, {"steps": 3}) == "AdversarialTraining.steps must be odd"


def test_the_name_in_a_config_is_looked_up() -> None:
    config = {"x": {"class_path": "hetpure.attacks.PGD", "init_args": {"steps": 2}},
              "y": {"class_path": "no.such.Thing", "init_args": {"steps": 2}}}  # fmt: skip
    assert named(FieldError(PGD(steps=2), "steps", "are few"), config) == "--x.steps are few"
    with pytest.raises(ZeroDivisionError), naming_options(config):
        _ = 1 / 0
