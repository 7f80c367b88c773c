"""Image files in class folders: order, decoding, resize and crop, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.dataset import ImageDataset
from datamodules.folder import ImageFolder
from datamodules.image_files import center_cropped, resized
from hetpure.errors import InputError
from hetpure.program import run


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes; names are not in the order in which they are written."""
    for seed, name in enumerate(("dog/b.png", "dog/a.PNG", "cat/10.png", "cat/9.png", "Ant/x.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(8, 8, seed).save(path)
    (tmp_path / "photos" / ".hidden").mkdir()
    (tmp_path / "photos" / "cat" / ".DS_Store").touch()
    (tmp_path / "photos" / "README.txt").write_text("not a class")
    return tmp_path / "photos"


def batch(data: ImageFolder) -> dict[str, torch.Tensor]:
    data.setup("test")
    (found,) = data.test_dataloader()
    return found


def test_classes_and_files_are_in_the_order_of_their_names(folder: Path) -> None:
    data = ImageFolder(str(folder))
    assert data.class_names == ("Ant", "cat", "dog")  # capitals come first, as in torchvision
    assert (data.num_classes, data.channels, data.image_size) == (3, 3, 8)
    assert data.description == "photos test images"
    found = batch(data)
    assert found["label"].tolist() == [0, 1, 1, 2, 2]
    assert found["sample"].tolist() == [0, 1, 2, 3, 4]
    for seed, position in ((0, 4), (1, 3), (2, 1), (3, 2), (4, 0)):
        expected = np.asarray(picture(8, 8, seed)).transpose(2, 0, 1)
        assert torch.equal(found["image"][position] * 255, torch.tensor(expected).float())


def test_images_are_read_when_they_are_asked_for(folder: Path) -> None:
    data = ImageFolder(str(folder))
    data.setup("test")
    dataset = data.test_dataloader().dataset
    assert isinstance(dataset, ImageDataset)
    before = dataset[4]["image"]
    picture(8, 8, seed=99).save(folder / "dog" / "b.png")
    assert not torch.equal(dataset[4]["image"], before)
    (folder / "dog" / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match="b.png cannot be read as an image"):
        dataset[4]
    (folder / "dog" / "b.png").unlink()
    with pytest.raises(InputError, match="b.png: there is no such file"):
        dataset[4]
    assert dataset[3]["image"].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        (500, 375, 256, (341, 256)),  # 256 * 500 / 375 is 341.33
        (375, 500, 256, (256, 341)),
        (333, 500, 256, (256, 384)),  # 384.38
        (256, 300, 256, (256, 300)),  # its size already
        (100, 100, 256, (256, 256)),
        (500, 375, (224, 224), (224, 224)),
        (500, 375, (10, 20), (10, 20)),
    ],
)
def test_sizes_after_resize(height: int, width: int, size: Any, expected: tuple[int, int]) -> None:
    image = Image.new("RGB", (width, height))
    found = resized(image, size)
    assert (found.height, found.width) == expected
    assert (found is image) == ((height, width) == expected)


def test_resize_is_pillows_antialiased_bilinear() -> None:
    """Halving weights four neighbours 1, 3, 3, 1: a filter without antialiasing takes two."""
    column = Image.fromarray(np.array([[0], [0], [0], [0], [240], [0], [0], [0]], np.uint8))
    found = np.asarray(resized(column, (4, 1)))[:, 0]
    assert found.tolist() == [0, 30, 90, 0]


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [(6, 7, 1, 2), (7, 9, 2, 2), (4, 4, 0, 0), (5, 11, 0, 4)],
)
def test_crop_is_where_torchvision_has_it(height: int, width: int, top: int, left: int) -> None:
    """Halves are rounded to even: 0.5 is 0, 1.5 and 2.5 are 2, 3.5 is 4."""
    image = picture(height, width)
    found = np.asarray(center_cropped(image, 4))
    assert (found == np.asarray(image)[top : top + 4, left : left + 4]).all()


def test_resize_and_crop_of_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    picture(30, 20, 0).save(tmp_path / "a" / "0.png")
    picture(20, 50, 1).save(tmp_path / "a" / "1.png")
    data = ImageFolder(str(tmp_path), resize=10, crop=8)
    assert data.image_size == 8
    assert data.description.endswith("test images (shorter side 10, middle 8 x 8)")
    for position, expected in enumerate(
        (
            picture(30, 20, 0).resize((10, 15), Image.Resampling.BILINEAR).crop((1, 4, 9, 12)),
            picture(20, 50, 1).resize((25, 10), Image.Resampling.BILINEAR).crop((8, 1, 16, 9)),
        )
    ):
        pixels = torch.tensor(np.asarray(expected)).movedim(-1, 0)
        assert torch.equal(batch(data)["image"][position] * 255, pixels.float())
    square = ImageFolder(str(tmp_path), resize=(12, 12))
    assert batch(square)["image"].shape == (2, 3, 12, 12)
    assert square.description.endswith("(resized to 12 x 12)")
    wide = ImageFolder(str(tmp_path), resize=(12, 14), channels=1)
    assert wide.image_size == (12, 14) and batch(wide)["image"].shape == (2, 1, 12, 14)
    with pytest.raises(InputError, match=r"1.png is 10 x 25 in the end, expected 15 x 10"):
        batch(ImageFolder(str(tmp_path), resize=10))
    with pytest.raises(InputError, match=r"0.png is 30 x 20 in the end, expected 25 x 25"):
        batch(ImageFolder(str(tmp_path), crop=25))


