"""What jsonargparse reads for us: no key of a config stands twice, and a class in another's place
keeps what was set."""

import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

import evaluate
import train
from hetpure.commands.config_keys import check_files, load
from hetpure.errors import InputError
from hetpure.images import write_image
from lightning_modules.tuning import main as tune
from tests.lightning_modules.runs import refused

PARSER = ArgumentParser(prog="hetpure evaluate")
PARSER.add_argument("--config", action="config")
PARSER.add_argument("--model.attack.steps", type=int)
PARSER.add_argument("--trainer.devices", type=int)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("option", "line", "key"),
    [
        ("--config=twice.yaml", 3, "seed"),
        ("--model.perturbation=named.yaml", 4, "cap"),
        ('--model.unet={"dropout": 1, "dropout": 2}', 1, "dropout"),
    ],
)
def test_a_key_twice_is_refused(
    option: str, line: int, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("twice.yaml").write_bytes(b"model:\r\n  seed: 1\r\n  seed: 2\r\n")
    Path("named.yaml").write_text("class_path: RankGaussian\ninit_args:\n  cap: 0.2\n  cap: 0.3\n")
    error = refused(capsys, option, program=train.main)
    assert f": {key!r} is there twice (line {line} of a config" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "my.yaml is empty: write `model: ...`, or give a packaged config"),
        (b"# to be done\n", "my.yaml is empty"),
        (b"just text\n", "my.yaml holds no settings"),
        (b"- a\n", "my.yaml holds no settings"),
        ("description: é\n".encode("latin-1"), "my.yaml is no text in UTF-8"),
        ("seed_everything: 1\n".encode("utf-16"), "my.yaml is no text in UTF-8"),
        (b"model: [1\n", "my.yaml is no YAML: while parsing a flow sequence"),
    ],
    ids=["empty", "comment", "text", "list", "Latin-1", "UTF-16", "torn"],
)
def test_a_file_that_holds_no_config_is_named(content: bytes, message: str) -> None:
    Path("my.yaml").write_bytes(content)
    for arguments in (["--config=my.yaml"], ["-c", "my.yaml"], ["--model.attack=my.yaml"]):
        with pytest.raises(InputError) as error:
            check_files(arguments, PARSER)
        assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "program", [train.main, evaluate.main, tune], ids=["train", "evaluate", "tune"]
)
def test_every_program_asks_its_config(
    program: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my.conf").write_bytes(b"")
    assert "error: my.conf is empty" in refused(capsys, "--config=my.conf", program=program)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("folder.yaml", "error: --config folder.yaml is a folder: give a file"),
        ("folder", "error: --config folder is a folder: give a file"),
        ("none.yaml", "error: --config: "),
        ("picture.png", "error: picture.png is no text in UTF-8, as a config is: "),
        ("package.json", "error: package.json: name is no setting of hetpure "),
    ],
)
@pytest.mark.parametrize(
    "program", [train.main, evaluate.main, tune], ids=["train", "evaluate", "tune"]
)
def test_what_is_no_config_is_named(
    program: Callable[[list[str]], None],
    path: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in ("folder", "folder.yaml"):
        Path(folder).mkdir()
    write_image("picture.png", torch.rand(1, 4, 4))
    Path("package.json").write_text('{"name": "app", "scripts": {"test": "jest"}}')
    error = refused(capsys, "--config", path, program=program)
    assert error.startswith(message) and path in error


@pytest.mark.parametrize(
    ("content", "key", "near"),
    [
        ("modell: {attack: {steps: 1}}", "modell", ": did you mean model?"),
        ("model: {}\nModel: {}", "Model", ": did you mean model?"),
        ("modell:\ntrainer: {}", "modell", ": did you mean model?"),
        ("trainer.devices: 1\ntrianer.devices: 1", "trianer", ": did you mean trainer?"),
        ("0: 1", "0", "."),
    ],
)
def test_a_misspelt_key_at_the_top_is_told_and_not_what_stands_below_it(
    content: str, key: str, near: str
) -> None:
    Path("my.yaml").write_text(content)
    with pytest.raises(InputError) as error:
        check_files(["--config=my.yaml"], PARSER)
    assert str(error.value) == (
        f"my.yaml: {key} is no setting of hetpure evaluate{near} At the top of a config are model,"
        " trainer"
    )


def test_settings_in_every_form_are_known_at_the_top() -> None:
    forms = ("model.attack.steps: 1", "trainer+: 1", "$schema: a", "config: b.yaml", "model: {}")
    for content in forms:
        Path("my.yaml").write_text(content)
        check_files(["--config=my.yaml"], PARSER)
    Path("my.yaml").write_text("class_path: PGD")
    check_files(["--model.attack=my.yaml"], PARSER)  # a class is no config


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
        "x: &x {a: 1}\nz: &z {a: 2}\ny: {<<: [*x, *z], a: 3}\n",  # is there to be overridden
        "x: &x {a: 1}\ny: *x\nz: *x\n",
        "- a: 1\n- a: 1\n",
        "",
        "hetpure.attacks.PGD",
    ],
)
def test_what_is_no_repetition_is_read_as_before(text: str) -> None:
    assert load(text) == (yaml.safe_load(text) if text else None)


def test_the_last_config_counts_and_a_class_keeps_what_was_set_for_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """quick.yaml sets scale and cap; `steps` is a default of its RankGaussian, and RandomOrder has
    none."""
    configs = ["--config=quick"]
    for seed in (1, 2):
        Path(f"{seed}.yaml").write_text(f"model: {{init_args: {{seed: {seed}}}}}\n")
        configs.append(f"--config={seed}.yaml")
    other = "--model.perturbation=hetpure.addt_variants.RandomOrder"
    with pytest.raises(SystemExit):
        train.main([*configs, other, "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert model["seed"] == 2
    assert model["perturbation"] == {
        "class_path": "hetpure.addt_variants.RandomOrder",
        "init_args": {"scale": 0.24, "cap": 0.9, "ranks": "channel"},
    }


def test_the_private_names_of_jsonargparse_are_there() -> None:
    """`config_keys` changes two and asks two others: setup.cfg bounds the versions for these."""
    module = importlib.import_module("jsonargparse._typehints")
    for adapted in (module.discard_init_args_on_class_path_change, module.adapt_typehints):
        assert adapted.__module__ == "hetpure.commands.config_keys"
    assert callable(module.ActionTypeHint.get_class_parser)
    nested = importlib.import_module("jsonargparse._util").NestedArg
    assert nested._fields == ("key", "val")
    required = importlib.metadata.requires("hetpure") or []
    assert any(re.match(r"jsonargparse.*<4\.54", line) for line in required)


@pytest.mark.parametrize("text", ["2024-13-45: x", "a: [1", "a: 1\na: 2"])
def test_a_config_that_yaml_cannot_read_is_named(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    assert "odd.yaml" in refused(capsys, f"--config={tmp_path / 'odd.yaml'}")
