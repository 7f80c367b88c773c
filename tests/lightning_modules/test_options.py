"""What a class refuses is told by the option that sets it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from jsonargparse import ArgumentParser, Namespace, lazy_instance
from lightning.pytorch.loggers.logger import DummyLogger

import evaluate
import train
from hetpure.__main__ import main as hetpure_main
from hetpure.adversarial_training import AdversarialTraining
from hetpure.attacks import PGD, Attack
from hetpure.commands.options import home_expanded, naming_options, parsing
from hetpure.errors import FieldError, InputError, check_at_least
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


def test_a_home_folder_is_meant_wherever_a_path_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    before = Namespace(
        run="~/x",
        home="~",
        b=Namespace(c=["~/y", 1]),
        rows={"~/k": {"classifier": "~/z"}},
        d=("~/u", "a~/b"),
    )
    after = home_expanded(before)
    assert after.home == "/home/me" and after.run == "/home/me/x" and after.b.c == ["/home/me/y", 1]
    assert after.rows == {"~/k": {"classifier": "/home/me/z"}}
    assert after.d == ("/home/me/u", "a~/b")


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (evaluate.main, ["--model.defenses={a: {classifier: ~/none}}"]),
        (evaluate.main, ["--data.data_dir=~/none", "--data.source=auto"]),
        (train.main, ["--ckpt_path=~/none"]),
        (hetpure_main, ["report", "~/none"]),
        (hetpure_main, ["convert", "~/none", "x"]),
        (hetpure_main, ["compare", "~/none"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_no_folder_is_called_by_its_home(
    program: Callable[[list[str]], None],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    error = refused(capsys, *arguments, program=program)
    assert str(tmp_path / "none") in error and not (tmp_path / "~").exists()


def test_a_row_is_called_by_text(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "--model.defenses={100: {}}")
    assert "defenses: a name is text, and one is 100" in error


@dataclass(frozen=True)
class Counts:
    """Stands in a config without its name."""

    draws: int = 1
    images: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, 1, "draws", "images")


@dataclass(frozen=True)
class Row:
    """Holds an attack, and numbers."""

    attack: Attack | None = None
    counts: Counts = Counts()


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


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        (evaluate.main, ["--seed_everything=4294967296"],
         "--seed_everything must be in [0, 4294967296), got 4294967296"),
        (train.main, ["--seed_everything=-1"],
         "--seed_everything must be in [0, 4294967296), got -1"),
        (evaluate.main, ["--model.seed=-1"], "--model.seed must be in 0 to 4294967295, got -1"),
        (train.main, ["--model.seed=4294967296"],
         "--model.seed must be in 0 to 4294967295, got 4294967296"),
        (evaluate.main,
         ["--model.attacks={more: {attack: {class_path: PGD, init_args: {restarts: 257}}}}"],
         "--model.attacks.more.attack.restarts x targets must be <= 256, got 257 x 1"),
        (evaluate.main, ["--model.audit.queries=70000"],
         "--model.audit.queries must be <= 65534, got 70000"),
        (evaluate.main, ["--model.protocol.report_draws=1000000000000000"],
         "--model.protocol.report_draws must be <= 140737488355328"),
    ],
    ids=lambda value: value[-1].partition("=")[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_an_address_of_noise_holds_is_known_when_the_config_is_read(
    program: Callable[[list[str]], None],
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before a network is read, and so for `hetpure plan` too."""
    assert refused(capsys, *options, program=program).startswith(f"error: {message}")


