"""`evaluate.py` and `train.py` as a user meets them: what works, and each mistake in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import evaluate
import train
from hetpure.__main__ import main as hetpure_main
from hetpure.numbers import Number
from hetpure.weights import ASSETS
from tests.lightning_modules.runs import ROOT, refused

TINY = [
    "--data.limit=2",
    "--data.batch_size=2",
    "--model.attack.steps=1",
    "--model.attack.mask=recomputed",
    "--model.audit=null",
]

# As quick.yaml's rows that are least alike, with a shorter plan.
TWO_ROWS = """--model.defenses={
  plain classifier: {},
  heterogeneous + ADDT: {denoiser: addt, mask: {threshold: 0.5}, purifier: {
    class_path: hetpure.purifiers.HeterogeneousPurifier, init_args: {
      t_large: 0.1, t_small: 0.05, steps: 20, resampling: none}}}}"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def diffusion(tmp_path: Path) -> Path:
    """A copy of the packaged diffusion for a test to damage."""
    return Path(shutil.copytree(ASSETS / "fashion_mnist_ddpm", tmp_path / "diffusion"))


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS / "fashion_mnist_wrn", tmp_path / "classifier"))


def test_missing_weights(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--model.classifier=nowhere")
    assert "nowhere" in line
    assert "fashion_mnist_wrn" in line, "names what there is"


def test_missing_diffusion(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in refused(capsys, "--model.denoisers.ddpm=nowhere")


def test_corrupt_weights(diffusion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = diffusion / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert file.name in refused(capsys, f"--model.denoisers.ddpm={diffusion}")


def test_weights_that_do_not_fit(diffusion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = diffusion / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({"conv_in.weight": torch.zeros(24, 1, 3, 3)}, file)
    line = refused(capsys, f"--model.denoisers.ddpm={diffusion}")
    assert file.name in line


@pytest.mark.parametrize("renamed", [True, False], ids=["renamed", "as .bin"])
def test_a_pickle(renamed: bool, diffusion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = diffusion / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    torch.save({"a": torch.zeros(1)}, file if renamed else file.with_suffix(".bin"))
    line = refused(capsys, f"--model.denoisers.ddpm={diffusion}")
    assert "pickle" in line


def test_a_pickled_classifier(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.zeros(1)}, classifier / "model.safetensors")
    assert "pickle" in refused(capsys, f"--model.classifier={classifier}")


@pytest.mark.parametrize(
    "option", ["--model.attack=hetpure.attacks.Nothing", "--data=datamodules.fashion_mnist.Nothing"]
)
def test_unknown_class_path(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Nothing" in refused(capsys, option)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.attack.epsilon=-8/255", "epsilon"),
        ("--model.attack.epsilon=eight", "eight"),
        ("--model.attack.epsilon=8", "write 8/255"),
        ("--model.attack.steps=0", "steps"),
        ("--model.protocol.report_draws=0", "report_draws"),
        ("--data.limit=0", "limit"),
        ("--trainer.precision=64-true", "--trainer.precision 64-true"),
        ("--data.data_dir=.", "packaged"),
        ("--model.unknown=1", "unknown"),
        ("--config=nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_bad_values(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, option)


def test_other_arguments_that_lack_name_no_config(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "report", program=hetpure_main)
    assert "required" in line and "--config" not in line


def test_t_small_above_t_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = (ROOT / "configs" / "evaluate" / "quick.yaml").read_text()
    assert "t_small: 0.1" in config
    swapped = tmp_path / "swapped.yaml"
    swapped.write_text(config.replace("t_small: 0.1", "t_small: 0.5"))
    line = refused(capsys, f"--config={swapped}")
    assert "t_small 0.5 is above t_large" in line


def test_a_data_folder_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--data.data_dir={tmp_path}", "--data.source=auto"]
    assert str(tmp_path) in refused(capsys, *options)


@pytest.mark.parametrize(
    ("changes", "said"), [({"num_classes": 7}, "classes"), ({"in_channels": 3}, "channels")]
)
def test_classifier_and_data_disagree(
    changes: dict[str, int], said: str, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hetpure.weights.classifier import build_classifier, save_classifier

    config = json.loads((classifier / "config.json").read_text())
    config["network"].update(changes)
    if "in_channels" in changes:
        config["mean"], config["std"] = [0.5] * 3, [0.5] * 3
    save_classifier(classifier, build_classifier(config, where=classifier), config)
    line = refused(capsys, f"--model.classifier={classifier}", *TINY)
    assert said in line


def test_no_traceback_in_a_real_shell(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), "--model.attack.epsilon=-1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: --model.attack.epsilon")
    assert "Traceback" not in result.stderr


def test_the_default_config_with_an_epsilon_as_a_fraction(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluate.main([TWO_ROWS, "--model.attack.epsilon=24/255", "--model.folder=out", *TINY])
    (folder,) = Path("out").iterdir()
    assert "epsilon: 24/255" in (folder / "config.yaml").read_text()
    assert "Linf 24/255" in capsys.readouterr().out
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    furthest = max(record["linf"] for record in records if record["attack"] != "clean")
    assert furthest == pytest.approx(Number("24/255"))
    results = json.loads((folder / "results.json").read_text())
    assert results["schema"] == 4 and not results["struck"]
    assert len(list(folder.glob("blocks/*"))) == 2 * 3  # rows; clean, attacked, null


def test_inference_mode_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--trainer.inference_mode=true", *TINY)
    assert "inference_mode" in line


def test_the_attack_is_configured_by_class() -> None:
    row = "--model.defenses={plain classifier: {}}"
    evaluate.main([row, "--model.attack.norm=l2", "--model.attack.epsilon=0.5", *TINY])
    (folder,) = Path("runs/evaluate").iterdir()
    attacks = json.loads((folder / "results.json").read_text())["defenses"]["plain classifier"]
    assert list(attacks["attacks"]) == ["pgd_l2"]
    assert attacks["perturbation"]["max_l2"] <= 0.5 + 1e-5


def test_a_class_in_anothers_place_keeps_what_was_set_and_has_its_own_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--model.attack=hetpure.attacks.BPDA", "--print_config"])
    attack = yaml.safe_load(capsys.readouterr().out)["model"]["attack"]["init_args"]
    assert attack["epsilon"] == "16/255"  # quick.yaml's, of its PGD
    assert attack["approximation"] == "bpda"


@pytest.mark.slow
def test_training_prints_a_command_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(
        [
            *["--trainer.max_steps=2", "--trainer.val_check_interval=2"],
            *["--trainer.limit_val_batches=1", "--data.batch_size=4"],
            "--trainer.enable_progress_bar=false",
        ]
    )
    printed = capsys.readouterr().out
    command = next(line for line in printed.splitlines() if "hetpure evaluate" in line)
    options = command.split()[2:]
    folder = Path(options[1])
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert list(folder.parent.glob("checkpoints/*.ckpt"))
    assert list(folder.parent.glob("events.out.tfevents*"))
    assert (folder.parent / "samples.png").is_file()
    evaluate.main([*options, TWO_ROWS, *TINY])
    assert "ADDT" in capsys.readouterr().out
