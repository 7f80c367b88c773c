"""Fashion-MNIST: which files are used, which samples are in which split, in which order."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from datamodules import build_subset, fashion_mnist
from datamodules.dataset import epoch_order
from datamodules.fashion_mnist import (
    DEBIAN,
    FashionMNIST,
    Split,
    find_full,
    read_packaged,
    read_pair,
)
from datamodules.idx import read_idx
from hetpure.errors import InputError


def write_plain(path: Path, tensor: Tensor) -> None:
    sizes = struct.pack(f">2x2B{tensor.ndim}I", 8, tensor.ndim, *tensor.shape)
    path.write_bytes(sizes + tensor.to(torch.uint8).numpy().tobytes())


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in of the full set: black images of class 0, but for the packaged ones."""
    folder = tmp_path_factory.mktemp("full")
    layout: tuple[tuple[str, int, tuple[Split, ...]], ...] = (
        ("train", 60_000, ("train", "validation")),
        ("t10k", 10_000, ("test",)),
    )
    for prefix, count, splits in layout:
        images = torch.zeros(count, 28, 28, dtype=torch.uint8)
        labels = torch.zeros(count, dtype=torch.uint8)
        for split in splits:
            known = read_packaged(split)
            images[known.samples] = known.images[:, 0]
            labels[known.samples] = known.labels.to(torch.uint8)
        write_plain(folder / f"{prefix}-images-idx3-ubyte", images)
        write_plain(folder / f"{prefix}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture(params=["packaged", "full"])
def data(
    request: pytest.FixtureRequest, full: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., FashionMNIST]:
    """Makes the data module over the packaged subset or over the stand-in of the full set."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN", full)

    def make(**options: Any) -> FashionMNIST:
        options["source"] = "packaged" if request.param == "packaged" else "auto"
        module = FashionMNIST(**options)
        module.setup()
        return module

    return make


def distinct(images: Tensor) -> int:
    return len({image.numpy().tobytes() for image in images})


def ids(loader: Any) -> list[int]:
    return [int(sample) for batch in loader for sample in batch["sample"]]


@pytest.mark.parametrize(("split", "each"), [("test", 100), ("validation", 50), ("train", 500)])
def test_packaged_split_is_balanced_and_in_ascending_order(split: Any, each: int) -> None:
    dataset = read_packaged(split)
    assert dataset.labels.bincount().tolist() == [each] * 10
    assert (dataset.samples.diff() > 0).all()
    assert dataset.images.shape == (10 * each, 1, 28, 28)
    assert set(dataset.labels[:64].tolist()) == set(range(10))  # any small limit sees every class
    assert distinct(dataset.images) > 9.9 * each  # not one image repeated


def test_no_training_image_is_in_validation_even_under_another_id() -> None:
    train, validation = read_packaged("train"), read_packaged("validation")
    assert not torch.isin(train.samples, validation.samples).any()
    both = torch.cat([train.images, validation.images])
    assert distinct(both) == distinct(train.images) + 500


@pytest.mark.slow
def test_packaged_files_are_the_full_set_at_their_ids_and_are_made_again() -> None:
    """Nothing else proves that the packaged images are those of the full set at their ids."""
    assert find_full(DEBIAN), f"install Debian's package dataset-fashion-mnist: {DEBIAN} lacks it"
    again = build_subset.subset(DEBIAN)
    for split, prefix in (("train", "train"), ("validation", "train"), ("test", "t10k")):
        packaged = read_packaged(split)  # type: ignore[arg-type]
        images = read_idx(DEBIAN / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(DEBIAN / f"{prefix}-labels-idx1-ubyte.gz")
        assert torch.equal(packaged.images[:, 0], images[packaged.samples])
        assert torch.equal(packaged.labels, labels[packaged.samples].long())
        assert torch.equal(packaged.samples, again[split][2].long())


def test_building_without_the_data_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["build_subset", "--data-dir", str(tmp_path)])
    assert build_subset.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_splits_hold_the_right_samples(data: Callable[..., FashionMNIST]) -> None:
    module = data(batch_size=500)
    held_out = read_packaged("validation").samples.tolist()
    assert ids(module.val_dataloader()) == held_out
    packaged = module.origin.startswith("packaged")
    sampler = module.train_dataloader().sampler
    train = sampler.dataset.samples.tolist()  # type: ignore[attr-defined]
    expected = read_packaged("train").samples.tolist() if packaged else range(60_000)
    assert train == sorted(set(expected) - set(held_out))
    assert len(train) == (5_000 if packaged else 59_500)
    test = ids(module.test_dataloader())
    assert test == (read_packaged("test").samples.tolist() if packaged else list(range(10_000)))


def test_batches_have_the_documented_types_and_pixels(data: Callable[..., FashionMNIST]) -> None:
    known = read_packaged("test")
    where = {int(sample): position for position, sample in enumerate(known.samples)}
    seen = 0
    for batch in data(limit=300).test_dataloader():
        assert set(batch) == {"image", "label", "sample"}
        assert batch["image"].dtype == torch.float32
        assert batch["label"].dtype == batch["sample"].dtype == torch.int64
        assert batch["image"].shape == (len(batch["label"]), 1, 28, 28)
        for image, label, sample in zip(*batch.values(), strict=True):
            if int(sample) in where:
                position = where[int(sample)]
                assert torch.equal(image * 255, known.images[position].float())
                assert label == known.labels[position]
                seen += 1
    assert seen > 10


def test_evaluation_order_is_fixed_and_loses_no_sample(data: Callable[..., FashionMNIST]) -> None:
    whole = ids(data(batch_size=64).test_dataloader())
    limited = data(batch_size=64, limit=70, seed=5)
    assert ids(limited.test_dataloader()) == ids(limited.test_dataloader()) == whole[:70]
    assert [len(batch["label"]) for batch in limited.test_dataloader()] == [64, 6]
    later = data(batch_size=64, limit=70, skip=30)
    assert ids(later.test_dataloader()) == whole[30:100]
    assert ids(data(batch_size=64, skip=990).test_dataloader()) == whole[990:]
    assert "after the first 30" in later.description
    validation = data(batch_size=64, test_split="validation", limit=10)
    assert ids(validation.test_dataloader()) == read_packaged("validation").samples[:10].tolist()
    assert len(ids(validation.val_dataloader())) == 500


class Recorder(L.LightningModule):
    """Keeps the ids that training saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        self.seen.append(batch["sample"].tolist())
        return self.weight * batch["image"].mean()

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters())


