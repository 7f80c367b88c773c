"""The configs that come along: all parse, and variants change what they say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import evaluate
import train
from hetpure.attacks import PGD
from hetpure.program import run

ROOT = Path(__file__).parent.parent.parent
CONFIGS = [
    (main, path)
    for main, folder in ((evaluate.main, "evaluate"), (train.main, "train"))
    for path in sorted(
        p for p in (ROOT / "configs" / folder).rglob("*.yaml") if "variants" not in str(p)
    )
]


@pytest.mark.parametrize(
    ("main", "path"), CONFIGS, ids=[f"{p.parent.name}/{p.stem}" for _, p in CONFIGS]
)
def test_every_shipped_config_parses(
    main: Callable[[list[str]], None], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--config", str(path), "--print_config"])
    assert stop.value.code == 0
    assert "class_path" in capsys.readouterr().out


VARIANTS: dict[str, dict[str, Any]] = {  # by dotted key, what is not the base's
    "ball_8": {
        "perturbation": {
            "class_path": "hetpure.addt_variants.Ball",
            "init_args": {
                "epsilon": "8/255",
                "step_size": "4/255",
                "snr_cap": 10.0,
                "steps": 5,
                "eot_samples": 1,
                "objective": "classification",
            },
        }
    },
    "clean": {"perturbation": None},
    "image_ranks": {"perturbation.init_args.ranks": "image"},
    "label_free": {"perturbation.init_args.objective": "denoising"},
    "no_rbgm": {
        "perturbation": {
            "class_path": "hetpure.addt_variants.Ball",
            "init_args": {
                "epsilon": "16/255",
                "step_size": "8/255",
                "snr_cap": 10.0,
                "steps": 5,
                "eot_samples": 1,
                "objective": "classification",
            },
        }
    },
    "random_order": {
        "perturbation": {
            "class_path": "hetpure.addt_variants.RandomOrder",
            "init_args": {"scale": 0.24, "cap": 0.9, "ranks": "channel"},
        }
    },
    "reference": {"mode": "reference", "dropout": 0.1},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_what_it_says_and_nothing_else(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ROOT / "configs" / "train" / "fashion_mnist_addt.yaml"
    printed = []
    for configs in ([base], [base, base.parent / "variants" / f"{name}.yaml"]):
        with pytest.raises(SystemExit) as stop:
            train.main([f"--config={path}" for path in configs] + ["--print_config"])
        assert stop.value.code == 0
        printed.append(yaml.safe_load(capsys.readouterr().out))
    for config in printed:
        del config["trainer"]["default_root_dir"]
    before, after = (config["model"].pop("init_args") for config in printed)
    assert printed[0] == printed[1]
    for key, value in VARIANTS[name].items():
        assert _at(before, key) != value and _at(after, key) == value
        _remove(before, key)
        _remove(after, key)
    assert before == after


def test_controls_of_the_published_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """As strong as what they are the control of; the probe takes the guide."""
    base = ROOT / "configs" / "train" / "paper" / "addt_cifar10.yaml"
    variant = base.parents[1] / "variants" / "random_order.yaml"
    with pytest.raises(SystemExit):
        train.main([f"--config={base}", f"--config={variant}", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    perturbation = config["model"]["init_args"]["perturbation"]
    assert perturbation["init_args"] == {"scale": 0.03, "cap": 0.3, "ranks": "channel"}
    (probe,) = (
        callback["init_args"]
        for callback in config["trainer"]["callbacks"]
        if callback["class_path"].endswith("RobustProbe")
    )
    assert probe["classifier"] is None
    assert config["trainer"]["devices"] == 1, "the published batch"


def _at(config: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _remove(config: dict[str, Any], key: str) -> None:
    path, _, last = key.rpartition(".")
    (_at(config, path) if path else config).pop(last)


def test_every_variant_is_tested() -> None:
    variants = (ROOT / "configs" / "train" / "variants").glob("*.yaml")
    assert {path.stem for path in variants} == set(VARIANTS)


def test_pgd_defaults_are_the_published_addt_attack() -> None:
    attack = PGD()
    assert (attack.steps, attack.eot_samples) == (20, 10)
    assert (attack.epsilon, attack.step_size) == (8 / 255, 2 / 255)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "attack").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_attack_config_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(evaluate.main, [f"--model.attack={path}", "--print_config"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for line in ("eot_samples: 20", "steps: 200") if "hetpure" in path.stem else ("steps: 20",):
        assert line in printed
