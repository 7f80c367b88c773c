"""`train.py` as a user meets it: what works, mistakes in one line, checkpoints to go on from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import train
from hetpure.errors import InputError
from hetpure.weights import save_classifier
from hetpure.weights.classifier import build_classifier
from lightning_modules.evaluation_cli import evaluation_cli
from lightning_modules.training_cli import CHECKPOINT, check_checkpoint
from tests.hetpure.weights.files import Bomb
from tests.lightning_modules.runs import refused
from tests.lightning_modules.trainings import VIT

ROOT = Path(__file__).parent.parent.parent
PLAIN = [
    *("--model.perturbation=null", "--data.batch_size=4", "--trainer.max_steps=2"),
    *("--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"),
    "--trainer.callbacks=lightning_modules.callbacks.ExportWeights",
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model=lightning_modules.diffusion.Nothing"], "Nothing"),
        (["--model.unknown=1"], "unknown"),
        (["--trainer.accelerator=cpu", "--trainer.devices=0"], "devices"),
        (["--ckpt_path=nowhere.ckpt"], "--ckpt_path nowhere.ckpt: there is no such file"),
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
            "the learning rate's curve needs the number of updates",
        ),
    ],
    ids=["class", "key", "trainer", "checkpoint", "partial", "distributed", "time"],
)
def test_mistakes(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, *options, program=train.main)


def test_guides_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one that takes images of any size the size that it was trained on is not known."""
    for name, network, message in (
        ("size", VIT | {"image_size": 42}, "the guide cannot be used on the data's 28 x 28 images"),
        (
            "classes",
            VIT | {"num_classes": 7},
            "the classifier's num_classes: 7, and the data's: 10",
        ),
    ):
        config = {"architecture": "VisionTransformer", "network": network | {"in_channels": 1},
                  "mean": [0.5], "std": [0.5]}  # fmt: skip
        save_classifier(tmp_path / name, build_classifier(config, where=tmp_path), config)
        guide = f"--model.guide={tmp_path / name}"
        without = "--trainer.callbacks=lightning_modules.callbacks.ExportWeights"
        assert message in refused(capsys, guide, without, program=train.main)


def test_a_training_goes_on_from_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two updates, then a third: weights, optimiser and average go on. The folder of a training is
    no other one's."""
    train.main([*PLAIN, "--trainer.default_root_dir=run", "--trainer.logger=false"])
    lines = capsys.readouterr().out.splitlines()
    command = next(line for line in lines if "hetpure evaluate" in line)
    options = command.split()[2:]
    assert options == ["--model.denoisers.ddpm", "run/diffusion"], "it is no ADDT"
    assert evaluation_cli(options).model.config.denoisers["ddpm"] == "run/diffusion"
    again = [*PLAIN, "--trainer.default_root_dir=run", "--trainer.logger=false"]
    assert "run holds another training" in refused(capsys, *again, program=train.main)
    checkpoint = next(line for line in lines if line.startswith("checkpoint: ")).split()[1]
    train.main([*PLAIN, "--trainer.max_steps=3", f"--ckpt_path={checkpoint}"])
    lines = capsys.readouterr().out.splitlines()
    end = next(line for line in lines if line.startswith("checkpoint: ")).split()[1]
    before, after = (torch.load(path, weights_only=True) for path in (checkpoint, end))
    assert (before["global_step"], after["global_step"]) == (2, 3)
    assert after["ema"]["optimization_step"] == 3
    steps = {float(state["step"]) for state in after["optimizer_states"][0]["state"].values()}
    assert steps == {3.0}


def test_a_program_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    bomb, path = Bomb(tmp_path / "exploded"), tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, "callbacks": bomb}, path)
    with pytest.raises(InputError, match="tensors and plain values"):
        train.main([f"--ckpt_path={path}", f"--trainer.default_root_dir={tmp_path / 'run'}"])
    assert not bomb.path.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x80\x02."])
def test_a_damaged_file_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path} is no file of .* can be read") as error:
        check_checkpoint(path)
    assert "\n" not in str(error.value)


def test_what_is_given_in_a_checkpoints_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: give a checkpoint of it"):
        check_checkpoint(tmp_path)  # as torch's distributed format
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="is safetensors, weights and no checkpoint"):
        check_checkpoint(tmp_path / "w.safetensors")
    whole = tmp_path / "whole.ckpt"
    torch.save({key: {} for key in CHECKPOINT}, whole)
    check_checkpoint(whole)
    for name, size in (("torn", whole.stat().st_size // 2), ("empty", 0)):
        (tmp_path / name).write_bytes(whole.read_bytes()[:size])
        with pytest.raises(InputError, match="is no file of .* that can be read"):
            check_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [{"state_dict": {"w": torch.ones(2)}}, [1, 2]])
def test_what_holds_no_training_is_no_checkpoint(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.ckpt")
    with pytest.raises(InputError, match="is no checkpoint of a training"):
        check_checkpoint(tmp_path / "weights.ckpt")
