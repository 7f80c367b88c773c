"""`python -m hetpure purify`, `tune` and `compare`, as a user runs them."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from hetpure.__main__ import main
from hetpure.attention import AttentionMask
from hetpure.errors import InputError
from hetpure.evaluation.frontier import Trial
from hetpure.evaluation.statistics import Estimate
from hetpure.images import read_image, write_image
from hetpure.noise import noise_for
from hetpure.presets import load_defense
from hetpure.purifiers import HeterogeneousPurifier
from lightning_modules.cli import run
from lightning_modules.defenses import DefenseConfig
from lightning_modules.tuning import apply, claim_folder, combinations, tuned_config

ROOT = Path(__file__).parent.parent.parent
BASE = DefenseConfig(HeterogeneousPurifier(steps=20), "ddpm", AttentionMask(threshold=0.5))
SMALL = [
    "--config=configs/tune/fashion_mnist.yaml",
    "--data.limit=3",
    "--attack.steps=1",
    "--attack.eot_samples=1",
    '--vary={"purifier.t_large": [0.2, 0.1], "mask.threshold": [0.5]}',
]


def hetpure(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "hetpure", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command in this process, which must leave with code 2 and one line."""
    monkeypatch.chdir(ROOT)

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(main, arguments)
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    write_image(tmp_path / "in.png", torch.linspace(0, 1, 784).reshape(1, 28, 28))
    return tmp_path / "in.png"


def test_purify_writes_what_the_library_gives(picture: Path, tmp_path: Path) -> None:
    result = hetpure("purify", str(picture), str(tmp_path / "out.png"), "--seed=3",
                     f"--figure={tmp_path / 'steps.png'}")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path / 'out.png'}: classified as " in result.stdout
    defense = load_defense()
    image = read_image(picture, defense.image_shape)
    expected = defense.purify(image, noise_for(image, seed=3))
    found = read_image(tmp_path / "out.png", defense.image_shape)
    assert (found - expected).abs().max() <= 0.5 / 255 + 1e-4
    with Image.open(tmp_path / "steps.png") as figure:
        assert figure.width > 1000


def test_purify_refuses_in_one_line(picture: Path, tmp_path: Path, refused: Refused) -> None:
    out = str(tmp_path / "out.png")
    assert "missing.png" in refused("purify", "missing.png", out)
    assert "'mnist'" in refused("purify", str(picture), out, "--defense=mnist")
    assert "required" in refused("purify", str(picture))
    assert "purify,convert,tune" in refused()


def test_every_combination_and_why_some_are_left_out() -> None:
    found, left_out = combinations(
        BASE, {"purifier.t_large": [0.1, 0.3], "purifier.t_small": [0.1, 0.2]}
    )
    assert [settings for settings, _ in found.values()] == [
        {"purifier.t_large": 0.1, "purifier.t_small": 0.1},
        {"purifier.t_large": 0.3, "purifier.t_small": 0.1},
        {"purifier.t_large": 0.3, "purifier.t_small": 0.2},
    ]
    assert len(left_out) == 1
    assert "t_small 0.2 is above t_large 0.1" in left_out[0]
    for wrong, message in (
        ({"mask.treshold": [0.1]}, "no setting 'treshold'"),
        ({"mask.placement": ["attended", "invertd"]}, "placement=invertd is never possible"),
        ({"mask.threshold": []}, "names no value for mask.threshold"),
        ({}, "names no value"),
    ):
        with pytest.raises(InputError, match=message):
            combinations(BASE, wrong)


def test_equal_defences_are_tried_once() -> None:
    """Without resampling its jump means nothing to the plan, but it is another setting; the same
    value written twice is not."""
    found, _ = combinations(BASE, {"mask.threshold": [0.3, 0.3, "0.3"]})
    assert len(found) == 1


@pytest.mark.parametrize("order", [1, -1])
def test_settings_that_are_right_together_need_no_order(order: int) -> None:
    settings = dict([("purifier.t_small", 0.4), ("purifier.t_large", 0.5)][::order])
    purifier = apply(BASE, settings).purifier
    assert purifier == HeterogeneousPurifier(steps=20, t_large=0.5, t_small=0.4)