class Absent(DummyLogger):
    """Needs a package that is not there, as WandbLogger may."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("Requirement 'absent>=1' not met")


@pytest.mark.parametrize("program", [evaluate.main, train.main], ids=["evaluate", "train"])
def test_a_package_that_is_not_there(
    program: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{__name__}.Absent"
    error = refused(capsys, f"--trainer.logger={name}", program=program)
    assert error == (
        f"error: --trainer.logger {name} cannot be used: Requirement 'absent>=1' not met"
    )


def test_an_option_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("trainer: {devises: 1}\n")
    for arguments, message in (
        (["--model.atack=1"], "--model.atack is no option: did you mean --model.attack?"),
        (["--config=quick", f"--config={config}"],
         "--trainer.devises is no option: did you mean --trainer.devices?"),
        (["plain"], "plain is no option: did you mean --plan?"),
        (["--model.unknown=1"], "--model.unknown is no option"),
        (["--modell.attack.steps=1"], "--modell is no option: did you mean --model?"),
        (["--model.atack.steps=1"], "--model.atack is no option: did you mean --model.attack?"),
        (["--trainer.accelerator=foo"], "--trainer: You selected an invalid accelerator name"),
        (["--trainer.strategy=foo"], "--trainer: You selected an invalid strategy name"),
    ):  # fmt: skip
        assert refused(capsys, *arguments).startswith(f"error: {message}")


def test_an_attack_that_is_none_is_told_with_those_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Classes and packaged configs, the nearest first."""
    for given, near in (("pgd", "PGD"), ("hetpure-linf", "hetpure_linf")):
        error = refused(capsys, "--model.attack", given)
        assert error.startswith(
            f"error: --model.attack: {given!r} is no Attack: did you mean {near}? Classes that are"
            " known by name: "
        )
        classes, _, configs = error.partition("; packaged configs: ")
        assert all(f" {name}," in classes for name in ("APGD", "PGD", "Square"))
        assert "GradientAttack" not in classes, "abstract"
        assert configs.startswith("addt_l2, addt_linf, hetpure_l2, hetpure_linf;")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("denoiser: 3", "--model.defenses.mine.denoiser: Expected str, got 3"),
        ("gradient: exact", "--model.defenses.mine.gradient: Expected "),
        ("mask: {treshold: 0.5}", "--model.defenses.mine.mask.treshold is no option: did you mean"
         " --model.defenses.mine.mask.threshold?"),
        ("purifier: {class_path: UniformPurifier, init_args: {strength: much}}",
         "--model.defenses.mine.purifier.strength: "),
        ("purifier: uniform", "--model.defenses.mine.purifier: 'uniform' is no Purifier"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_row_names_the_row(
    row: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "rows.yaml"
    config.write_text(f"model: {{defenses: {{plain classifier: {{}}, mine: {{{row}}}}}}}\n")
    error = refused(capsys, "--config=quick", f"--config={config}")
    assert error.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--attack.stepz=1", "--attack.stepz is no option: did you mean --attack.steps?"),
        ("--rows={a: {attack: {class_path: PGD, init_args: {stepz: 1}}}}",
         "--rows.a.attack.stepz is no option: did you mean --rows.a.attack.steps?"),
        ("--rows={a: {}, b c: {attack: {class_path: PGD, init_args: {steps: x}}}, d: 3}",
         "--rows.b c.attack.steps: Expected int, got x"),
        ("--rows={a: {}, b: {counts: {imags: 1}}}",
         "--rows.b.counts.imags is no option: did you mean --rows.b.counts.images?"),
        ("--rows={a: {}, b: {atack: {class_path: PGD}}}",
         "--rows.b.atack is no option: did you mean --rows.b.attack?"),
        ("--rows={a: 3}", "--rows.a: "),
        ("--rows.a.attack=Pgd", "--rows.a.attack: 'Pgd' is no Attack: did you mean PGD?"),
        ("--attack=xyz", "--attack: 'xyz' is no Attack. Classes that are known by name: "),
        ("--attack={class_path: pgd}", "--attack: 'pgd' is no Attack: did you mean PGD? Classes"),
        ("--attack.steps=many", "--attack.steps: Expected int, got many"),
        ("--attack.epsilon=eight", "--attack.epsilon: 'eight' is not a number such as 0.03"),
        ("--attack.loss=ce",
         "--attack.loss: Expected 'cross_entropy', 'dlr', 'margin', got ce"),
        ("--epochs=x", "--epochs: Expected int, got x"),
        ("--precision=foo", "--precision: Expected int or 'bf16', '32', got foo"),
        ("--attacks=[hetpure.attacks.Nothing]",
         "--attacks: module 'hetpure.attacks' has no attribute 'Nothing'"),
        ("--attack=no_module.Mine", "--attack: No module named 'no_module'"),
        ("--rows=[1", "--rows: "),
    ],
)  # fmt: skip
def test_the_innermost_reason_is_told(argument: str, message: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--attack", type=Attack, default=lazy_instance(PGD))
    parser.add_argument("--attacks", type=list[Attack] | None)
    parser.add_argument("--rows", type=dict[str, Row], default={})
    parser.add_argument("--epochs", type=int | None)
    parser.add_argument("--precision", type=Literal[16, 32] | Literal["bf16", "32"] | None)
    with pytest.raises(InputError) as error, parsing(parser):
        parser.parse_args([argument])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value) and "Union" not in str(error.value)


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
