"""Saved images come back bit for bit, and what is wrong with them is said in one line."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hetpure.attacks.attack import Addresses, Cost, Threat
from hetpure.attacks.replay import Replay
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.saved_images import save_images, saved_images
from tests.hetpure.attacks.defenses import (
    NOISE,
    target_of,
)

IDS = torch.tensor([31, 7, 100, 5])
CLEAN = (0.2 + 0.6 * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))).float()
ADVERSARIAL = CLEAN + 0.05 * torch.where(CLEAN > 0.5, 1.0, -1.0)


@pytest.fixture
def defense(linear_classifier: Classifier) -> Defense:
    return Defense(linear_classifier)


def replayed(attack: Replay, defense: Defense, order: list[int], images: Tensor = CLEAN) -> Tensor:
    labels = torch.zeros(len(order), dtype=torch.int64)
    return attack(target_of(defense, images[order], labels, Addresses(IDS[order], NOISE)))


def npz(folder: Path, images: Any = ADVERSARIAL, samples: Any = IDS, **more: Any) -> str:
    path = folder / "images.npz"
    np.savez(path, images=np.asarray(images), samples=np.asarray(samples), **more)
    return str(path)


def refusal(attack: Replay, defense: Defense, order: list[int], images: Tensor = CLEAN) -> str:
    with pytest.raises(InputError) as raised:
        replayed(attack, defense, order, images)
    said = str(raised.value)
    assert "\n" not in said and attack.path in said
    return said


def test_a_run_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """In the order of the blocks, under the exact names, float32 and int64 whatever came in."""
    odd = torch.tensor([0.0, 1.0, 0.1, 1 / 3, 1e-30, 0.99999994]).reshape(2, 1, 1, 3)
    for block, ids in ((1, [9, 2]), (0, [4, 3])):
        ids = torch.tensor(ids, dtype=torch.int32)
        save_images(tmp_path, "a row", "pgd_linf, soft mask", block, odd + block / 64, ids)
        save_images(tmp_path, "a row", "pgd_linf", block, (odd / 2).double(), ids)
    images, samples = saved_images(tmp_path, "a row", "pgd_linf, soft mask")
    assert torch.equal(images, torch.cat([odd, odd + 1 / 64])) and images.dtype == torch.float32
    assert samples.tolist() == [4, 3, 9, 2] and samples.dtype == torch.int64
    assert torch.equal(saved_images(tmp_path, None, "pgd_linf")[0], torch.cat([odd, odd]) / 2)


def test_the_file_is_as_promised(tmp_path: Path) -> None:
    path = save_images(tmp_path, "Hetero + ADDT", "PGD (soft)", 12, ADVERSARIAL, IDS)
    assert path.parent == tmp_path / "blocks"
    assert path.name.startswith("00012-hetero_addt-pgd_soft-") and len(path.stem) == 27 + 8
    assert set(load_file(path)) == {"images", "samples"}
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["__metadata__"] == {"row": "Hetero + ADDT", "attack": "PGD (soft)"}


def test_other_files_of_a_run_are_no_images(tmp_path: Path) -> None:
    save_images(tmp_path, "row", "pgd", 0, ADVERSARIAL, IDS)
    save_file({"clean": CLEAN}, tmp_path / "blocks" / "block_00000.safetensors")
    assert torch.equal(saved_images(tmp_path)[0], ADVERSARIAL)


def test_names_are_needed_only_where_there_are_several(tmp_path: Path) -> None:
    for row, attack in (("b", "pgd"), ("a", "pgd"), ("b", "square")):
        save_images(tmp_path, row, attack, 0, ADVERSARIAL, IDS)
    for names, said in (
        ((None, "pgd"), "has several rows: name one of 'a', 'b'"),
        (("c", "pgd"), "has no row 'c': name one of 'a', 'b'"),
        (("b", None), "has several attacks on row 'b': name one of 'pgd', 'square'"),
        (("b", "PGD"), "has no attack 'PGD' on row 'b': name one of 'pgd', 'square'"),
    ):
        with pytest.raises(InputError, match=said):
            saved_images(tmp_path, *names)
    assert len(saved_images(tmp_path, "a")[0]) == 4


def test_a_file_that_is_broken_is_named(tmp_path: Path) -> None:
    path = save_images(tmp_path, "row", "pgd", 0, ADVERSARIAL, IDS)
    for data in (path.read_bytes()[:-1], b"", b"x" * 100):
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"{path.name} cannot be read.*restore it or delete"):
            saved_images(tmp_path)


@pytest.mark.parametrize("source", ["run", "npz", "npz of bytes"])
def test_images_are_found_by_their_sample_ids(
    source: str, tmp_path: Path, defense: Defense
) -> None:
    """In whatever order they are asked for, and from whatever block; one candidate each."""
    expected = ADVERSARIAL
    if source == "run":
        save_images(tmp_path, "row", "pgd", 0, ADVERSARIAL[[3]], IDS[[3]])
        save_images(tmp_path, "row", "pgd", 1, ADVERSARIAL[[1, 2, 0]], IDS[[1, 2, 0]])
        attack = Replay(str(tmp_path), "row", "pgd", epsilon=0.06)
    elif source == "npz":
        attack = Replay(npz(tmp_path, samples=IDS.int()), epsilon=0.06)
    else:
        quantised = (255 * ADVERSARIAL).round().byte()
        expected = quantised.float() / 255
        attack = Replay(npz(tmp_path, quantised), epsilon=0.06)
    for order in ([0, 1, 2, 3], [2, 0], [1]):
        found = replayed(attack, defense, order)
        assert torch.equal(found, expected[order][None]) and found.dtype == torch.float32
    assert replayed(attack, defense, [0], CLEAN.double()).dtype == torch.float64


def test_it_asks_nothing_of_the_defence(tmp_path: Path, defense: Defense) -> None:
    attack = Replay(npz(tmp_path), epsilon=0.06)
    defense.forward = None  # type: ignore[assignment]
    assert len(replayed(attack, defense, [0, 1])) == 1 and attack.cost(defense) == Cost()
    assert attack.threat == Threat("linf", 0.06)
    assert attack.describe().startswith("Linf 0.06") and attack.path in attack.describe()
    free = replace(attack, epsilon=None)
    assert free.threat is None and free.describe().startswith("no ball")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_ball_is_held_to(norm: Any, tmp_path: Path, defense: Defense) -> None:
    """The first image that leaves it is named; images made without one are asked for none."""
    offset = 0.05 if norm == "linf" else 0.05 * 8
    path = npz(tmp_path)
    replayed(Replay(path, epsilon=offset, norm=norm), defense, [0, 1, 2])
    tight = Replay(path, epsilon=0.98 * offset, norm=norm)
    said = refusal(tight, defense, [2, 0])
    assert "sample 100 lies outside the ball" in said and "epsilon and the norm" in said
    replayed(Replay(path, epsilon=None), defense, [2, 0])


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_no_pixel_is_taken_that_is_none(value: float, tmp_path: Path, defense: Defense) -> None:
    """With or without a ball; a sample that is not asked for may be wrong."""
    images = ADVERSARIAL.clone()
    images[1, 0, 4, 2] = value
    what = "has pixels outside [0, 1]" if abs(value) < 2 else "holds NaN or infinite pixels"
    for epsilon in (1.0, None):
        attack = Replay(npz(tmp_path, images), epsilon=epsilon)
        assert f"sample 7 {what}; replay pixels in [0, 1]" in refusal(attack, defense, [0, 1])
        replayed(attack, defense, [0, 2])


def test_what_is_not_there_is_named(tmp_path: Path, defense: Defense) -> None:
    some = Replay(npz(tmp_path, ADVERSARIAL[:2], IDS[:2]), epsilon=0.06)
    said = refusal(some, defense, [0, 2, 3])
    assert "no image of sample 100 (2 of 3 are missing): evaluate the samples" in said
    twice = Replay(npz(tmp_path, ADVERSARIAL, [31, 7, 31, 5]), epsilon=0.06)
    assert "holds sample 31 twice" in refusal(twice, defense, [0])
    other = Replay(npz(tmp_path, ADVERSARIAL[:, :, :6]), epsilon=0.06)
    assert "holds images (1, 6, 8), the data (1, 8, 8)" in refusal(other, defense, [0])
    for path in ("nowhere.npz", "nowhere"):
        assert "give " in refusal(Replay(str(tmp_path / path)), defense, [0])
    with pytest.raises(InputError, match="is no run: an .npz file has no row"):
        Replay("images.npz", row="a")


class Trap:
    """Unpickled, it would make a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"samples": IDS}, "images is not a file in the archive; wanted are images"),
        ({"images": ADVERSARIAL}, "samples is not a file in the archive; wanted are images"),
        ({"images": ADVERSARIAL[0], "samples": IDS}, "images (1, 8, 8) float32: wanted"),
        ({"images": ADVERSARIAL.double(), "samples": IDS}, "images (4, 1, 8, 8) float64: wanted"),
        ({"images": ADVERSARIAL, "samples": IDS.double()}, "samples (4,) float64: wanted"),
        ({"images": ADVERSARIAL, "samples": IDS[:3]}, "samples (3,) int64: wanted"),
        ({"images": ADVERSARIAL, "samples": IDS[:, None]}, "samples (4, 1) int64: wanted"),
        ({"images": ADVERSARIAL, "samples": [Trap()] * 4}, "cannot be read (Object arrays"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_arrays_that_are_not_the_format(
    arrays: dict[str, Any],
    said: str,
    tmp_path: Path,
    defense: Defense,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing of the file is run."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "images.npz"
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    assert said in refusal(Replay(str(path)), defense, [0])
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("data", [b"", b"no archive", None], ids=["empty", "text", "torn"])
def test_an_npz_that_cannot_be_read(data: bytes | None, tmp_path: Path, defense: Defense) -> None:
    path = Path(npz(tmp_path))
    path.write_bytes(path.read_bytes()[:700] if data is None else data)
    assert "cannot be read" in refusal(Replay(str(path)), defense, [0])
