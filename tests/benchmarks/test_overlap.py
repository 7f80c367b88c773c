"""Overlap of masks and objects: closed forms."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch

from datamodules.cluttered import ClutteredFashionMNIST
from hetpure.weights import load_classifier


def test_measures_of_known_masks(script: Callable[[str], ModuleType]) -> None:
    overlap = script("overlap")
    objects = torch.zeros(4, 1, 4, 4)
    objects[:, :, :2] = 1  # half of the image
    masks = torch.zeros(4, 1, 4, 4)
    masks[0, :, :2] = 1  # the object
    masks[1, :, 2:] = 1  # all but the object
    masks[2] = 1
    found = overlap.measures(masks, objects)  # the last mask is empty
    assert found["overlap"].tolist() == [1, 0, 0.5, 0]
    assert found["of the object"].tolist() == [1, 0, 1, 0]
    assert found["of the image"].tolist() == [0.5, 0.5, 1, 0]


def test_the_oracle_is_that_of_the_images(script: Callable[[str], ModuleType]) -> None:
    """Arguments in their places: it takes the seed, the split and the source of the data."""
    data = ClutteredFashionMNIST(
        source="packaged", test_split="validation", clutter_seed=3, limit=2
    )
    oracle = script("overlap").oracle_of(data)
    assert (oracle.shape, oracle.clutter_seed, oracle.test_split) == ("garment", 3, "validation")
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    covered = oracle(load_classifier("fashion_mnist_wrn"), batch["image"], batch["sample"])
    assert covered.shape == (2, 1, 32, 32) and 0 < covered.mean() < 0.7


def test_means_have_intervals(script: Callable[[str], ModuleType]) -> None:
    overlap = script("overlap")
    values = np.random.default_rng(0).random(200)
    found = overlap.mean(values)
    assert found["low"] < found["mean"] < found["high"] and found["n"] == 200
    assert found["high"] - found["low"] < 0.1
    same = overlap.mean(np.full(5, 0.25))
    assert same["low"] == same["high"] == 0.25
    cells = dict.fromkeys(overlap.MEASURES, found)
    table = overlap.table({"rows": {"attended": {"clean": cells}}})
    assert "| attended | clean |" in table and "n = 200" in table


def test_a_lower_threshold_covers_more(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    overlap = script("overlap")
    monkeypatch.setattr(overlap, "VALIDATION", 6)
    found = overlap.thresholds("cluttered_wrn")
    objects = found.pop(overlap.OBJECT)["clean"]
    assert objects["overlap"]["mean"] == objects["of the object"]["mean"] == 1
    covered = [kinds["clean"]["of the image"]["mean"] for kinds in found.values()]
    assert covered == sorted(covered, reverse=True) and covered[0] > covered[-1] > 0
