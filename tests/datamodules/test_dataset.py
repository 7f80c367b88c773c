"""The data set's checks, and the order of an epoch."""

import hashlib
from typing import Any

import pytest
import torch

from datamodules.dataset import (
    EpochSampler,
    ImageDataset,
    check_ids,
    check_images,
    check_labels,
    epoch_order,
)
from hetpure.errors import InputError


def test_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {
        (seed, epoch): epoch_order(100, seed, epoch) for seed in range(4) for epoch in range(4)
    }
    assert len({tuple(order.tolist()) for order in orders.values()}) == 16
    for (seed, epoch), order in orders.items():
        assert order.sort().values.tolist() == list(range(100))
        torch.manual_seed(seed + epoch)
        assert torch.equal(order, epoch_order(100, seed, epoch))


def test_ranks_share_an_epoch_without_overlap() -> None:
    ids = torch.arange(101)
    dataset = ImageDataset(torch.zeros(101, 1, 2, 2), ids, ids)
    ranks = [EpochSampler(dataset, seed=1, replicas=4, rank=rank) for rank in range(4)]
    for sampler in ranks:
        sampler.set_epoch(2)
    shares = [list(sampler) for sampler in ranks]
    assert [len(share) for share in shares] == [len(sampler) for sampler in ranks] == [25] * 4
    together = [index for step in zip(*shares, strict=True) for index in step]
    assert together == epoch_order(101, 1, 2)[:100].tolist()


@pytest.mark.parametrize("value", [float("nan"), -0.01, 1.01, 255.0, float("inf")])
def test_bad_pixel_is_refused_with_the_id_of_its_sample(value: float) -> None:
    images = torch.rand(4, 3, 5, 5)
    images[0].fill_(0), images[1].fill_(1)  # the bounds themselves are allowed
    samples, labels = torch.tensor([7, 11, 42, 8]), torch.zeros(4, dtype=torch.int64)
    assert len(ImageDataset(images, labels, samples)) == 4
    images[2, 1, 3, 3] = value
    with pytest.raises(InputError, match=rf"mine: sample 42 has the pixel value {value:g}"):
        ImageDataset(images, labels, samples, where="mine")
    with pytest.raises(InputError, match="mine: sample 2 "):
        check_images(images, "mine")


def test_dataset_refuses_other_types_and_counts() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match="torch.int64"):
        ImageDataset(torch.zeros(2, 1, 4, 4, dtype=torch.int64), labels, labels)
    with pytest.raises(InputError, match="2 images, 2 labels and 1 ids"):
        ImageDataset(torch.zeros(2, 1, 4, 4), labels, labels[:1])
    with pytest.raises(InputError, match=r"shape \(2, 4, 4\)"):
        ImageDataset(torch.zeros(2, 4, 4), labels, labels)


def test_bytes_and_floats_give_the_same_item() -> None:
    images = torch.randint(0, 256, (3, 2, 4, 4), dtype=torch.uint8)
    labels, samples = torch.tensor([4, 5, 6], dtype=torch.uint8), torch.tensor([9, 7, 8])
    for given in (images, images.float() / 255):
        item = ImageDataset(given, labels, samples)[1]
        assert torch.equal(item["image"], images[1].float() / 255)
        assert (int(item["label"]), int(item["sample"])) == (5, 7)
        assert item["label"].dtype == item["sample"].dtype == torch.int64
        taken = ImageDataset(given, labels, samples).take(torch.tensor([2, 1]))
        assert taken.samples.tolist() == [8, 7] and taken.labels.tolist() == [6, 5]


@pytest.mark.parametrize(
    ("labels", "ids", "says"),
    [
        ([0.0, 1.0], [0, 1], "mine: torch.float32 labels"),
        ([0, -1], [0, 1], "mine: label -1 at index 1, allowed is 0 or more"),
        ([True, False], [0, 1], "mine: torch.bool labels"),
        ([0, 1], [0.0, 1.0], "mine: torch.float32 ids"),
        ([0, 1], [-1, 1], "mine: ids from -1 to 1, allowed are 0 to 4294967295"),
        ([0, 1], [0, 2**32], "mine: ids from 0 to 4294967296"),
        ([0, 1], [5, 5], "mine: id 5 is there more than once"),
    ],
)
def test_labels_and_ids_are_integers_in_their_ranges(
    labels: list[Any], ids: list[Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        ImageDataset(torch.zeros(2, 1, 4, 4), torch.tensor(labels), torch.tensor(ids), where="mine")
    last = torch.tensor([2**32 - 1, 0])
    assert ImageDataset(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), last)[0]["sample"] == last[0]


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_integers_of_every_type_are_labels_and_ids(kind: torch.dtype) -> None:
    images, values = torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]).to(kind)
    dataset = ImageDataset(images, values, values)
    assert dataset.labels.tolist() == dataset.samples.tolist() == [0, 1]
    twice = torch.tensor([1, 1]).to(kind)
    with pytest.raises(InputError, match="id 1 is there more than once"):
        ImageDataset(images, values, twice)
    with pytest.raises(InputError, match=r"label 1 of sample 1, allowed is 0 to 0"):
        check_labels(values, "mine", 1, samples=values)
    large = torch.tensor([1, -1]).view(torch.uint64)  # 2**64 - 1
    with pytest.raises(InputError, match="mine: ids from -1 to 1"):
        check_ids(large, "mine")


def test_the_fingerprint_is_of_pixels_labels_and_ids() -> None:
    """In pieces as in one: checkpoints hold it."""
    images = torch.randint(0, 256, (5_000, 1, 2, 2), dtype=torch.uint8)
    ids = torch.arange(5_000)
    whole = images.numpy().tobytes() + (ids % 3).numpy().tobytes() + ids.numpy().tobytes()
    dataset = ImageDataset(images, ids % 3, ids)
    assert dataset.fingerprint == hashlib.sha256(whole).hexdigest()
    images[4_999, 0, 1, 1] ^= 1
    assert ImageDataset(images, ids % 3, ids).fingerprint != dataset.fingerprint
