"""CIFAR's files in both published versions: what is read, and what is refused."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import base
from datamodules.cifar import CIFAR, CIFAR10, CIFAR100, read_python
from hetpure.errors import InputError

SMALL = {"train": 200, "test": 30}
PIXELS = 30 * 3072  # of the test images


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the published layout with fewer images."""
    monkeypatch.setattr(CIFAR, "counts", SMALL)


def content(kind: type[CIFAR]) -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Images (N, 3, 32, 32) and labels by split; every class occurs as often as every other."""
    random = np.random.default_rng(0)
    classes = len(kind.class_names)
    return {
        split: (
            random.integers(0, 256, (count, 3, 32, 32), np.uint8),
            (np.arange(count) * 7 % classes).astype(np.uint8),
        )
        for split, count in SMALL.items()
    }


def pieces(kind: type[CIFAR], version: str) -> Any:
    """Names of files, with the images and labels of each."""
    files = getattr(kind, version).files
    for split, (images, labels) in content(kind).items():
        parts = len(files[split])
        yield from zip(files[split], np.split(images, parts), np.split(labels, parts), strict=True)


def write_binary(folder: Path, kind: type[CIFAR]) -> Path:
    """Records of label bytes and three planes, row by row; a coarse label comes first."""
    target = folder / kind.binary.folder
    target.mkdir(parents=True)
    for name, images, labels in pieces(kind, "binary"):
        coarse = [] if kind.label_bytes == 1 else [np.full((len(labels), 1), 19, np.uint8)]
        record = np.hstack([*coarse, labels[:, None], images.reshape(len(images), -1)])
        (target / name).write_bytes(record.tobytes())
    return target


def python_2(content: dict[str, Any]) -> bytes:
    """As Python 2 wrote it: protocol 2, text as byte strings, numpy's old module name."""
    array = content["data"]
    rest = b"".join(
        b"U"
        + bytes([len(key)])
        + key.encode()
        + b"]("
        + b"".join(b"K" + bytes([value]) for value in values)
        + b"e"
        for key, values in content.items()
        if key != "data"
    )
    pieces = [
        b"\x80\x02}(U\x04data",
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
        b"(K\x01M" + len(array).to_bytes(2, "little") + b"M\x00\x0c\x86",
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
        b"\x89T" + array.size.to_bytes(4, "little") + array.tobytes() + b"tb",
    ]
    return b"".join(pieces) + rest + b"u."


def python_3(content: dict[str, Any]) -> bytes:
    """As Python 3 saves it anew, with text for keys."""
    return pickle.dumps(content, protocol=2)


def write_python(folder: Path, kind: type[CIFAR], pickled: Any = python_2) -> Path:
    target = folder / kind.python.folder
    target.mkdir(parents=True)
    for name, images, labels in pieces(kind, "python"):
        whole = {"data": images.reshape(len(images), -1), kind.label_key: labels.tolist()}
        if kind is CIFAR100:
            whole["coarse_labels"] = [19] * len(labels)
        (target / name).write_bytes(pickled(whole))
    return target


