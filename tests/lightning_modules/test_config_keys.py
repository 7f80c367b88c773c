"""What jsonargparse reads for us: no key of a config stands twice, and a class in another's place
keeps what was set."""

from pathlib import Path

import pytest
import yaml

import train
from hetpure.errors import InputError
from lightning_modules.config_keys import load
from tests.lightning_modules.runs import refused


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
    assert error.startswith(f"error: {key!r} is there twice (line {line} of a config")


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
