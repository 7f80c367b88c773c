"""SVHN's MATLAB files: what is read, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

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
    with pytest.raises(InputError, match=r"test_32x32.mat \(64,275,384 bytes.*download to true"):
        SVHN(str(tmp_path)).setup("test")
    with pytest.raises(InputError, match=r"has no train_32x32.mat"):
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
