"""Checkpoints to go on from: what is no checkpoint, or a program, is refused before it is read."""

from pathlib import Path

import pytest
import torch

import train
from hetpure.errors import InputError
from lightning_modules.cli import check_checkpoint
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


def test_ones_own_is_taken(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3, "loops": {}}, tmp_path / "a.ckpt")
    check_checkpoint(tmp_path / "a.ckpt")
    check_checkpoint(tmp_path)
