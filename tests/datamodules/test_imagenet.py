"""ImageNet's two layouts: torchvision's order in both, and what is refused."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from datamodules import imagenet
from datamodules.imagenet import DEVKIT, META, TRUTH, ImageNet
from hetpure.errors import InputError

# By ILSVRC2012_ID, which does not follow the order of WordNet ids.
WNIDS = ["n02119789", "n01440764", "n09999999", "n02100735"]
TRUTHS = [3, 1, 2, 4, 2, 1, 3, 4]  # of files 1 to 8
CLASSES = ("n01440764", "n02100735", "n02119789", "n09999999")
ORDER = [3, 5, 4, 8, 2, 6, 1, 7]  # files by class, then by name
LABELS = [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "CLASSES", 4)
    monkeypatch.setattr(imagenet, "COUNTS", {"test": 8, "train": 12})


few = pytest.mark.usefixtures("_few")


def name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def picture(number: int) -> Image.Image:
    """Grey of that number, wider than high."""
    return Image.new("RGB", (300, 260), (number, number, number))


def synsets(wnids: list[str], inner: int = 2) -> Any:
    """As in the devkit: leaves first, then inner nodes, with the fields that it has."""
    every = [*wnids, *(f"n{k:08d}" for k in range(inner))]
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [
        (float(k + 1), wnid, "a fish, a bird", float(3 * (k >= len(wnids))))
        for k, wnid in enumerate(every)
    ]
    return np.array(rows, fields).reshape(-1, 1)


def write_devkit(root: Path, wnids: list[str], truths: list[int]) -> Path:
    folder = root / DEVKIT / "data"
    folder.mkdir(parents=True)
    savemat(folder / META, {"synsets": synsets(wnids)})
    (folder / TRUTH).write_text("".join(f"{truth}\n" for truth in truths))
    return folder


@pytest.fixture
def flat(tmp_path: Path, _few: None) -> Path:
    root = tmp_path / "flat"
    write_devkit(root, WNIDS, TRUTHS)
    (root / "val").mkdir()
    for number in range(1, 9):
        picture(number).save(root / "val" / name(number))
    return root


@pytest.fixture
def foldered(tmp_path: Path, _few: None) -> Path:
    root = tmp_path / "foldered"
    for number, truth in enumerate(TRUTHS, start=1):
        folder = root / "val" / WNIDS[truth - 1]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / name(number))
    return root


def batch(data: ImageNet) -> dict[str, torch.Tensor]:
    data.setup("test")
    (found,) = data.test_dataloader()
    return found


@pytest.mark.parametrize("layout", ["flat", "foldered", "foldered/val"])
def test_both_layouts_are_in_torchvisions_order(
    layout: str, flat: Path, foldered: Path, tmp_path: Path
) -> None:
    data = ImageNet(str(tmp_path / layout))
    assert data.class_names == CLASSES
    assert data.description == "ImageNet test images (shorter side 256, middle 224 x 224)"
    found = batch(data)
    assert found["image"].shape == (8, 3, 224, 224) and data.image_size == 224
    assert (found["image"][:, 0, 9, 9] * 255).round().tolist() == ORDER
    assert found["label"].tolist() == LABELS
    assert found["sample"].tolist() == list(range(8))


@few
def test_both_papers_sizes(foldered: Path) -> None:
    """DiffPure: the shorter side to 256, then the middle; HetPure: both sides to 224."""
    file = foldered / "val" / CLASSES[0] / name(ORDER[0])
    gradient = np.tile(np.arange(300) * 255 // 299, (260, 1)).astype(np.uint8)
    Image.fromarray(gradient).convert("RGB").save(file, quality=100)
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    whole = image.resize((224, 224), Image.Resampling.BILINEAR)
    part = image.resize((295, 256), Image.Resampling.BILINEAR).crop((36, 16, 260, 240))
    for options, expected in (({}, part), ({"resize": (224, 224), "crop": None}, whole)):
        found = batch(ImageNet(str(foldered), **options))["image"][0] * 255
        assert torch.equal(found, torch.tensor(np.asarray(expected)).movedim(-1, 0).float())
    with pytest.raises(InputError, match="for images of one size"):
        ImageNet(str(foldered), resize=224, crop=None)


@few
def test_pixels_are_taken_as_they_are_stored(foldered: Path) -> None:
    """As published accuracies were measured: EXIF's orientation is not applied; CMYK is read."""
    file = foldered / "val" / CLASSES[0] / name(ORDER[0])
    halves = np.zeros((224, 224, 3), np.uint8)
    halves[:112] = 255
    image = Image.fromarray(halves)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, exif=exif)
    found = batch(ImageNet(str(foldered), resize=(224, 224), crop=None))["image"]
    assert found[0, :, 10].min() > 0.9 and found[0, :, 200].max() < 0.1
    Image.new("CMYK", (224, 224), (0, 0, 255, 0)).save(file)
    yellow = batch(ImageNet(str(foldered)))["image"][0, :, 9, 9]
    assert torch.allclose(yellow, torch.tensor([1.0, 1.0, 0.0]), atol=0.02)


