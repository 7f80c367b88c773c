"""Which images are evaluated, and that the choice is the same everywhere."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from datamodules.base import ImageDataModule
from datamodules.dataset import ImageDataset
from datamodules.npz import NPZ
from datamodules.subsets import published_512, read_ids
from hetpure.errors import FieldError, InputError


class Squares(ImageDataModule):
    """Test and training images of one pixel; classes come in turn, class 0 more often."""

    title, origin = "squares", "memory"
    class_names = ("a", "b", "c")
    channels = image_size = 1
    has_published_512 = True
    counts = {"train": 40, "test": 600}  # noqa: RUF012

    def _read(self, split: Literal["train", "test"]) -> ImageDataset:
        count = self.counts[split]
        labels = torch.arange(count) % 4 % 3
        return ImageDataset(torch.zeros(count, 1, 1, 1), labels, torch.arange(count))

    def _files(self, split: str) -> list[Path]:
        return []


def evaluated(**options: Any) -> list[int]:
    data = Squares(batch_size=50, **options)
    data.setup("test")
    found = [int(sample) for batch in data.test_dataloader() for sample in batch["sample"]]
    assert found == sorted(found)
    return found


@pytest.mark.parametrize(
    ("count", "first_and_last", "digest"),
    [
        (
            10_000,
            (9394, 898, 3566, 4539),
            "674aa58e0e1c7d868adf366c54666d93f3276d27a02d7aec9ebf1c64aa8a0066",
        ),
        (
            26_032,
            (19703, 18995, 5816, 4914),
            "16954157b833a4998dd42c8c10754b1c85907d1e18e4627e8e264bb1acc6ff4a",
        ),
        (
            50_000,
            (11841, 19602, 25406, 47653),
            "8d90088b121d59f9d7f1bd8853816ba742cc920aadd8313886ac58a605a6b978",
        ),
    ],
    ids=["CIFAR-10 and CIFAR-100", "SVHN", "ImageNet"],
)
def test_published_512(count: int, first_and_last: tuple[int, ...], digest: str) -> None:
    """The lists that the published code reports on, by ends as drawn and by a hash of all."""
    indices = published_512(count)
    assert set(first_and_last) <= set(indices.tolist())
    assert len(indices) == 512 and (indices.diff() > 0).all()
    assert hashlib.sha256(",".join(map(str, indices.tolist())).encode()).hexdigest() == digest


def test_titles_say_what_limits_the_images() -> None:
    assert Squares(limit=32).description == "squares test images (limit 32)"
    said = Squares(subset="balanced", limit=20).description
    assert said == "squares test images (as many of each class, limit 20)"


def test_the_512_are_evaluated_by_ascending_ids_and_named() -> None:
    expected = published_512(600).tolist()
    assert evaluated(subset="published_512") == expected
    assert evaluated(subset="published_512", skip=10, limit=20) == expected[10:30]
    said = Squares(subset="published_512", skip=10).description
    assert said == "squares test images (the 512 of DiffPure and HetPure, after the first 10)"
    with pytest.raises(InputError, match="is of CIFAR, SVHN and ImageNet"):
        NPZ(3, "x.npz", subset="published_512")
    with pytest.raises(InputError, match="has none of subset published_512"):
        Squares(subset="published_512", test_split="validation")
    with pytest.raises(InputError, match="needs 512 images, the test split has 511"):
        published_512(511)


def test_balanced_has_as_many_of_each_class() -> None:
    whole = evaluated(subset="balanced")
    labels = torch.tensor(whole) % 4 % 3
    assert labels.bincount().tolist() == [150] * 3
    some = evaluated(subset="balanced", limit=30)
    assert (torch.tensor(some) % 4 % 3).bincount().tolist() == [10] * 3
    assert set(some) < set(evaluated(subset="balanced", limit=60)) < set(whole)
    assert some == evaluated(subset="balanced", limit=30, seed=7)
    assert some != whole[:30]
    for limit in (31, 453):
        with pytest.raises(InputError, match=f"limit is {limit}.* 3 classes up to 450"):
            evaluated(subset="balanced", limit=limit)
    with pytest.raises(InputError, match="skip contradicts subset balanced"):
        Squares(subset="balanced", skip=1)


def test_ids_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("17\n3\n 599 \n\n \n")
    assert evaluated(ids=str(path)) == [3, 17, 599]
    assert evaluated(ids=str(path), skip=1, limit=1) == [17]
    data = Squares(ids=str(path))
    assert data.description == "squares test images (the ids of ids.txt)"
    assert data.files_sha256() == {"ids: ids.txt": hashlib.sha256(path.read_bytes()).hexdigest()}
    data._files = lambda split: [path, tmp_path / "test.bin"]  # type: ignore[method-assign]
    (tmp_path / "test.bin").touch()
    assert list(data.files_sha256()) == ["ids.txt", "test.bin", "ids: ids.txt"]
    with pytest.raises(InputError, match="subset balanced contradicts ids"):
        Squares(ids=str(path), subset="balanced")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "0 ids, expected one or more"),
        ("3\n4\n3\n", "3 ids, expected one or more, none twice"),
        ("3\n-4\n", "line 2 is '-4', expected one id"),
        ("3\n\n4\n", "line 2 is ''"),
        ("3 4\n", "line 1 is '3 4'"),
        ("3.0\n", "line 1 is '3.0'"),
        ("600\n", "id 600 is none of the test images"),
        (f"{10**30}\n", "is none of the test images"),
    ],
)
def test_unusable_ids_are_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        evaluated(ids=str(path))
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    for name in ("x", "missing"):
        with pytest.raises(InputError, match="cannot be read as text"):
            read_ids(tmp_path / name)


def test_validation_images_are_held_out_for_every_seed() -> None:
    held_out, trained = set(), set()
    for seed in range(3):
        data = Squares(batch_size=2, validation=9, seed=seed)
        data.setup("fit")
        own = tuple(int(sample) for batch in data.val_dataloader() for sample in batch["sample"])
        held_out.add(own)
        for epoch in range(3):
            loader = data.train_dataloader()
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            trained |= {int(sample) for batch in loader for sample in batch["sample"]}
    (only,) = held_out
    assert (torch.tensor(only) % 4 % 3).bincount().tolist() == [3] * 3
    assert trained == set(range(40)) - set(only)
    assert evaluated(test_split="validation", validation=9) == list(only)
    # Fixed: the images stay the same from one release to the next.
    assert only == (8, 9, 10, 19, 25, 33, 34, 36, 38)


def test_a_validation_split_that_cannot_be_is_refused() -> None:
    for validation in (1_000, 10, 30):
        with pytest.raises(InputError, match=r"multiples of the 3 classes up to 27"):
            Squares(validation=validation).setup("fit")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "must be >= 1, got 0"),
        ("validation", 0, "must be >= 1, got 0"),
        ("limit", 0, "must be >= 1, got 0"),
        ("skip", -1, "must be >= 0, got -1"),
        ("num_workers", -1, "must be >= 0, got -1"),
        ("test_split", "train", "is 'train', allowed are test, validation"),
        ("subset", "first", "is 'first', allowed are all, published_512, balanced"),
    ],
)
def test_a_setting_out_of_its_range_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(FieldError, match=f"^Squares.{field} {message}$"):
        Squares(**{field: value})


def test_labels_outside_the_classes_are_refused_at_the_door() -> None:
    data = Squares()
    data.class_names = ("a", "b")
    with pytest.raises(InputError, match="memory: label 2 at index 2, allowed is 0 to 1"):
        data.setup("test")


def test_more_images_than_there_are_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"at most 600 together.*; null takes all"):
        evaluated(limit=601)
