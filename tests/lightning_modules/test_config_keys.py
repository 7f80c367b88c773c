"""No key of a config stands twice: YAML would keep the last one and say nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import evaluate
import train
from hetpure.__main__ import main as hetpure_main
from hetpure.errors import InputError
from lightning_modules.cli import run
from lightning_modules.config_keys import load

ROOT = Path(__file__).parent.parent.parent
QUICK = str(ROOT / "configs" / "evaluate" / "quick.yaml")
ATTACK = """class_path: hetpure.attacks.PGD
init_args:
  epsilon: 8/255
  steps: 1
  epsilon: 4/255
"""
Main = Callable[[list[str]], None]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("attack.yaml").write_text(ATTACK)
    Path("names_it.yaml").write_text("model:\n  attack: attack.yaml\n")
    Path("rows.yaml").write_text("a: {}\nb: {}\na: {denoiser: ddpm}\n")
    Path("model.yaml").write_text("model: {seed: 1}\ndata: {}\nmodel: {seed: 2}\n")
    Path("windows.yaml").write_bytes(b"model:\r\n  seed: 1\r\n  seed: 2\r\n")
    Path("list.yaml").write_text("trainer:\n  callbacks:\n  - init_args: {rows: 1, rows: 2}\n")


def refused(main: Main, *arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run(main, list(arguments))
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("main", "arguments", "where", "key"),
    [
        (evaluate.main, ["--model.attack=attack.yaml"], "attack.yaml, line 5", "init_args.epsilon"),
        (
            evaluate.main,
            [f"--config={QUICK}", "--config=names_it.yaml"],
            "attack.yaml, line 5",
            "init_args.epsilon",
        ),
        (evaluate.main, ["--model.defenses", "rows.yaml"], "rows.yaml, line 3", "a"),
        (evaluate.main, ["--config=model.yaml"], "model.yaml, line 3", "model"),
        (evaluate.main, ["--config=windows.yaml"], "windows.yaml, line 3", "model.seed"),
        (
            train.main,
            ["--config=list.yaml"],
            "list.yaml, line 3",
            "trainer.callbacks.init_args.rows",
        ),
        (hetpure_main, ["tune", "--config=rows.yaml"], "rows.yaml, line 3", "a"),
        (hetpure_main, ["check_gradients", "--config=model.yaml"], "model.yaml, line 3", "model"),
    ],
    ids=[
        "option",
        "named by a file",
        "rows",
        "config",
        "line ends",
        "list",
        "tune",
        "check_gradients",
    ],
)
def test_a_file_with_a_key_twice(
    main: Main,
    arguments: list[str],
    where: str,
    key: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused(main, *arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / where}: '{key}' is there twice")


@pytest.mark.parametrize(
    ("main", "option", "key"),
    [
        (evaluate.main, "--model.defenses={a: {}, a: {denoiser: ddpm}}", "a"),
        (evaluate.main, '--model.protocol={"report_draws": 3, "report_draws": 4}', "report_draws"),
        (evaluate.main, "--model.attack.init_args={epsilon: 8/255, epsilon: 1/255}", "epsilon"),
        (evaluate.main, "--config={model: {seed: 1, seed: 2}}", "model.seed"),
        (train.main, "--model.unet={layers_per_block: 1, layers_per_block: 2}", "layers_per_block"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_an_option_with_a_key_twice(
    main: Main, option: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(main, option)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"an option's value, line 1: '{key}' is there twice" in line


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\n'a': 2\n",
        "on: 1\nyes: 2\n",  # two words for one key
        "a: [{b: 1, b: 2}]",
        "a: &x {b: 1, b: 2}\nc: *x\n",
        "x: &x {a: 1}\ny: {<<: *x, b: 1, b: 2}\n",
    ],
)
def test_twice_at_any_depth(text: str) -> None:
    with pytest.raises(InputError, match="is there twice"):
        load(text)


@pytest.mark.parametrize(
    "text",
    [
        "x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}\n",  # a merge is there to be overridden
        "x: &x {a: 1}\nz: &z {a: 2}\ny: {<<: [*x, *z]}\n",
        "x: &x {a: 1}\ny: *x\nz: *x\n",
        "a: {k: 1}\nb: {k: 1}\n",
        "- a: 1\n- a: 1\n",
        "",
        "hetpure.attacks.PGD",
    ],
)
def test_what_is_no_repetition_is_read_as_before(text: str) -> None:
    assert load(text) == (yaml.safe_load(text) if text else None)


def test_the_last_of_two_configs_still_counts(capsys: pytest.CaptureFixture[str]) -> None:
    Path("first.yaml").write_text("model: {seed: 1}\n")
    Path("second.yaml").write_text("model: {seed: 2}\n")
    files = [f"--config={name}" for name in (QUICK, "first.yaml", "second.yaml")]
    with pytest.raises(SystemExit):
        evaluate.main([*files, "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["seed"] == 2