def test_every_evaluated_file_is_looked_at_before_the_first_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for k in range(4):
        picture(8, 8, k).save(tmp_path / "a" / f"{k}.png")
    for wrong, says in (
        (picture(8, 9), "3.png is 8 x 9 in the end, expected 8 x 8"),
        (Image.new("F", (8, 8)), "3.png cannot be read as an image: which of its values"),
        (None, "3.png cannot be read as an image"),
    ):
        path = tmp_path / "a" / "3.png"
        if wrong is None:
            path.write_text("no image")
        else:
            wrong.save(path, format="TIFF")
        data = ImageFolder(str(tmp_path))
        data.setup("test")
        with pytest.raises(InputError, match=says):
            data.test_dataloader()
        fewer = ImageFolder(str(tmp_path), limit=3)
        assert len(batch(fewer)["label"]) == 3


def test_a_loaders_process_passes_a_bad_file_on_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ImageFolder(str(folder), num_workers=1)
    data.setup("test")
    loader = data.test_dataloader()
    whole = (folder / "cat" / "9.png").read_bytes()
    (folder / "cat" / "9.png").write_bytes(whole[:-40])
    with pytest.raises(SystemExit):
        run(lambda arguments: next(None for _ in loader), [])
    said = capsys.readouterr().err
    assert said.startswith(f"error: {folder}/cat/9.png cannot be read as an image: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"resize": 8, "crop": 9}, "ImageFolder.crop is 9, allowed is 1 to resize (8)"),
        ({"resize": (20, 8), "crop": 9}, "ImageFolder.crop is 9"),
        ({"crop": 0}, "ImageFolder.crop is 0, allowed is 1 or more"),
        ({"resize": (8, 0)}, "ImageFolder.resize is (8, 0), allowed are lengths of 1 or more"),
    ],
)
def test_unusable_sizes_are_refused(options: dict[str, Any], says: str, folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        ImageFolder(str(folder), **options)
    assert says in str(caught.value)


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    sideways = Image.fromarray(np.array([[1, 2]], np.uint8))
    exif = sideways.getexif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "a" / "0.png", exif=exif)
    data = ImageFolder(str(tmp_path), channels=1)
    assert (batch(data)["image"] * 255).flatten().tolist() == [1, 2]
    assert data.image_size == (2, 1)


def test_what_is_no_class_folder_of_images_is_refused(folder: Path, tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(InputError) as caught:
            batch(ImageFolder(str(folder)))
        return str(caught.value)

    (folder / "dog" / "notes.txt").touch()
    assert "notes.txt is no image file" in refused()
    (folder / "dog" / "notes.txt").unlink()
    (folder / "dog" / "more").mkdir()
    assert "more is no image file" in refused()
    (folder / "dog" / "more").rmdir()
    (folder / "empty").mkdir()
    assert "empty has no images" in refused()
    for path in (tmp_path / "missing", folder / "dog"):
        with pytest.raises(InputError, match="has no class folders"):
            ImageFolder(str(path))
    respelled = f"{folder.parent}/./{folder.name}/../{folder.name}"
    for options in ({}, {"data_dir": str(folder), "train_dir": respelled}):
        with pytest.raises(InputError, match="train_dir is"):
            ImageFolder(**options)


def test_a_training_has_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    for label, name in enumerate(("Ant", "cat", "dog")):
        (tmp_path / "more" / name).mkdir(parents=True)
        for k in range(4):
            picture(8, 8, 10 * label + k).save(tmp_path / "more" / name / f"{k}.png")
    for data_dir in (str(folder), None):
        data = ImageFolder(data_dir, str(tmp_path / "more"), batch_size=2, validation=3)
        data.setup("fit")
        held_out = [int(sample) for batch in data.val_dataloader() for sample in batch["sample"]]
        train = data.train_dataloader()
        seen = [int(sample) for batch in train for sample in batch["sample"]]
        assert [sample // 4 for sample in held_out] == [0, 1, 2]
        assert len(set(seen)) == 8 and not set(seen) & set(held_out)
        state = train.state_dict()
        picture(8, 9).save(tmp_path / "more" / "dog" / "3.png")  # another file size
        again = ImageFolder(data_dir, str(tmp_path / "more"), batch_size=2, validation=3)
        again.setup("fit")
        assert again.train_dataloader().state_dict()["data"] != state["data"]
        picture(8, 8, 23).save(tmp_path / "more" / "dog" / "3.png")
    with pytest.raises(InputError, match="data_dir is needed: there are no test images"):
        data.setup("test")
    with pytest.raises(InputError, match="train_dir is needed: there are no train images"):
        ImageFolder(str(folder)).setup("fit")
    (tmp_path / "more" / "emu").mkdir()
    with pytest.raises(InputError, match="emu is in one of the two only"):
        ImageFolder(str(folder), str(tmp_path / "more"))


def test_provenance_hashes_names_sizes_labels_and_ids(folder: Path) -> None:
    def told(**options: Any) -> dict[str, str]:
        data = ImageFolder(str(folder), **options)
        data.setup("test")
        return data.files_sha256()

    whole, some = told(), told(limit=4)
    assert list(whole) == ["names, sizes, labels and ids"]
    assert told() == whole and some != whole and told(resize=(4, 4)) != whole
    size = (folder / "dog" / "b.png").stat().st_size
    (folder / "dog" / "b.png").write_bytes(b"x" * (size + 1))
    assert told() != whole  # and the file, which is no image now, was not opened
    assert told(limit=4) == some
    (folder.parent / "ids.txt").write_text("0\n")
    assert set(told(ids=str(folder.parent / "ids.txt"))) == {*whole, "ids: ids.txt"}
