"""One's own images in an .npz file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.npz import NPZ, read_arrays
from hetpure.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 5), np.uint8)
LABELS = np.array([1, 0, 1, 2])


def write(path: Path, **arrays: Any) -> str:
    np.savez(path, **{"images": PIXELS, "labels": LABELS} | arrays)
    return str(path)


def batch(file: str, **options: Any) -> dict[str, torch.Tensor]:
    data = NPZ(3, file, batch_size=4, **options)
    data.setup("test")
    (found,) = data.test_dataloader()
    return found


LAST = PIXELS.transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    "images",
    [PIXELS, LAST, PIXELS / 255, (LAST / 255).astype(np.float32)],
    ids=["uint8", "uint8 channels last", "float64", "float32 channels last"],
)
def test_layouts_and_units_are_told_apart(images: Any, tmp_path: Path) -> None:
    data = NPZ(3, write(tmp_path / "x.npz", images=images))
    assert (data.channels, data.image_size, data.num_classes) == (3, (6, 5), 3)
    found = batch(write(tmp_path / "x.npz", images=images))
    assert torch.allclose(found["image"] * 255, torch.from_numpy(PIXELS).float(), atol=1e-4)
    assert found["image"].dtype == torch.float32
    assert found["label"].tolist() == [1, 0, 1, 2] and found["sample"].tolist() == [0, 1, 2, 3]


def test_ids_and_labels_may_be_of_any_integer_type(tmp_path: Path) -> None:
    found = batch(
        write(
            tmp_path / "x.npz",
            ids=np.array([7, 2**32 - 1, 0, 5], np.uint64),
            labels=LABELS.astype(np.uint16),
        )
    )
    assert found["sample"].tolist() == [0, 5, 7, 2**32 - 1]
    assert found["label"].tolist() == [1, 2, 1, 0]


def test_ids_are_kept_and_evaluated_in_ascending_order(tmp_path: Path) -> None:
    found = batch(write(tmp_path / "x.npz", ids=np.array([7, 2**32 - 1, 0, 5])))
    assert found["sample"].tolist() == [0, 5, 7, 2**32 - 1]
    assert found["label"].tolist() == [1, 2, 1, 0]
    assert torch.equal(found["image"][0] * 255, torch.from_numpy(PIXELS[2]).float())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": PIXELS.astype(np.float32)}, "allowed is [0, 1]"),
        ({"images": PIXELS / 127.5 - 1}, "allowed is [0, 1]"),
        ({"images": np.where(PIXELS > 9, np.nan, 0.5)}, "pixel value nan"),
        ({"images": PIXELS.astype(np.int64)}, "int64 images"),
        ({"images": PIXELS > 9}, "bool images"),
        ({"images": (PIXELS > 127).astype(np.uint8)}, "of 0 and 1 only"),
        ({"images": PIXELS[0]}, "images of shape (3, 6, 5)"),
        ({"images": PIXELS[..., :3]}, "images of shape (4, 3, 6, 3)"),
        ({"images": PIXELS[:, :2]}, "images of shape (4, 2, 6, 5)"),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, "images of shape (0, 3, 6, 5)"),
        ({"images": PIXELS[:3]}, "3 images, 4 labels and 4 ids"),
        ({"labels": LABELS / 1}, "labels are float64"),
        ({"labels": LABELS[:, None]}, "labels are int64 of shape (4, 1)"),
        ({"labels": LABELS + 1}, "label 3 at index 3, allowed is 0 to 2"),
        ({"labels": LABELS - 1}, "label -1 at index 1, allowed is 0 or more"),
        ({"ids": np.array([1, 2, 3, 1])}, "id 1 is there more than once"),
        ({"ids": np.array([0, 1, 2, -3])}, "ids from -3 to 2"),
        ({"ids": np.array([0, 1, 2, 2**32])}, "ids from 0 to 4294967296"),
        ({"ids": np.array([0, 1, 2, 2**64 - 1], np.uint64)}, "ids from -1 to 2"),
        ({"ids": np.arange(4) / 1}, "ids are float64"),
        ({"mean": np.zeros(3)}, "it holds images, labels, mean"),
        ({"labels": np.array([1, 0, 1, None], object)}, "it holds objects"),
    ],
)
def test_what_is_not_understood_is_refused(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.npz", **changes)
    with pytest.raises(InputError) as caught:
        batch(path)
    assert says in str(caught.value) and path in str(caught.value).replace("\n", "")
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "one.npy", PIXELS)
    whole = Path(write(tmp_path / "x.npz")).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("text.npz", "one.npy", "cut.npz", "missing.npz"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            NPZ(3, str(tmp_path / name))
    for files in ((), ("x.npz", "./x.npz"), ("x.npz", str(Path("x.npz").absolute()))):
        with pytest.raises(InputError, match="file is"):
            NPZ(3, *files)
    for classes in (-1, 0, 1):
        with pytest.raises(InputError, match=f"num_classes is {classes}, allowed is 2"):
            NPZ(classes, str(tmp_path / "x.npz"))


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    """Wherever it is damaged: the archive's and zlib's errors are of many kinds."""
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=PIXELS, labels=LABELS)
    whole = path.read_bytes()
    refused = []
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        path.write_bytes(changed)
        try:
            assert np.array_equal(read_arrays(path)["images"], PIXELS)  # the byte is of no use
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > len(whole) / 2
    for said in refused:
        assert said.startswith(f"{path} cannot be read (") and "\n" not in said
        assert "read ()" not in said


def test_a_training_has_a_file_of_its_own(tmp_path: Path) -> None:
    labels = np.arange(30) % 3
    images = np.random.default_rng(1).random((30, 6, 5, 3), np.float32)
    train = write(tmp_path / "train.npz", images=images, labels=labels)
    data = NPZ(3, write(tmp_path / "x.npz"), train, batch_size=4, validation=6)
    data.setup("fit")
    held_out = torch.cat([batch["sample"] for batch in data.val_dataloader()]).tolist()
    trained = torch.cat([batch["sample"] for batch in data.train_dataloader()]).tolist()
    assert len(held_out) == 6 and len(trained) == 24
    assert sorted(held_out + trained) == list(range(30))
    assert set(data.files_sha256()) == {"x.npz"}
    alone = NPZ(3, write(tmp_path / "x.npz"))
    with pytest.raises(InputError, match="train_file is needed"):
        alone.setup("fit")
    other = write(tmp_path / "small.npz", images=images[:, :5], labels=labels)
    with pytest.raises(InputError, match=r"small.npz: images of shape \(3, 5, 5\)"):
        NPZ(3, write(tmp_path / "x.npz"), other, validation=6).setup("fit")
