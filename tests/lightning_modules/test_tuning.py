"""`hetpure tune`: which settings are tried, what it writes, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hetpure.__main__ import main
from hetpure.attention import AttentionMask
from hetpure.errors import InputError
from hetpure.evaluation.rows import DefenseConfig
from hetpure.program import run
from hetpure.purifiers import HeterogeneousPurifier
from lightning_modules.sweep import combinations, with_settings
from lightning_modules.tuning import tuned_config

SMALL = [
    "tune",
    "--config=configs/tune/fashion_mnist.yaml",
    "--data.limit=1",
    "--attack.steps=1",
    "--attack.eot_samples=1",
    '--vary={"purifier.t_large": [0.2, 0.1], "mask.threshold": [0.5]}',
]
BASE = DefenseConfig(HeterogeneousPurifier(steps=20), "ddpm", AttentionMask(threshold=0.5))


def test_every_combination_and_why_some_are_left_out() -> None:
    possible, left_out = combinations(
        BASE, {"purifier.t_large": [0.1, 0.3], "purifier.t_small": [0.1, 0.2]}
    )
    assert [settings for settings, _ in possible.values()] == [
        {"purifier.t_large": 0.1, "purifier.t_small": 0.1},
        {"purifier.t_large": 0.3, "purifier.t_small": 0.1},
        {"purifier.t_large": 0.3, "purifier.t_small": 0.2},
    ]
    (reason,) = left_out
    assert "t_small 0.2 is above t_large 0.1" in reason
    assert len(combinations(BASE, {"mask.threshold": [0.3, 0.3, "0.3"]})[0]) == 1
    for wrong, message in (
        ({"mask.treshold": [0.1]}, "no setting 'treshold'"),
        ({"mask.placement": ["invertd"]}, "no combination is possible: mask.placement=invertd: "),
        ({"mask.threshold": []}, "names no value for mask.threshold"),
        ({}, "names no value"),
    ):
        with pytest.raises(InputError, match=message):
            combinations(BASE, wrong)


def test_settings_that_are_right_together_need_no_order() -> None:
    """Half moved, t_small .4 would be above the base's t_large."""
    settings = {"purifier.t_small": 0.4, "purifier.t_large": 0.5}
    purifier = with_settings(BASE, settings).purifier
    assert purifier == HeterogeneousPurifier(steps=20, t_large=0.5, t_small=0.4)


def test_tuned_config_changes_the_settings_and_nothing_else() -> None:
    config: dict[str, Any] = {
        "classifier": "c", "denoiser": "d", "seed": 5, "device": "cpu",
        "attack": {}, "protocol": {},
        "base": {"purifier": {"class_path": "P", "init_args": {"t": 1, "sampler": {
            "class_path": "S", "init_args": {"eta": 0}}}}, "mask": {"threshold": 0.9}},
        "data": {"class_path": "D", "init_args": {"test_split": "validation", "limit": 8}},
    }  # fmt: skip
    settings = {"purifier.sampler.eta": 1, "mask.threshold": 0.1}
    tuned = tuned_config(config, settings)
    row = tuned["model"]["defenses"]["tuned"]
    assert row["purifier"]["init_args"] == {
        "t": 1,
        "sampler": {"class_path": "S", "init_args": {"eta": 1}},
    }
    assert row["mask"] == {"threshold": 0.1}
    assert tuned["data"]["init_args"] == {"test_split": "test", "limit": None}
    assert config["base"]["mask"] == {"threshold": 0.9}
    assert config["data"]["init_args"]["test_split"] == "validation"


def test_tune_prints_a_frontier_goes_on_and_writes_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*SMALL, f"--folder={tmp_path}"])
    printed = capsys.readouterr().out
    assert "1/2 purifier.t_large=0.2 mask.threshold=0.5: clean " in printed
    assert printed.rstrip().endswith(f"hetpure evaluate --config {tmp_path / 'tuned.yaml'}")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "blocks").iterdir()}
    page = (tmp_path / "frontier.md").read_text()
    assert "2 settings tried" in page and "`fashion_mnist_wrn@" in page
    assert (tmp_path / "frontier.png").stat().st_size > 0
    tuned = yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    assert tuned["model"]["defenses"]["tuned"]["purifier"]["init_args"]["t_large"] in (0.1, 0.2)
    assert tuned["data"]["init_args"]["test_split"] == "test"

    for name in ("frontier.md", "frontier.png", "tuned.yaml"):
        (tmp_path / name).unlink()
    (tmp_path / "frontier.png").mkdir()  # as where a picture cannot be drawn
    main([*SMALL, f"--folder={tmp_path}", "--clean_weight=0.1"])
    assert "warning: frontier.png could not be drawn: " in capsys.readouterr().err
    assert (tmp_path / "tuned.yaml").is_file() and (tmp_path / "frontier.md").is_file()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "nothing is computed again"
    (line,) = refusal(capsys, f"--folder={tmp_path}", "--attack.steps=2")
    assert f"{tmp_path} holds a run with another config.attack.steps: 1, now 2" in line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.test_split=test", "a test_split, set to validation"),
        ("--base.denoiser=other", "no denoiser of its own (it is --denoiser) and no surrogate"),
        ("--base.gradient=bpda", "give an exact one"),
        ("--seed=-1", "--seed must be in [0, 4294967296), got -1"),
        ("--clean_weight=2", "--clean_weight must be in [0, 1], got 2.0"),
        ("--protocol.report_draws=0", "--protocol.report_draws must be >= 1, got 0"),
        ("--config=no.yaml", "no.yaml"),
        *([] if torch.cuda.is_available() else [("--device=cuda", "use --device=cpu")]),
    ],
)
def test_tune_refuses_in_one_line(
    option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = refusal(capsys, f"--folder={tmp_path / 'x'}", option)
    assert message in line
    assert not (tmp_path / "x").exists()


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """Lines of an error that ends the command with code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(main, [*SMALL, *options])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("error: ")]
