"""Cluttered Fashion-MNIST: a pure function of split, id and seed, and where its objects are."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from datamodules.cluttered import (
    SIDE,
    TEXTURES,
    Clutter,
    ClutteredFashionMNIST,
    ObjectMask,
    Part,
    _numbers,
)
from datamodules.fashion_mnist import read_packaged
from hetpure.errors import InputError
from hetpure.weights import ASSETS, load_classifier
from hetpure.weights.folders import trained_on_of
from lightning_modules.callbacks import ExportWeights
from lightning_modules.classifier import ClassifierTraining

GARMENTS = read_packaged("test")
IMAGES = Clutter(GARMENTS.images[:400], GARMENTS.samples[:400], 1, 0)


def test_images_are_what_they_were() -> None:
    """Weights are trained on these very images: other ones need another VERSION."""
    digest = hashlib.sha256(IMAGES[:100].make().numpy().tobytes()).hexdigest()
    assert digest == "fe9f6515356fca35945f11a6a1106508f77b7aa2c3d7db02e396b9f59cc58857"


def test_an_image_is_a_function_of_its_split_id_and_seed() -> None:
    together = IMAGES[:100].make()
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(IMAGES[order].make(), together[order])
    assert all(torch.equal(IMAGES[index], together[index]) for index in (0, 57, 99))
    assert torch.equal(IMAGES[-1], IMAGES[399])
    for other in (
        replace(IMAGES, seed=1),
        replace(IMAGES, split=0),
        replace(IMAGES, samples=IMAGES.samples + 1),
    ):
        assert (other[:100].make() != together).flatten(1).any(1).all()


def test_garments_are_half_to_all_of_their_size_and_anywhere() -> None:
    # Of a garment that fills its frame the object is a square.
    full = Clutter(torch.full((2000, 1, 28, 28), 255, dtype=torch.uint8), torch.arange(2000), 1, 0)
    objects = full.objects()[:, 0]
    rows, columns = objects.any(2), objects.any(1)
    height, width = rows.sum(1), columns.sum(1)
    assert torch.equal(height, width) and torch.equal(height * width, objects.flatten(1).sum(1))
    assert sorted(set(height.tolist())) == list(range(14, 29))
    top, left = rows.long().argmax(1), columns.long().argmax(1)
    small = height == 14
    assert {0, 18} <= set(top[small].tolist()) and {0, 18} <= set(left[small].tolist())
    assert int((top + height).max()) == int((left + width).max()) == SIDE


def test_outside_of_the_object_the_garment_changes_nothing() -> None:
    other = replace(IMAGES, garments=IMAGES.garments.flip(0))
    differs = (IMAGES.make() != other.make()).any(1)
    covers = [clutter._placed(clutter._noise())[1] for clutter in (IMAGES, other)]
    around = sum(covers)[:, 0]  # type: ignore[index]
    assert not (differs & (around == 0)).any() and differs.any()
    assert ((covers[0] > 0.5 + 1e-6) == IMAGES.objects()).all()


def test_every_texture_is_there_and_colours_are_apart() -> None:
    noise = IMAGES._noise()
    kinds = (_numbers(noise, Part.WAVES, 4)[:, 0] * len(TEXTURES)).long().bincount()
    assert len(kinds) == len(TEXTURES) and int(kinds.min()) > 60
    images, objects = IMAGES.make().double() / 255, IMAGES.objects()
    inside = (images * objects).flatten(2).sum(2) / objects.flatten(2).sum(2)
    outside = (images * ~objects).flatten(2).sum(2) / (~objects).flatten(2).sum(2)
    assert float((inside - outside).norm(dim=1).mean()) > 0.3


def test_what_loaders_give() -> None:
    data = ClutteredFashionMNIST(source="packaged", limit=70, batch_size=32)
    data.setup("test")
    loader = data.test_dataloader()
    assert isinstance(loader, DataLoader)
    batches = list(loader)
    images = torch.cat([batch["image"] for batch in batches])
    assert images.shape == (70, 3, 32, 32) and images.dtype == torch.float32
    assert torch.equal((255 * images).round().to(torch.uint8), IMAGES[:70].make())
    labels = torch.cat([batch["label"] for batch in batches])
    assert torch.equal(labels, GARMENTS.labels[:70])
    assert "clutter seed 0" in data.description and data.channels == 3
    item = data._splits["test"][3]
    assert torch.equal(item["image"], images[3])


def test_another_seed_is_another_data_set() -> None:
    prints = []
    for seed in (0, 1):
        data = ClutteredFashionMNIST(clutter_seed=seed, source="packaged")
        data.setup("test")
        prints.append(data._splits["test"].fingerprint)
    assert prints[0] != prints[1]
    with pytest.raises(InputError, match="clutter_seed"):
        ClutteredFashionMNIST(clutter_seed=-1)


def test_the_oracle_goes_by_the_id_alone() -> None:
    mask, network = ObjectMask(source="packaged"), load_classifier("fashion_mnist_wrn")
    chosen = torch.tensor([5, 17, 3])
    samples, pixels = GARMENTS.samples[chosen], torch.rand(3, 3, SIDE, SIDE, dtype=torch.float64)
    objects = IMAGES[chosen].objects()
    given = mask(network, pixels, samples)
    assert given.dtype == torch.float64 and torch.equal(given, objects.double())
    assert torch.equal(mask(network, 1 - pixels, samples, soft=True), given)
    assert mask(network, pixels, samples, (64, 64)).shape == (3, 1, 64, 64)
    assert mask.control
    box = ObjectMask("box", source="packaged")(network, pixels, samples)
    for one, around in zip(given[:, 0], box[:, 0], strict=True):
        rows, columns = one.nonzero().unbind(1)
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        expected = torch.zeros_like(around)
        expected[top : bottom + 1, left : right + 1] = 1
        assert torch.equal(around, expected)
    with pytest.raises(InputError, match="needs the images' sample ids"):
        mask(network, pixels)
    with pytest.raises(InputError, match="knows no sample 99999"):
        mask(network, pixels, torch.tensor([99_999]))


def test_weights_keep_what_they_were_trained_on(tmp_path: Path) -> None:
    data = ClutteredFashionMNIST(clutter_seed=3, source="packaged", batch_size=4)
    training = ClassifierTraining(
        network={"depth": 10, "widen_factor": 1}, mean=[0.5] * 3, std=[0.5] * 3
    )
    Trainer(
        max_steps=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ExportWeights()],
    ).fit(training, datamodule=data)
    folder = tmp_path / "classifier"
    assert trained_on_of(folder) == "Cluttered Fashion-MNIST, clutter seed 3"
    assert trained_on_of(ASSETS / "fashion_mnist_wrn") is None


def test_the_oracle_refuses_images_of_another_set() -> None:
    samples, images = GARMENTS.samples[:8], IMAGES[:8].make() / 255
    ObjectMask(source="packaged").check(images, samples)
    with pytest.raises(InputError, match="about other images than these"):
        ObjectMask(clutter_seed=1, source="packaged").check(images, samples)
    with pytest.raises(InputError, match="about other images|knows no sample"):
        ObjectMask(test_split="validation", source="packaged").check(images, samples)
    with pytest.raises(InputError, match="shape"):
        ObjectMask("outline")  # type: ignore[arg-type]
