"""`train.py` as a user meets it: what works, mistakes in one line, checkpoints to go on from."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.progress import ProgressColumn
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


class Shown(Callback):
    """What the progress bar says beside itself."""

    said: ClassVar[list[str]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        bar = trainer.progress_bar_callback
        assert isinstance(bar, RichProgressBar) and bar.progress is not None
        text = bar.progress.columns[0]
        assert isinstance(text, ProgressColumn)
        self.said.append(str(text.render(bar.train_progress_bar)))


@pytest.mark.parametrize(("epochs", "said"), [(-1, "Epoch 0"), (3, "Epoch 0/2")])
def test_the_progress_bar_tells_the_last_epoch_where_there_is_one(epochs: int, said: str) -> None:
    Shown.said.clear()
    train.main(
        [
            *(*PLAIN, "--trainer.enable_progress_bar=true", f"--trainer.max_epochs={epochs}"),
            f"--trainer.callbacks+={__name__}.Shown",
        ]
    )
    assert [text.strip() for text in Shown.said] == [said] * 2


def test_a_progress_bar_of_ones_own_stays() -> None:
    train.main(
        [
            *(*PLAIN, "--trainer.max_steps=1", "--trainer.enable_progress_bar=true"),
            "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar",
        ]
    )


def test_a_training_that_goes_on_elsewhere_keeps_its_best_and_does_not_begin_anew(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """In a folder of its own it knows the best checkpoint so far and its score, which Lightning
    would forget; the probe's look before the first update is not repeated."""
    probe = {
        "class_path": "lightning_modules.monitor.RobustProbe",
        "init_args": {
            "images": 2,
            "every_n_steps": 1,
            "purifier": {"class_path": "UniformPurifier", "init_args": {"steps": 20}},
            "attack": {"class_path": "PGD", "init_args": {"steps": 1, "eot_samples": 1}},
        },
    }
    best = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"monitor": "probe/clean", "mode": "max", "every_n_train_steps": 1},
    }
    options = [*PLAIN, f"--trainer.callbacks+={json.dumps(probe)}"]
    options += [f"--trainer.callbacks+={json.dumps(best)}"]
    caplog.set_level("INFO")
    train.main(options)
    assert "before the first update" in caplog.text + capsys.readouterr().err
    (first,) = Path("runs").rglob("end.ckpt")
    caplog.clear()
    train.main([*options, "--trainer.max_steps=3", f"--ckpt_path={first}"])
    assert "before the first update" not in caplog.text + capsys.readouterr().err
    assert not [warning for warning in recwarn if "dirpath" in str(warning.message)]
    before, after = (
        next(
            state
            for name, state in torch.load(path, weights_only=True)["callbacks"].items()
            if name.startswith("ModelCheckpoint")
        )
        for path in (first, *(path for path in Path("runs").rglob("end.ckpt") if path != first))
    )
    assert before["dirpath"] != after["dirpath"]
    assert after["best_model_score"] >= before["best_model_score"]
    assert Path(before["best_model_path"]).is_file(), "none of another folder is deleted"


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