def test_a_folder_keeps_to_one_search(tmp_path: Path) -> None:
    config = {"seed": 0, "attack": {"steps": 1}, "vary": {"a": [1]}, "clean_weight": 0.5}
    claim_folder(tmp_path / "x", config)
    claim_folder(tmp_path / "x", config | {"attack": {"steps": 3}})  # nothing was tried yet
    claim_folder(tmp_path / "x", config)
    estimate = Estimate(0.5, 0.4, 0.6, 8, 1)
    line = {"name": "a=1", "trial": Trial({"a": 1}, estimate, estimate, None, 2).as_dict()}
    (tmp_path / "x" / "trials.jsonl").write_text(json.dumps(line) + "\n")
    claim_folder(tmp_path / "x", config | {"vary": {"a": [1, 2]}, "clean_weight": 0.1})
    with pytest.raises(InputError, match="another attack: give another --folder"):
        claim_folder(tmp_path / "x", config | {"attack": {"steps": 2}})


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


def test_tune_prints_a_frontier_resumes_and_writes_a_config(
    tmp_path: Path, refused: Refused
) -> None:
    folder = tmp_path / "tune"
    first = hetpure("tune", *SMALL, f"--folder={folder}")
    assert first.returncode == 0, first.stderr
    for name in ("trials.jsonl", "frontier.md", "frontier.png", "tuned.yaml"):
        assert (folder / name).stat().st_size > 0
    trials = (folder / "trials.jsonl").read_text().splitlines()
    assert len(trials) == 2

    # Killed while it wrote the second trial: that one is all that is computed.
    (folder / "trials.jsonl").write_text(trials[0] + "\n" + trials[1][:40])
    table = (folder / "frontier.md").read_text()
    again = hetpure("tune", *SMALL, f"--folder={folder}")
    assert again.stdout.count("from an earlier run") == 1
    assert (folder / "trials.jsonl").read_text().splitlines() == trials
    assert (folder / "frontier.md").read_text() == table

    tuned = yaml.safe_load((folder / "tuned.yaml").read_text())
    purifier = tuned["model"]["defenses"]["tuned"]["purifier"]["init_args"]
    assert purifier["t_large"] in (0.1, 0.2)
    assert tuned["data"]["init_args"]["test_split"] == "test"
    evaluation = subprocess.run(
        [sys.executable, "evaluate.py", f"--config={folder / 'tuned.yaml'}", "--data.limit=3",
         f"--model.folder={tmp_path / 'runs'}"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert evaluation.returncode == 0, evaluation.stderr
    assert "tuned" in evaluation.stdout

    other = refused("tune", *SMALL, f"--folder={folder}", "--attack.steps=2")
    assert "another attack" in other


def test_tune_refuses_test_images_and_bad_weights(tmp_path: Path, refused: Refused) -> None:
    folder = f"--folder={tmp_path}"
    test_images = refused("tune", *SMALL, folder, "--data.test_split=test")
    assert "a test_split, set to validation" in test_images
    assert "no surrogate" in refused("tune", *SMALL, folder, "--base.denoiser=other")
    assert "clean_weight" in refused("tune", *SMALL, folder, "--clean_weight=2")
    assert "no.yaml" in refused("tune", "--config=no.yaml")
    if not torch.cuda.is_available():
        assert "--device=cpu" in refused("tune", *SMALL, folder, "--device=cuda")


def finished(folder: Path, **right: int) -> str:
    """A run of 40 samples, right on all clean ones and on so many under each defence's attack."""
    folder.mkdir(parents=True)
    records = [
        {
            "defense": name, "attack": attack, "sample": sample, "label": 1,
            "predictions": [int(attack == "clean" or sample < count)] * 3,
            "selection": [0], "chosen": 0, "linf": 0.0, "l2": 0.0, "coverage": None,
            "network_calls": 0, "known": ["reverse"] if attack == "locked" else [],
        }
        for name, count in right.items()
        for attack in ("clean", "pgd_linf", "null", "locked")
        for sample in range(40)
    ]  # fmt: skip
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "results.json").write_text(json.dumps({"run": {"data": folder.name}}))
    return str(folder)


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code and what was printed, of the command in this process."""
    code: Any = 0
    try:
        run(main, ["compare", *arguments])
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_compare_tells_scripts_whether_a_defence_is_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = finished(tmp_path / "good", a=30, b=29), finished(tmp_path / "bad", c=10)
    code, out, err = compared(capsys, good)
    assert (code, err) == (0, "")
    assert "robust: no defence is significantly worse than a\n" in out
    assert "2 differences, with intervals that are not corrected for their number" in out
    code, out, err = compared(capsys, good, bad)
    assert code == 1
    assert "robust: significantly worse than good:a: bad:c\n" in out
    assert "clean: no defence is significantly worse than good:a\n" in out
    assert err == "warning: data differs: bad in bad, good in good\n"
    assert compared(capsys, good, bad, "--baseline=bad:c")[0] == 0
    assert compared(capsys, good, bad, "--baseline=c")[0] == 0
    assert compared(capsys, good, bad, "--tolerance=70")[0] == 0
    assert compared(capsys, good, bad, "--tolerance=20")[0] == 1


@pytest.mark.parametrize("protocol", ["single", "vote", "worst", "locked"])
def test_compare_counts_as_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    good, bad = finished(tmp_path / "good", a=30), finished(tmp_path / "bad", c=10)
    code, out, _ = compared(capsys, good, bad, f"--protocol={protocol}")
    assert code == 1
    assert f"{protocol}: " in out
    assert ("<0.001" in out) == (protocol in ("vote", "worst"))


def test_compare_takes_a_named_attack_even_one_that_yaml_reads_as_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = finished(tmp_path / "good", a=30), finished(tmp_path / "bad", c=10)
    for attack in ("null", "pgd_linf"):
        code, out, _ = compared(capsys, good, bad, "--attack", attack)
        assert code == 1
        assert f"{attack}: significantly worse than good:a: bad:c" in out
        assert "robust" not in out


def test_compare_writes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = finished(tmp_path / "good", a=30), finished(tmp_path / "bad", c=10)
    targets = (f"--csv={tmp_path / 'o.csv'}", f"--latex={tmp_path / 'o.tex'}")
    assert compared(capsys, good, bad, "--protocol=vote", *targets)[0] == 1
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["run"]) for row in rows] == [
        ("clean", "good"), ("clean", "bad"), ("robust", "good"), ("robust", "bad")
    ]  # fmt: skip
    assert float(rows[-1]["difference"]) == -0.5
    assert (rows[-1]["only_this"], rows[-1]["only_baseline"]) == ("0", "20")
    assert float(rows[-1]["p_value"]) == pytest.approx(2**-19)
    assert r"bad & c & $40$ & $25.0" in (tmp_path / "o.tex").read_text()


def test_compare_refuses_in_one_line(tmp_path: Path, refused: Refused) -> None:
    good = finished(tmp_path / "good", a=30, b=29)
    assert "required" in refused("compare")
    assert "there is no records.jsonl" in refused("compare", str(tmp_path))
    assert "given twice" in refused("compare", good, good)
    assert "allowed are good:a, good:b" in refused("compare", good, "--baseline=c")
    assert "robust, pgd_linf, null, locked" in refused("compare", good, "--attack=fgsm")
    assert "single" in refused("compare", good, "--protocol=mean")
    assert "[0, 100] points, got -1" in refused("compare", good, "--tolerance=-1")
    assert "--csv" in refused("compare", good, f"--csv={tmp_path}")
    assert "--latex" in refused("compare", good, f"--latex={tmp_path / 'no' / 'o.tex'}")


def test_compare_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = compared(capsys, "--help")
    assert code == 0
    said = " ".join(out.split())
    assert "Exit code 0: under attack no defence is significantly worse" in said
    assert "Intervals are not corrected for their number" in said
    assert "RUN [RUN ...]" in said
    assert "Args:" not in said
    for option in ("baseline", "attack", "protocol", "tolerance", "csv", "latex"):
        assert f"--{option}" in said
