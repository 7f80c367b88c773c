"""`evaluate.py` and `train.py` as a user meets them: what works, and each mistake in one line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning import LightningDataModule
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

import evaluate
import train
from hetpure.__main__ import main as hetpure_main
from hetpure.numbers import Number
from hetpure.weights import ASSETS
from lightning_modules.cli import run
from lightning_modules.evaluation import DefenseConfig, RobustnessEvaluation

ROOT = Path(__file__).parent.parent.parent
TINY = [
    "--data.limit=2",
    "--data.batch_size=2",
    "--model.attack.steps=1",
    "--model.attack.mask=recomputed",
    "--model.audit=null",
]

# Of quick.yaml's rows those that are least alike.
TWO_ROWS = """--model.defenses={
  plain classifier: {},
  heterogeneous + ADDT: {denoiser: addt, mask: {threshold: 0.5}, purifier: {
    class_path: hetpure.purifiers.HeterogeneousPurifier, init_args: {
      t_large: 0.2, t_small: 0.1, steps: 20, resampling: single_step, resample_jump: 10}}}}"""


def refused(main: Callable[[list[str]], None], arguments: list[str], capsys: object) -> str:
    """Runs a command line that must fail as users' mistakes do; gives its one line."""
    with pytest.raises(SystemExit) as stop:
        run(main, arguments)
    assert stop.value.code == 2
    printed: str = capsys.readouterr().err  # type: ignore[attr-defined]
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert printed.rstrip().endswith(errors[0])
    assert "Traceback" not in printed
    return errors[0]


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
    line = refused(evaluate.main, ["--model.classifier=nowhere"], capsys)
    assert "nowhere" in line
    assert "fashion_mnist_wrn" in line, "names what there is"


