"""Checkpoints to go on from: what is no checkpoint, or a program, is refused before it is read."""

from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import save_file

import train
from hetpure.errors import InputError
from lightning_modules.cli import check_checkpoint
from lightning_modules.compatibility import check_trainer
from tests.hetpure.weights.files import Bomb


def test_a_program_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    bomb, path = Bomb(tmp_path / "exploded"), tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, "callbacks": bomb}, path)
    with pytest.raises(InputError, match="tensors and plain values"):
        train.main([f"--ckpt_path={path}", f"--trainer.default_root_dir={tmp_path / 'run'}"])
    assert not bomb.path.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x80\x02."], ids=repr)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        check_checkpoint(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="no such file"):
        check_checkpoint(tmp_path / "nowhere.ckpt")


def test_other_files_of_tensors_are_no_checkpoints(tmp_path: Path) -> None:
    weights = {"w": torch.ones(2)}
    torch.save({"state_dict": weights}, tmp_path / "weights.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    save_file(weights, tmp_path / "weights.safetensors")
    for name in ("weights.ckpt", "list.ckpt", "weights.safetensors"):
        with pytest.raises(InputError, match="is no checkpoint of"):
            check_checkpoint(tmp_path / name)


def test_a_folder_is_refused_before_its_index_is_unpickled(tmp_path: Path) -> None:
    """torch's distributed format, whose index is a pickle; no training writes one."""
    with pytest.raises(InputError, match="save_distributed_checkpoint=false"):
        check_checkpoint(tmp_path)
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    trainer = Trainer(accelerator="cpu", devices=1, strategy=strategy, logger=False)
    with pytest.raises(InputError, match="save_distributed_checkpoint must be false"):
        check_trainer(trainer)


def test_ones_own_is_taken(tmp_path: Path) -> None:
    content = {"pytorch-lightning_version": "2.6", "state_dict": {}, "loops": {}, "epoch": 3}
    torch.save(content, tmp_path / "a.ckpt")
    check_checkpoint(tmp_path / "a.ckpt")
