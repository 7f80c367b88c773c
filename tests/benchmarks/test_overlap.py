"""Overlap of masks and objects: closed forms."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch


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