def test_lightning_trains_in_the_order_of_each_epoch() -> None:
    recorder = Recorder()
    trainer = L.Trainer(accelerator="cpu", max_epochs=2, limit_train_batches=2, barebones=True)
    trainer.fit(recorder, FashionMNIST(source="packaged", batch_size=8, seed=3))
    samples = read_packaged("train").samples
    expected = [samples[epoch_order(5_000, 3, epoch)[:16]].tolist() for epoch in range(2)]
    assert [recorder.seen[0] + recorder.seen[1], recorder.seen[2] + recorder.seen[3]] == expected


def test_lookup_order(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "absent")
    assert FashionMNIST().origin == "packaged subset (1,000 test, 500 validation, 5,000 train)"
    assert FashionMNIST(data_dir=str(full)).origin == str(full)
    partial = tmp_path / "partial"
    partial.mkdir()
    (partial / "t10k-images-idx3-ubyte.gz").touch()
    monkeypatch.setattr(fashion_mnist, "DEBIAN", partial)
    assert FashionMNIST().origin.startswith("packaged")
    monkeypatch.setattr(fashion_mnist, "DEBIAN", full)
    assert FashionMNIST().origin == str(full)
    assert FashionMNIST(source="packaged").origin.startswith("packaged")
    other = tmp_path / "other"
    other.symlink_to(full)
    assert FashionMNIST(data_dir=str(other)).origin == str(other)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"limit": 0}, "FashionMNIST.limit must be >= 1, got 0"),
        ({"data_dir": "x", "source": "packaged"}, "FashionMNIST.source packaged"),
        ({"data_dir": "no/such"}, "no/such: not all of train-images-idx3-ubyte"),
    ],
)
def test_unusable_options_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        FashionMNIST(**options)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_more_than_there_is_is_refused() -> None:
    module = FashionMNIST(source="packaged", limit=1_001, batch_size=5_001)
    module.setup()
    with pytest.raises(InputError, match="limit is 1001 after .* allowed are at most 1000"):
        module.test_dataloader()
    with pytest.raises(InputError, match="batch_size is 5001, allowed is at most 5000"):
        module.train_dataloader()


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        ((3, 28, 28), [0, 1], r"labels: .*expected torch.uint8 of shape \(3,\)"),
        ((3, 28, 28), [0, 10, 1], "labels: label 10 at index 1"),
        ((3, 28, 27), [0, 1, 2], r"images: .*\(3, 28, 27\), expected"),
        ((3, 784), [0, 1, 2], r"images: .*\(3, 784\), expected"),
    ],
)
def test_pair_that_does_not_fit_names_the_file(
    tmp_path: Path, images: tuple[int, ...], labels: list[int], says: str
) -> None:
    write_plain(tmp_path / "images", torch.zeros(images))
    write_plain(tmp_path / "labels", torch.tensor(labels))
    with pytest.raises(InputError, match=says):
        read_pair(tmp_path / "images", tmp_path / "labels")


@pytest.mark.parametrize("count", [10, 10_000], ids=["too few", "not Fashion-MNIST"])
def test_another_set_under_the_same_names_is_refused(
    tmp_path: Path, full: Path, count: int
) -> None:
    for path in full.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name, tensor in (
        ("t10k-images-idx3-ubyte", torch.zeros(count, 28, 28)),
        ("t10k-labels-idx1-ubyte", torch.zeros(count)),
    ):
        (tmp_path / name).unlink()
        write_plain(tmp_path / name, tensor)
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte: (10 images|not Fashion-MNIST)"):
        FashionMNIST(data_dir=str(tmp_path)).setup("test")
