"""SVHN's MATLAB files: what is read, and what is refused."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from datamodules import base, svhn
from datamodules.svhn import SVHN
from hetpure.errors import InputError

SMALL = {"train": 60, "test": 30, "extra": 20}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the published layout with fewer images."""
    monkeypatch.setattr(SVHN, "counts", SMALL)


def write(folder: Path, kind: str = "test", **changes: Any) -> np.ndarray[Any, Any]:
    """X (H, W, C, N) and y (N, 1), 1 to 10; gives X."""
    count = SMALL[kind]
    random = np.random.default_rng(len(kind))
    images = random.integers(0, 256, (32, 32, 3, count), np.uint8)
    digits = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
    savemat(folder / f"{kind}_32x32.mat", {"X": images, "y": digits} | changes, do_compression=True)
    return images


def test_images_and_digits(tmp_path: Path) -> None:
    images = write(tmp_path)
    data = SVHN(str(tmp_path), batch_size=30)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch["image"].shape == (30, 3, 32, 32)
    for sample, channel, row, column in ((0, 0, 0, 0), (7, 1, 3, 20), (29, 2, 31, 5)):
        value = batch["image"][sample, channel, row, column] * 255
        assert value == images[row, column, channel, sample]
    # y is 1, 2, ..., 9, 10: 10 is the digit 0, whose class is 0.
    assert batch["label"][:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert data.class_names[int(batch["label"][9])] == "0"
    assert batch["sample"].tolist() == list(range(30))
    assert list(data.files_sha256()) == ["test_32x32.mat"]


def test_extra_images_are_trained_on_and_never_held_out(tmp_path: Path) -> None:
    write(tmp_path, "train"), write(tmp_path, "extra")
    held_out = []
    for extra in (False, True):
        data = SVHN(str(tmp_path), extra=extra, batch_size=1, validation=20)
        data.setup("fit")
        held_out.append([int(batch["sample"]) for batch in data.val_dataloader()])
        trained = sorted(int(batch["sample"]) for batch in data.train_dataloader())
        every = range(80 if extra else 60)
        assert trained == [sample for sample in every if sample not in held_out[0]]
    assert held_out[0] == held_out[1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y": np.zeros((30, 1), np.uint8)}, "labels 0 to 0, expected 1 to 10"),
        ({"y": np.full((30, 1), 11, np.uint8)}, "labels 11 to 11, expected 1 to 10"),
        ({"y": np.ones((29, 1), np.uint8)}, r"y is uint8 of shape (29, 1)"),
        ({"y": np.ones((30, 1))}, r"y is float64"),
        ({"X": np.zeros((32, 32, 3, 29), np.uint8)}, r"X is uint8 of shape (32, 32, 3, 29)"),
        ({"X": np.zeros((30, 32, 32, 3), np.uint8)}, r"X is uint8 of shape (30, 32, 32, 3)"),
        ({"X": np.zeros((32, 32, 3, 30))}, r"X is float64"),
    ],
)
def test_other_content_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    write(tmp_path, **changes)
    with pytest.raises(InputError) as caught:
        SVHN(str(tmp_path)).setup("test")
    assert says in str(caught.value) and "test_32x32.mat" in str(caught.value)


def test_missing_and_cut_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test_32x32.mat \(64,275,384 bytes.*--data.download"):
        SVHN(str(tmp_path)).setup("test")
    with pytest.raises(InputError, match=r"train_32x32.mat is not there"):
        SVHN(str(tmp_path), test_split="validation").setup("test")
    write(tmp_path)
    path = tmp_path / "test_32x32.mat"
    whole = path.read_bytes()
    for cut in (0, 50, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="test_32x32.mat") as caught:
            SVHN(str(tmp_path)).setup("test")
        assert "\n" not in str(caught.value)
    savemat(path, {"images": np.zeros(3)})
    with pytest.raises(InputError, match="X is nothing"):
        SVHN(str(tmp_path)).setup("test")


def test_other_files_are_told_and_the_published_512_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(base, "rank_zero_info", told.append)
    write(tmp_path), write(tmp_path, "train"), write(tmp_path, "extra")
    for options in ({"extra": True}, {"extra": False}):
        SVHN(str(tmp_path), validation=20, **options).setup()
    others = [line.partition(" is not the published file")[0] for line in told if "not" in line]
    paths = {kind: str(tmp_path / f"{kind}_32x32.mat") for kind in SMALL}
    whole = [paths["train"], paths["extra"], paths["test"]]
    assert others == [*whole, paths["train"], paths["test"]]
    data = SVHN(str(tmp_path), subset="published_512")
    for _ in range(2):
        with pytest.raises(InputError, match=r"test_32x32.mat is not the published file: --data.s"):
            data.setup("test")
    files = dict(svhn.FILES)
    for kind in SMALL:
        digest = hashlib.sha256(Path(paths[kind]).read_bytes()).hexdigest()
        files[kind] = (1, digest)
    monkeypatch.setattr(svhn, "FILES", files)
    told.clear()
    SVHN(str(tmp_path), validation=20, extra=True).setup()
    SVHN(str(tmp_path), subset="published_512").setup("test")
    assert told == [f"SVHN from {tmp_path}"] * 2


def test_hashes_are_the_published_ones() -> None:
    assert {kind: digest for kind, (_, digest) in svhn.FILES.items()} == {
        "train": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        "test": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        "extra": "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3",
    }
    assert [size for size, _ in svhn.FILES.values()] == [182_040_794, 64_275_384, 1_329_278_602]


def test_images_are_not_copied(tmp_path: Path) -> None:
    """The file's layout keeps an image in one piece: turning it around costs no memory."""
    write(tmp_path)
    data = SVHN(str(tmp_path))
    whole = data._read("test").images
    assert isinstance(whole, torch.Tensor)
    assert whole.stride() == (3 * 32 * 32, 32 * 32, 1, 32)
