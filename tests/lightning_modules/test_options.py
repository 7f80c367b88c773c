"""What a class refuses is told by the option that sets it."""

from dataclasses import dataclass

import pytest
from jsonargparse import ArgumentParser, Namespace

import train
from hetpure.adversarial_training import AdversarialTraining
from hetpure.attacks import Attack
from hetpure.errors import FieldError, InputError, check_at_least
from lightning_modules.options import naming_options
from tests.lightning_modules.runs import refused

PROBE = "--trainer.callbacks=lightning_modules.monitor.RobustProbe"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.limit=0"], "--data.limit must be >= 1, got 0"),
        (["--model.perturbation.ranks=image", "--model.perturbation.cap=2"],
         "--model.perturbation.cap must be in [0, 1], got 2.0"),
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
    assert refused(capsys, *options, program=train.main).startswith(f"error: {message}")


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


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--counts.images=0", "--counts.images must be >= 1, got 0"),
        ('--rows={"a": {}, "b c": {"attack": {"class_path": "PGD", "init_args": {"steps": -1}}}}',
         "--rows.b c.attack.steps must be"),
        ('--attacks=[{"class_path": "PGD", "init_args": {"steps": -1}}]',
         "--attacks.steps must be"),
    ],
    ids=["dataclass", "row", "list"],
)  # fmt: skip
def test_dataclasses_lists_and_rows_of_any_parser(argument: str, message: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--counts", type=Counts, default=Counts())
    parser.add_argument("--rows", type=dict[str, Row], default={})
    parser.add_argument("--attacks", type=list[Attack], default=[])
    config = parser.parse_args([argument])
    with pytest.raises(InputError) as error, naming_options(config):
        parser.instantiate_classes(config)
    assert str(error.value).startswith(message)


def test_several_options_or_none() -> None:
    """The first of several is named with the others; without one the class itself is."""
    fields = {"method": 0, "epsilon": 0, "step_size": 0, "norm": 0, "beta": 0, "steps": 3}
    several = {"a": fields, "b": fields | {"steps": 4}, "c": [fields]}
    for config, message in (
        (several, "--a.steps must be odd (or --c.steps)"),
        ({"steps": 3}, "AdversarialTraining.steps must be odd"),
        ({"x": {"class_path": "any.AdversarialTraining", "init_args": {"steps": 3}}},
         "--x.steps must be odd"),
    ):  # fmt: skip
        with pytest.raises(InputError) as error, naming_options(Namespace(config)):
            raise FieldError(AdversarialTraining(steps=3), "steps", "must be odd")
        assert str(error.value) == message


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), naming_options(Namespace()):
        _ = 1 / 0