FORMS = {
    "binary": lambda folder, kind: write_binary(folder, kind),
    "python 2": lambda folder, kind: write_python(folder, kind, python_2),
    "python 3": lambda folder, kind: write_python(folder, kind, python_3),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_both_versions_hold_the_same_images(kind: type[CIFAR], form: str, tmp_path: Path) -> None:
    folder = FORMS[form](tmp_path, kind)
    images, labels = content(kind)["test"]
    for data_dir in (tmp_path, folder):  # the folder around the published one, or itself
        data = kind(str(data_dir), batch_size=30)
        data.setup("test")
        (batch,) = data.test_dataloader()
        assert torch.equal(batch["image"], torch.from_numpy(images).float() / 255)
        assert batch["label"].tolist() == labels.tolist()
        assert batch["sample"].tolist() == list(range(30))
    assert set(data.files_sha256()) == {path.name for path in folder.glob("test*")}


def test_training_and_validation_images_are_those_of_the_training_files(tmp_path: Path) -> None:
    write_binary(tmp_path, CIFAR10)
    images, labels = content(CIFAR10)["train"]
    seen = []
    for seed in (0, 1):
        data = CIFAR10(str(tmp_path), batch_size=10, validation=20, seed=seed)
        data.setup("fit")
        train, held_out = data.train_dataloader(), list(data.val_dataloader())
        parts = [torch.cat([b[key] for b in held_out]) for key in ("image", "label", "sample")]
        assert parts[1].bincount().tolist() == [2] * 10
        assert (parts[2].diff() > 0).all()
        assert torch.equal(parts[0] * 255, torch.from_numpy(images)[parts[2]].float())
        assert parts[1].tolist() == labels[parts[2]].tolist()
        drawn = torch.cat([batch["sample"] for batch in train])
        assert sorted([*drawn.tolist(), *parts[2].tolist()]) == list(range(200))
        seen.append((drawn.tolist(), parts[2].tolist()))
    assert seen[0][1] == seen[1][1] and seen[0][0] != seen[1][0]


def test_names_and_sizes_are_the_published_ones() -> None:
    assert (len(CIFAR10.class_names), len(set(CIFAR100.class_names))) == (10, 100)
    assert list(CIFAR100.class_names) == sorted(CIFAR100.class_names)
    assert CIFAR100.class_names.index("sunflower") == 82 and CIFAR100.class_names[-1] == "worm"
    assert CIFAR100("nowhere").description == "CIFAR-100 test images"


def refused(kind: type[CIFAR], folder: Path, stage: str = "test") -> str:
    with pytest.raises(InputError) as caught:
        kind(str(folder)).setup(stage)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_files_are_named_with_what_to_do(tmp_path: Path) -> None:
    said = refused(CIFAR10, tmp_path)
    for part in (str(tmp_path), "cifar-10-batches-bin (test_batch.bin)",
                 "cifar-10-batches-py (test_batch)",
                 "cifar-10-binary.tar.gz (170,052,171 bytes, SHA-256 c4a38c50",
                 "set download to true"):  # fmt: skip
        assert part in said
    (write_binary(tmp_path, CIFAR10) / "data_batch_3.bin").unlink()
    assert "data_batch_3.bin" in refused(CIFAR10, tmp_path, "fit")


def test_the_test_file_alone_is_evaluated(tmp_path: Path) -> None:
    for path in write_binary(tmp_path, CIFAR10).iterdir():
        if path.name != "test_batch.bin":
            path.unlink()
    data = CIFAR10(str(tmp_path), batch_size=30)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch["label"].tolist() == content(CIFAR10)["test"][1].tolist()
    assert list(data.files_sha256()) == ["test_batch.bin"]


def test_other_files_are_told_and_the_published_512_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(base, "rank_zero_info", told.append)
    path = write_python(tmp_path / "python", CIFAR10) / "test_batch"
    write_binary(tmp_path / "binary", CIFAR10)
    for form in ("python", "binary"):
        data = CIFAR10(str(tmp_path / form), validation=10)
        data.setup("fit"), data.setup("test"), data.setup()  # a file is hashed once
        others = [line for line in told if "is not the published file" in line]
        assert len(others) == 6 and "data_batch_1" in others[0] and "test_batch" in others[5]
        told.clear()
    data = CIFAR10(str(tmp_path / "python"), subset="published_512")
    for _ in range(2):
        with pytest.raises(InputError, match=f"subset published_512 are .* {path} is not that one"):
            data.setup("test")
    # One source alone has the hashes of binary files: another file is told, not refused.
    CIFAR10(str(tmp_path / "binary"), subset="published_512").setup("test")
    assert any("test_batch.bin is not the published file" in line for line in told)
    own = {"test_batch": hashlib.md5(path.read_bytes()).hexdigest()}
    version = replace(CIFAR10.python, files=CIFAR10.python.files | {"test": own})
    monkeypatch.setattr(CIFAR10, "python", version)
    told.clear()
    CIFAR10(str(tmp_path / "python"), subset="published_512").setup("test")
    assert told == [f"CIFAR-10 from {tmp_path / 'python'}"]


def test_cut_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = write_binary(tmp_path, CIFAR10) / "test_batch.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert f"{path}: 92,189 bytes, expected 92,190 for 30 images" in refused(CIFAR10, tmp_path)
    path.write_bytes(whole[:-3073])
    assert "expected 92,190" in refused(CIFAR10, tmp_path)
    path.write_bytes(bytes([10]) + whole[1:])
    assert "label 10 at index 0, allowed is 0 to 9" in refused(CIFAR10, tmp_path)


def change(path: Path, **values: Any) -> None:
    data = np.zeros((30, 3072), np.uint8)
    path.write_bytes(python_3({"data": data, "labels": [0] * 30} | values))


def test_python_files_of_another_content_are_refused(tmp_path: Path) -> None:
    path = write_python(tmp_path, CIFAR10) / "test_batch"
    whole = path.read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert str(path) in refused(CIFAR10, tmp_path)
    for wrong, says in (
        ({"data": np.zeros((30, 3073), np.uint8)}, "of shape (30, 3073)"),
        ({"data": np.zeros((30, 3072), np.int64)}, "int64"),
        ({"data": [[0]], "more": bytes(PIXELS)}, "no data and labels"),
        ({"labels": [0] * 29}, "29 labels"),
        ({"labels": [0.5] * 30}, "labels that are no classes"),
        ({"labels": [-1] * 30}, "labels that are no classes"),
        ({"labels": [10] * 30}, "label 10 at index 0"),
    ):
        change(path, **wrong)
        assert says in refused(CIFAR10, tmp_path)
    path.write_bytes(pickle.dumps([bytes(PIXELS)], protocol=2))
    assert "no data and labels" in refused(CIFAR10, tmp_path)


def test_a_small_pickle_is_refused_unread(tmp_path: Path) -> None:
    """Read, it would need memory for the number of values that it claims to hold."""
    path = write_python(tmp_path, CIFAR10) / "test_batch"
    path.write_bytes(b"\x80\x02Nr\x00\x00\x00\x08.")  # None, kept as value 2**27: 1 GB or more
    assert f"{path}: 9 bytes, expected 92,160 or more for 30 images" in refused(CIFAR10, tmp_path)


class Writes:
    """A pickle that writes a file where it is run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_no_pickle_is_run(tmp_path: Path) -> None:
    target = tmp_path / "written"
    whole = {"data": Writes(target), "labels": [0] * 30, "more": bytes(PIXELS)}
    path = tmp_path / "test_batch"
    path.write_bytes(python_3(whole))
    pickle.loads(path.read_bytes())
    assert target.exists(), "the pickle does something where it is run"
    target.unlink()
    with pytest.raises(InputError, match="which is not read"):
        read_python(path, 30, "labels")
    assert not target.exists()