def test_missing_diffusion(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in refused(evaluate.main, ["--model.denoisers.ddpm=nowhere"], capsys)


def test_corrupt_weights(diffusion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = diffusion / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert file.name in refused(evaluate.main, [f"--model.denoisers.ddpm={diffusion}"], capsys)


def test_weights_that_do_not_fit(diffusion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = diffusion / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({"conv_in.weight": torch.zeros(24, 1, 3, 3)}, file)
    line = refused(evaluate.main, [f"--model.denoisers.ddpm={diffusion}"], capsys)
    assert file.name in line


@pytest.mark.parametrize("renamed", [True, False], ids=["renamed", "as .bin"])
def test_a_pickle(renamed: bool, diffusion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = diffusion / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    torch.save({"a": torch.zeros(1)}, file if renamed else file.with_suffix(".bin"))
    line = refused(evaluate.main, [f"--model.denoisers.ddpm={diffusion}"], capsys)
    assert "pickle" in line


def test_a_pickled_classifier(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.zeros(1)}, classifier / "model.safetensors")
    assert "pickle" in refused(evaluate.main, [f"--model.classifier={classifier}"], capsys)


@pytest.mark.parametrize(
    "option", ["--model.attack=hetpure.attacks.Nothing", "--data=datamodules.fashion_mnist.Nothing"]
)
def test_unknown_class_path(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Nothing" in refused(evaluate.main, [option], capsys)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.attack.epsilon=-8/255", "epsilon"),
        ("--model.attack.epsilon=eight", "eight"),
        ("--model.attack.epsilon=8", "write 8/255"),
        ("--model.attack.steps=0", "steps"),
        ("--model.protocol.report_draws=0", "report_draws"),
        ("--data.limit=0", "limit"),
        ("--model.seed=-1", "seed"),
        ("--trainer.precision=64-true", "--trainer.precision 64-true"),
        ("--data.data_dir=.", "packaged"),
        ("--model.unknown=1", "unknown"),
        ("--config=nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_bad_values(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(evaluate.main, [option], capsys)


def test_other_arguments_that_lack_name_no_config(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(hetpure_main, ["report"], capsys)
    assert "required" in line and "--config" not in line


def test_t_small_above_t_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = (ROOT / "configs" / "evaluate" / "quick.yaml").read_text()
    assert "t_small: 0.1" in config
    swapped = tmp_path / "swapped.yaml"
    swapped.write_text(config.replace("t_small: 0.1", "t_small: 0.5"))
    line = refused(evaluate.main, [f"--config={swapped}"], capsys)
    assert "t_small 0.5 is above t_large" in line


def test_a_data_folder_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--data.data_dir={tmp_path}", "--data.source=auto"]
    assert str(tmp_path) in refused(evaluate.main, options, capsys)


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
    line = refused(evaluate.main, [f"--model.classifier={classifier}", *TINY], capsys)
    assert said in line


class RawImages(Dataset[dict[str, torch.Tensor]]):
    """Someone else's data, not scaled to [0, 1]."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = torch.full((1, 28, 28), self.value)
        return {"image": image, "label": torch.tensor(0), "sample": torch.tensor(index)}


class RawData(LightningDataModule):
    description, class_names, num_classes, channels = "raw", tuple("abcdefghij"), 10, 1

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def files_sha256(self) -> dict[str, str]:
        return {}

    def test_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        return DataLoader(RawImages(self.value), batch_size=2)


@pytest.mark.parametrize("value", [255.0, -0.1, float("nan")])
def test_images_outside_the_unit_interval(
    value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(arguments: list[str]) -> None:
        module = RobustnessEvaluation("fashion_mnist_wrn", {}, {"plain": DefenseConfig()})
        module.prepare(RawData(value), RawData(value).test_dataloader())

    assert "[0, 1]" in refused(main, [], capsys)


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


def test_epsilon_takes_fractions_and_the_config_is_complete(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluate.main([TWO_ROWS, "--model.attack.epsilon=24/255", "--model.folder=out", *TINY])
    (folder,) = Path("out").iterdir()
    assert "epsilon: 24/255" in (folder / "config.yaml").read_text()
    assert "Linf 24/255" in capsys.readouterr().out
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    attacked = [record for record in records if record["attack"] != "clean"]
    assert max(record["linf"] for record in attacked) <= float(Number("24/255")) + 1e-6
    results = json.loads((folder / "results.json").read_text())
    assert results["schema"] == 3
    assert all(defense["gradient_check"]["passed"] for defense in results["defenses"].values())
    for name, row in results["defenses"].items():
        spent = sum(r["network_calls"] for r in records if r["defense"] == name)
        assert row["cost"]["network_calls"] == spent
    for file in ("report.md", "figure.png", "timing.jsonl"):
        assert (folder / file).stat().st_size > 0
    images = list((folder / "images").glob("00000-*.safetensors"))
    assert len(images) == 2 * 3  # rows; clean, attacked, null
    # The written config alone repeats the run, record for record.
    evaluate.main(["--config", str(folder / "config.yaml"), "--model.folder=again"])
    (again,) = Path("again").iterdir()
    assert (again / "records.jsonl").read_bytes() == (folder / "records.jsonl").read_bytes()


def test_inference_mode_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(evaluate.main, ["--trainer.inference_mode=true", *TINY], capsys)
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


def test_training_prints_a_command_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(
        [
            *["--trainer.max_steps=2", "--trainer.val_check_interval=2"],
            *["--trainer.limit_val_batches=1", "--data.batch_size=4"],
            "--trainer.enable_progress_bar=false",
        ]
    )
    printed = capsys.readouterr().out
    command = next(line for line in printed.splitlines() if "python evaluate.py" in line)
    options = command.split()[2:]
    folder = Path(options[1])
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert list(folder.parent.glob("checkpoints/*.ckpt"))
    assert list(folder.parent.glob("events.out.tfevents*"))
    assert (folder.parent / "samples.png").is_file()
    evaluate.main([*options, TWO_ROWS, *TINY])
    assert "ADDT" in capsys.readouterr().out
