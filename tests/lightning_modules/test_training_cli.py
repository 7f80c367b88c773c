"""`train.py` as a user meets it: what works, mistakes in one line, checkpoints to go on from."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train
from hetpure.classifiers import Classifier, VisionTransformer
from hetpure.errors import InputError
from hetpure.weights import ASSETS, save_classifier
from hetpure.weights.classifier import build_classifier
from lightning_modules.cli import run
from lightning_modules.training_cli import check_checkpoint
from tests.hetpure.weights.files import Bomb

ROOT = Path(__file__).parent.parent.parent
PLAIN = [
    *("--model.perturbation=null", "--data.batch_size=4", "--trainer.max_steps=2"),
    *("--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"),
    "--trainer.callbacks=lightning_modules.callbacks.ExportWeights",
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command line that must fail as users' mistakes do."""
    with pytest.raises(SystemExit) as stop:
        run(train.main, arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert printed.rstrip().endswith(line) and "Traceback" not in printed
    return line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model=lightning_modules.diffusion.Nothing"], "Nothing"),
        (["--model.unknown=1"], "unknown"),
        (["--trainer.accelerator=cpu", "--trainer.devices=0"], "devices"),
        (["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt: there is no such file"),
        (
            [f"--config={ROOT / 'configs' / 'train' / 'variants' / 'clean.yaml'}"],
            "required: data; a --config takes the default's place: lay a partial one over",
        ),
        (
            [
                "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy",
                "--trainer.strategy.save_distributed_checkpoint=true",
            ],
            "save_distributed_checkpoint must be false",
        ),
        (  # nobody knows how many updates that are
            [
                *(*PLAIN, "--trainer.max_steps=-1", "--trainer.max_time=00:00:00:02"),
                "--model.learning_rate_schedule=cosine",
            ],
            "cosine needs the number of updates",
        ),
    ],
    ids=["class", "key", "trainer", "checkpoint", "partial", "distributed", "time"],
)
def test_mistakes(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(options, capsys)


def test_guides_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one that takes images of any size the size that it was trained on is not known."""
    network = {"image_size": 32, "patch_size": 8, "in_channels": 1, "num_classes": 10,
               "width": 24, "depth": 1, "heads": 3}  # fmt: skip
    config = {"architecture": "VisionTransformer", "network": network, "mean": [0.5], "std": [0.5]}
    guide = Classifier(VisionTransformer(**network), num_classes=10, mean=[0.5], std=[0.5])
    save_classifier(tmp_path / "size", guide, config)
    line = refused([f"--model.guide={tmp_path / 'size'}"], capsys)
    assert "the guide cannot be used on the diffusion's 28 x 28 images" in line

    folder = Path(shutil.copytree(ASSETS / "fashion_mnist_wrn", tmp_path / "classes"))
    config = json.loads((folder / "config.json").read_text())
    config["network"]["num_classes"] = 7
    save_classifier(folder, build_classifier(config, where=folder), config)
    assert "7 classes" in refused([f"--model.guide={folder}"], capsys)


def test_a_training_goes_on_from_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two updates, then a third: weights, optimiser and average go on. The folder of a training is
    no other one's."""
    train.main([*PLAIN, "--trainer.default_root_dir=run", "--trainer.logger=false"])
    lines = capsys.readouterr().out.splitlines()
    command = next(line for line in lines if "python evaluate.py" in line)
    assert command.split()[2:] == ["--model.denoisers.ddpm", "run/diffusion"], "it is no ADDT"
    assert (tmp_path / "run/diffusion/unet/diffusion_pytorch_model.safetensors").is_file()
    again = [*PLAIN, "--trainer.default_root_dir=run", "--trainer.logger=false"]
    assert "run holds another training" in refused(again, capsys)
    checkpoint = next(line for line in lines if line.startswith("checkpoint: ")).split()[1]
    train.main([*PLAIN, "--trainer.max_steps=3", f"--ckpt_path={checkpoint}"])
    lines = capsys.readouterr().out.splitlines()
    end = next(line for line in lines if line.startswith("checkpoint: ")).split()[1]
    before, after = (torch.load(path, weights_only=True) for path in (checkpoint, end))
    assert (before["global_step"], after["global_step"]) == (2, 3)
    assert after["ema"]["optimization_step"] == 3
    steps = {float(state["step"]) for state in after["optimizer_states"][0]["state"].values()}
    assert steps == {3.0}


def test_a_training_of_so_many_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    train.main([*PLAIN, "--trainer.max_steps=-1", "--trainer.max_time=00:00:00:02"])
    assert "weights: " in capsys.readouterr().out


def test_a_program_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    bomb, path = Bomb(tmp_path / "exploded"), tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, "callbacks": bomb}, path)
    with pytest.raises(InputError, match="tensors and plain values"):
        train.main([f"--ckpt_path={path}", f"--trainer.default_root_dir={tmp_path / 'run'}"])
    assert not bomb.path.exists()


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    """Also torch's distributed format, a folder whose index is a pickle."""
    weights = {"w": torch.ones(2)}
    for number, content in enumerate((b"", b"text", b"PK\x03\x04", b"\x80\x02.")):
        (tmp_path / f"{number}.ckpt").write_bytes(content)
    torch.save({"state_dict": weights}, tmp_path / "weights.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    save_file(weights, tmp_path / "weights.safetensors")
    for path in [*tmp_path.iterdir()]:
        with pytest.raises(InputError, match="is no checkpoint of") as error:
            check_checkpoint(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="save_distributed_checkpoint=false"):
        check_checkpoint(tmp_path)


def test_ones_own_is_taken(tmp_path: Path) -> None:
    content = {"pytorch-lightning_version": "2.6", "state_dict": {}, "loops": {}, "epoch": 3}
    torch.save(content, tmp_path / "a.ckpt")
    check_checkpoint(tmp_path / "a.ckpt")