@few
def test_training_images_are_read_where_they_are(foldered: Path) -> None:
    alone = ImageNet(str(foldered), test_split="validation")
    with pytest.raises(InputError, match=r"train has no class folders: test_split"):
        alone.setup("test")
    with pytest.raises(InputError, match=r"train has no class folders"):
        ImageNet(str(foldered)).setup("fit")
    for label, wnid in enumerate(CLASSES):
        (foldered / "train" / wnid).mkdir(parents=True)
        for k in range(3):
            picture(label).save(foldered / "train" / wnid / f"{wnid}_{k}.JPEG")
    data = ImageNet(str(foldered), validation=4, batch_size=8)
    data.setup("fit")
    (held_out,), (trained,) = data.val_dataloader(), data.train_dataloader()
    assert held_out["label"].tolist() == [0, 1, 2, 3]
    both = torch.cat([held_out["sample"], trained["sample"]])
    assert sorted(both.tolist()) == list(range(12))
    assert (trained["sample"] // 3).tolist() == trained["label"].tolist()
    (foldered / "train" / "n00000000").mkdir()
    with pytest.raises(InputError, match="train has other class folders"):
        ImageNet(str(foldered))


def refused(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        batch(ImageNet(str(root)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@few
def test_a_part_of_imagenet_is_not_imagenet(foldered: Path) -> None:
    """Its classes would be numbered otherwise than the classifier's."""
    os.rename(foldered / "val" / CLASSES[1], foldered / CLASSES[1])
    assert "3 of ImageNet's 4 classes" in refused(foldered)
    os.rename(foldered / CLASSES[1], foldered / "val" / CLASSES[1])
    (foldered / "val" / CLASSES[1] / name(ORDER[2])).unlink()
    assert "7 images, expected ImageNet's 8" in refused(foldered)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    said = refused(tmp_path / "nowhere")
    for part in ("0 of ImageNet's 1,000 classes", "not downloaded", "ILSVRC2012_img_val.tar",
                 "6,744,924,160 bytes", "n########", DEVKIT):  # fmt: skip
        assert part in said


@pytest.mark.parametrize(
    ("truths", "says"),
    [
        (TRUTHS[:7], "7 lines, expected 8 of 1 to 4"),
        ([*TRUTHS[:7], 5], "8 lines, expected 8 of 1 to 4"),
        ([*TRUTHS[:7], 0], "8 lines, expected 8 of 1 to 4"),
        (["no number"], "not the devkit's ground truth"),
    ],
)
def test_another_ground_truth_is_refused(truths: list[Any], says: str, flat: Path) -> None:
    (flat / DEVKIT / "data" / TRUTH).write_text("\n".join(map(str, truths)))
    assert says in refused(flat)


def test_another_devkit_is_refused(flat: Path) -> None:
    meta = flat / DEVKIT / "data" / META
    for wrong in (WNIDS[:3], [*WNIDS, "n00000001"], [*WNIDS[:3], WNIDS[0]]):
        savemat(meta, {"synsets": synsets(wrong)})
        assert "expected ILSVRC2012_ID 1 to 4" in refused(flat)
    for content in (b"", b"no MATLAB file"):
        meta.write_bytes(content)
        assert "not the devkit's MATLAB file" in refused(flat)
    meta.unlink()
    assert META in refused(flat)


def test_other_files_among_the_flat_ones_are_refused(flat: Path) -> None:
    os.rename(flat / "val" / name(8), flat / "val" / name(9))
    assert f"not {name(1)} to {name(8)}" in refused(flat)


def test_the_flat_files_may_lie_beside_the_devkit(flat: Path) -> None:
    for path in (flat / "val").iterdir():
        path.rename(flat / path.name)
    (flat / "val").rmdir()
    assert batch(ImageNet(str(flat)))["label"].tolist() == LABELS
