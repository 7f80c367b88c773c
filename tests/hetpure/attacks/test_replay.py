"""Saved images come back bit for bit, and what is wrong with them is said in one line."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hetpure.attacks import Addresses, Cost, Replay, Threat
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.saved_images import save_images, saved_images
from tests.hetpure.attacks.defenses import NOISE, linear, target_of

IDS = torch.tensor([31, 7, 100, 5])
CLEAN = (0.2 + 0.6 * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))).float()
ADVERSARIAL = CLEAN + 0.05 * torch.where(CLEAN > 0.5, 1.0, -1.0)


def replayed(attack: Replay, order: list[int], images: Tensor = CLEAN) -> Tensor:
    defense, labels = Defense(linear(torch.ones(2, 64))), torch.zeros(len(order), dtype=torch.int64)
    return attack(target_of(defense, images[order], labels, Addresses(IDS[order], NOISE)))


def npz(folder: Path, images: Any = ADVERSARIAL, samples: Any = IDS) -> str:
    path = folder / "images.npz"
    np.savez(path, images=np.asarray(images), samples=np.asarray(samples))
    return str(path)


def refusal(attack: Replay, order: list[int]) -> str:
    with pytest.raises(InputError) as raised:
        replayed(attack, order)
    message = str(raised.value)
    assert "\n" not in message and attack.path in message
    return message


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
    """Other files beside it are no images of the run."""
    path = save_images(tmp_path, "Hetero + ADDT", "PGD (soft)", 12, ADVERSARIAL, IDS)
    assert path.parent == tmp_path / "blocks"
    assert path.name.startswith("00012-hetero_addt-pgd_soft-") and len(path.stem) == 27 + 8
    assert set(load_file(path)) == {"images", "samples"}
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["__metadata__"] == {"row": "Hetero + ADDT", "attack": "PGD (soft)"}
    save_file({"clean": CLEAN}, tmp_path / "blocks" / "block_00000.safetensors")
    assert torch.equal(saved_images(tmp_path)[0], ADVERSARIAL)


def test_names_are_needed_only_where_there_are_several(tmp_path: Path) -> None:
    for row, attack in (("b", "pgd"), ("a", "pgd"), ("b", "square")):
        save_images(tmp_path, row, attack, 0, ADVERSARIAL, IDS)
    held = "row 'a' under 'pgd', row 'b' under 'pgd', row 'b' under 'square'"
    for names in ((None, "pgd"), ("c", "pgd"), ("b", None), ("b", "PGD")):
        with pytest.raises(InputError, match=f"name the row and the attack of one of .*: {held}"):
            saved_images(tmp_path, *names)
    assert len(saved_images(tmp_path, "a")[0]) == 4


def test_a_file_that_is_broken_is_named(tmp_path: Path) -> None:
    path = save_images(tmp_path, "row", "pgd", 0, ADVERSARIAL, IDS)
    for data in (path.read_bytes()[:-1], b"", b"x" * 100):
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"{path.name} cannot be read.*restore it or delete"):
            saved_images(tmp_path)


@pytest.mark.parametrize("source", ["run", "npz", "npz of bytes"])
def test_images_are_found_by_their_sample_ids(source: str, tmp_path: Path) -> None:
    """In whatever order they are asked for, and from whatever block; one candidate each, at no
    cost."""
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
        images = replayed(attack, order)
        assert torch.equal(images, expected[order][None]) and images.dtype == torch.float32
    assert replayed(attack, [0], CLEAN.double()).dtype == torch.float64
    assert attack.cost(Defense(linear(torch.ones(2, 64)))) == Cost()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_ball_is_held_to(norm: Any, tmp_path: Path) -> None:
    """The first image that leaves it is named; images made without one are asked for none."""
    offset = 0.05 if norm == "linf" else 0.05 * 8
    path = npz(tmp_path)
    replayed(Replay(path, epsilon=offset, norm=norm), [0, 1, 2])
    tight = Replay(path, epsilon=0.98 * offset, norm=norm)
    assert tight.threat == Threat(norm, 0.98 * offset)
    message = refusal(tight, [2, 0])
    assert "sample 100 lies outside the ball" in message and "epsilon and the norm" in message
    free = Replay(path, epsilon=None)
    assert free.threat is None
    replayed(free, [2, 0])


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_no_pixel_is_taken_that_is_none(value: float, tmp_path: Path) -> None:
    """With or without a ball; a sample that is not asked for may be wrong."""
    images = ADVERSARIAL.clone()
    images[1, 0, 4, 2] = value
    what = "has pixels outside [0, 1]" if abs(value) < 2 else "holds NaN or infinite pixels"
    for epsilon in (1.0, None):
        attack = Replay(npz(tmp_path, images), epsilon=epsilon)
        assert f"sample 7 {what}; replay pixels in [0, 1]" in refusal(attack, [0, 1])
        replayed(attack, [0, 2])


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    some = Replay(npz(tmp_path, ADVERSARIAL[:2], IDS[:2]), epsilon=0.06)
    message = refusal(some, [0, 2, 3])
    assert "no image of sample 100 (2 of 3 are missing): evaluate the samples" in message
    defense = Defense(linear(torch.ones(2, 64)))
    some.check(defense, IDS[:2])  # an evaluation asks before it begins
    with pytest.raises(InputError, match="1 of 3 are missing"):
        some.check(defense, IDS[:3])
    twice = Replay(npz(tmp_path, ADVERSARIAL, [31, 7, 31, 5]), epsilon=0.06)
    assert "holds a sample twice" in refusal(twice, [0])
    other = Replay(npz(tmp_path, ADVERSARIAL[:, :, :6]), epsilon=0.06)
    assert "holds images (1, 6, 8), the data (1, 8, 8)" in refusal(other, [0])
    for path in ("nowhere.npz", "nowhere"):
        assert "give " in refusal(Replay(str(tmp_path / path)), [0])
    with pytest.raises(InputError, match="is no run: an .npz file has no row"):
        Replay("images.npz", row="a")


class Trap:
    """Unpickled, it would make a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": ADVERSARIAL}, "samples is not a file in the archive"),
        ({"images": ADVERSARIAL[0], "samples": IDS}, "images are (1, 8, 8) float32"),
        ({"images": ADVERSARIAL.double(), "samples": IDS}, "images are (4, 1, 8, 8) float64"),
        ({"images": ADVERSARIAL, "samples": IDS.double()}, "samples are (4,) float64"),
        ({"images": ADVERSARIAL, "samples": IDS[:3]}, "samples are (3,) int64"),
        ({"images": ADVERSARIAL, "samples": [Trap()] * 4}, "holds objects"),
        (b"", "No data left"),
        (b"no archive", "is no .npz file"),
        (700, "not a zip file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_such_npz_file(
    arrays: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays of another kind, other files, half a file: nothing of it is run."""
    monkeypatch.chdir(tmp_path)
    path = Path(npz(tmp_path))
    if isinstance(arrays, dict):
        np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    else:
        path.write_bytes(path.read_bytes()[:arrays] if isinstance(arrays, int) else arrays)
    message = refusal(Replay(str(path)), [0])
    assert "cannot be read" in message and reason in message and "give an .npz file" in message
    assert not (tmp_path / "trapped").exists()
