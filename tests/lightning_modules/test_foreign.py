"""Classifiers and data of somebody else's: asked before anything is computed, none gives a wrong
number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import evaluate
from datamodules.dataset import ImageDataset
from hetpure.__main__ import main as hetpure_main
from hetpure.addt import RankGaussian
from hetpure.compatibility import check_all_answers
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.evaluation.description import Images
from hetpure.program import run
from hetpure.weights import load_classifier
from lightning_modules.callbacks import ExportWeights
from lightning_modules.classifier import ClassifierTraining
from lightning_modules.diffusion import DiffusionTraining
from lightning_modules.images import images_of
from lightning_modules.monitor import RobustProbe
from tests.lightning_modules.foreign import HERE, NAMES, Data, Items, classifier
from tests.lightning_modules.trainings import UNET

CPU = torch.device("cpu")


def read(data: LightningDataModule) -> Images:
    """As an evaluation reads them: the first batch too."""
    images = images_of(data, data.test_dataloader(), CPU)
    images.read(range(2))
    return images


def asked(network: str) -> None:
    """The row's classifier about the first images."""
    plain = {"plain": Defense(load_classifier(network))}
    check_all_answers(plain, read(Data()).read(range(2)).images)


WRONG = {
    "one logit": r"torch.float32 of shape \(2, 1\), expected are float logits of shape \(2, 10\)",
    "nine logits": r"torch.float32 of shape \(2, 9\), expected",
    "a map": r"torch.float32 of shape \(2, 10, 1\), expected",
    "a tuple": "gives a tuple, expected",
    "a dict": "gives a dict, expected",
    "integers": r"torch.int64 of shape \(2, 10\), expected",
    "the batch's sum": r"torch.float32 of shape \(1, 10\), expected",
    "NaN": "gives logits of nan for the data's images",
    "infinity": "gives logits of -?inf for the data's images",
}


@pytest.mark.parametrize("gives", WRONG)
def test_a_classifier_that_gives_no_logits(gives: str, tmp_path: Path) -> None:
    network = classifier(tmp_path / "mine", gives=gives)
    with pytest.raises(InputError, match=f"the classifier of row 'plain' .*{WRONG[gives]}"):
        asked(network)


def test_a_classifier_that_takes_no_such_images(tmp_path: Path) -> None:
    network = classifier(tmp_path / "mine", size=32)
    with pytest.raises(InputError, match="row 'plain' cannot be used on the data's 28 x 28 images"):
        asked(network)


def test_a_right_one_is_asked_once(tmp_path: Path) -> None:
    """Rows share it."""
    shared = load_classifier(classifier(tmp_path / "mine"))
    sizes: list[int] = []
    shared.network.register_forward_hook(
        lambda module, arguments, logits: sizes.append(len(arguments[0]))
    )
    check_all_answers({"a": Defense(shared), "b": Defense(shared)}, torch.rand(2, 1, 28, 28))
    assert sizes == [2]


@pytest.mark.parametrize(
    ("command", "first"), [(evaluate.main, "--plan"), (hetpure_main, "gradcheck")]
)
def test_every_command_asks_first(
    command: Callable[[list[str]], None],
    first: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also of a row's own classifier; one line, and no folder of a run."""
    monkeypatch.chdir(tmp_path)
    own = classifier(tmp_path / "mine", gives="one logit")
    rows = f"--model.defenses={{plain: {{}}, other: {{classifier: {own}}}}}"
    with pytest.raises(SystemExit) as stop:
        run(command, [first, rows, "--data.limit=2"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the classifier of row 'other' ") and "(2, 1)" in error
    assert not Path("runs").exists()


BATCHES: list[tuple[dict[str, Any], str]] = [
    ({"label": lambda label: label.float()}, "torch.float32 labels, expected integers"),
    ({"label": lambda label: label > 2}, "torch.bool labels, expected integers"),
    (
        {"label": lambda label: label[None]},
        r"labels of shape \(2, 1\), expected is one for each",
    ),
    ({"sample": lambda sample: sample.double()}, "torch.float64 ids, expected integers"),
    ({"image": lambda image: image.expand(3, 28, 28)}, "images have channels 3, .* declares 1"),
    ({"image": lambda image: image.permute(1, 2, 0)}, "images have channels 28, .* declares 1"),
    (
        {"label": lambda label: torch.eye(10, dtype=torch.int64)[label]},
        r"labels of shape \(2, 10\), expected is one for each",
    ),
    ({"image": lambda image: image[:, 2:]}, r"images have size \(26, 28\), .* \(28, 28\)"),
    ({"image": lambda image: image * 255}, r"sample 0 has the pixel value .* allowed is \[0, 1\]"),
    ({"image": lambda image: image * 2 - 1}, r"allowed is \[0, 1\]"),
    ({"image": lambda image: (image * 255).int()}, "torch.int32 images, expected uint8 or float"),
    ({"image": lambda image: image[0]}, r"shape \(2, 28, 28\), expected \(N, C, H, W\)"),
    ({"image": "cat.png"}, "is a dict of image, label, sample, expected is a dict of the tensors"),
]


@pytest.mark.parametrize(
    ("every", "message"), BATCHES, ids=[message[:24] for _, message in BATCHES]
)
def test_a_batch_of_another_kind(every: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"the data.*{message}"):
        read(Data(**every))


ITEMS: list[tuple[dict[str, Any], str]] = [
    ({"label": torch.tensor(10)}, "label 10 of sample 4, allowed is 0 to 9"),
    ({"label": torch.tensor(-100)}, "label -100 of sample 4, allowed is 0 to 9"),
    ({"sample": torch.tensor(-1)}, "ids from -1 to -1, allowed are 0 to 4294967295"),
    ({"sample": torch.tensor(2**32)}, "ids from 4294967296 to 4294967296, allowed"),
    ({"sample": torch.tensor(1)}, "id 1 is there more than once"),
    ({"image": lambda image: image * torch.nan}, "sample 4 has the pixel value nan"),
]


@pytest.mark.parametrize(("item", "message"), ITEMS)
def test_the_last_item_is_asked_too(item: dict[str, Any], message: str) -> None:
    """Of a dataset that tells nothing of itself, all is read once."""
    with pytest.raises(InputError, match=message):
        read(Data({4: item}))


def test_what_a_dataset_tells_of_itself_is_not_believed() -> None:
    """Its items count: here two of them have one id."""
    data = Data({4: {"sample": torch.tensor(1)}})
    data.items.samples = data.items.labels = torch.arange(5)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="id 1 is there more than once"):
        read(data)


class Counted(ImageDataset):
    read = 0

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        Counted.read += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("last", [9, 10])
def test_our_own_dataset_is_not_read_for_it(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its labels are those that its items give."""
    monkeypatch.setattr(Counted, "read", 0)
    images = torch.zeros(5, 1, 28, 28)
    loader = DataLoader(
        Counted(images, torch.tensor([0, 1, 2, 3, last]), torch.arange(5)), batch_size=2
    )
    if last == 10:
        with pytest.raises(InputError, match="label 10 of sample 4"):
            images_of(Data(), loader, CPU)
    else:
        assert len(images_of(Data(), loader, CPU)) == 5
    assert Counted.read == 0


def test_data_without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Data, "test_dataloader", lambda self: DataLoader([], batch_size=2))
    with pytest.raises(InputError, match="holds no images"):
        read(Data())


class Bare(nn.Module):
    """A network of one's own that is made for its data: it has no arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def test_a_network_without_arguments_is_trained_and_declared(tmp_path: Path) -> None:
    name = f"{__name__}.Bare"
    module = trained(ClassifierTraining(name), Data(), tmp_path, callbacks=[ExportWeights()])
    exported = load_classifier(tmp_path / "classifier")
    assert (exported.num_classes, exported.channels) == (10, 1)
    assert torch.equal(
        exported.network.layers[1].weight, module.classifier.network.layers[1].weight
    )
    seven = ClassifierTraining(name, {"num_classes": 7}, seed=2**32 - 1)
    with pytest.raises(InputError, match="the classifier's num_classes: 7, and the data's: 10"):
        trained(seven, Data(), tmp_path)
    with pytest.raises(InputError, match="--model.architecture .*Bare with its network.* 'depth'"):
        ClassifierTraining(name, {"depth": 10})
    with pytest.raises(InputError, match="--model.architecture WideResNet .*one number for each"):
        ClassifierTraining(network={"in_channels": 3})
    with pytest.raises(InputError, match="ClassifierTraining.seed must be in 0 to 4294967295"):
        ClassifierTraining(name, seed=2**32)


class Pairs(Data):
    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader([(torch.zeros(1, 28, 28), 0)] * 2, batch_size=2)  # type: ignore[arg-type]


def test_pairs_of_image_and_label() -> None:
    with pytest.raises(InputError, match="batch is a list, expected is a dict of the tensors"):
        read(Pairs())


@pytest.mark.parametrize("name", ["num_classes", "channels", "class_names"])
def test_data_that_does_not_say_what_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Data, name)
    with pytest.raises(InputError, match=f"Data has no {name}"):
        read(Data())


def test_names_of_other_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Data, "class_names", NAMES[:9])
    with pytest.raises(InputError, match="10 classes .* and 9 class_names"):
        read(Data())


def test_bytes_small_labels_and_doubles_are_read_as_what_they_are() -> None:
    """8-bit images are scaled, and all is in the types that hetpure computes with."""
    every = {"image": lambda image: (image * 255).byte(), "label": lambda label: label.byte()}
    first = read(Data(**every)).read(range(2))
    expected = torch.stack([Items({}, every)[index]["image"] / 255 for index in range(2)])
    assert torch.equal(first.images, expected) and first.images.dtype == torch.float32
    assert 0.9 < first.images.max() <= 1
    assert first.labels.dtype == first.samples.dtype == torch.int64
    plain = read(Data()).read(range(2))
    doubles = read(Data(image=lambda image: image.double())).read(range(2)).images
    assert torch.equal(doubles, plain.images)
    halves = read(Data(image=lambda image: image.half())).read(range(2)).images
    assert torch.equal(halves, plain.images.half().float())
    small = read(Data(label=lambda label: label.int(), sample=lambda sample: sample.int()))
    assert torch.equal(small.read(range(2)).labels, plain.labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_that_rounding_moved_are_clamped(dtype: torch.dtype) -> None:
    images = read(Data(image=lambda image: (image > 0.5).to(dtype) * (1 + 2e-7) - 1e-7))
    pixels = images.read(range(2)).images
    assert pixels.min() == 0 and pixels.max() == 1
    message = r"pixel value 1\.0000(1|099|100).*, allowed is \[0, 1\]"
    with pytest.raises(InputError, match=message):
        read(Data(image=lambda image: (image > 0.5).to(dtype) * (1 + 1e-5)))


@pytest.mark.parametrize(
    "settings", [{"shuffle": True}, {"drop_last": True}, {"batch_size": None}], ids=str
)
def test_a_loader_without_an_order(settings: dict[str, Any]) -> None:
    loader = DataLoader(Data().items, **({"batch_size": 2} | settings))
    with pytest.raises(InputError, match="must be a DataLoader that gives all samples in order"):
        images_of(Data(), loader, CPU)


def trained(module: Any, data: LightningDataModule, folder: Path, **options: Any) -> Any:
    trainer = Trainer(
        **{"max_steps": 2, "limit_val_batches": 0} | options,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return module


def own(gives: str = "logits") -> ClassifierTraining:
    torch.manual_seed(0)
    return ClassifierTraining(f"{HERE}.Network", {"gives": gives}, shift_pixels=0)


def addt(guide: str = "fashion_mnist_wrn") -> DiffusionTraining:
    torch.manual_seed(0)
    return DiffusionTraining(unet=UNET, guide=guide, perturbation=RankGaussian(steps=1))


@pytest.mark.parametrize("kind", [own, addt], ids=["classifier", "diffusion"])
@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"label": torch.tensor(-100)}, "label -100 of sample 1, allowed is 0 to 9"),
        ({"sample": torch.tensor(2**32)}, "ids from 0 to 4294967296"),
        ({"image": lambda image: image * 255}, "sample 1 has the pixel value"),
    ],
    ids=["a label that cross-entropy leaves out", "id", "0..255"],
)
def test_a_training_refuses_its_batch(
    kind: Callable[[], Any], item: dict[str, Any], message: str, tmp_path: Path
) -> None:
    module = kind()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(InputError, match=f"the data.*{message}"):
        trained(module, Data({1: item}), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("validations", [0, 1])
@pytest.mark.parametrize("gives", ["one logit", "NaN"])
def test_a_training_asks_its_classifier_first(gives: str, validations: int, tmp_path: Path) -> None:
    """Before the validation that Lightning begins with, too."""
    with pytest.raises(InputError, match=f"the classifier .*{WRONG[gives]}"):
        trained(own(gives), Data(), tmp_path, limit_val_batches=validations)


@pytest.mark.parametrize("gives", ["a tuple", "NaN"])
def test_a_training_asks_its_guide_first(gives: str, tmp_path: Path) -> None:
    guide = classifier(tmp_path / "guide", gives=gives)
    message = WRONG[gives]  # black images of the diffusion's size
    with pytest.raises(InputError, match=f"the guide .*{message}"):
        trained(addt(guide), Data(), tmp_path)


def test_a_guide_is_asked_about_the_datas_own_images(tmp_path: Path) -> None:
    """Which are not black: one may be finite there alone."""
    guide = classifier(tmp_path / "guide", gives="infinity where bright")
    with pytest.raises(InputError, match="the guide gives logits of -?inf for the data's images"):
        trained(addt(guide), Data(), tmp_path)


def test_a_probe_asks_its_classifier(tmp_path: Path) -> None:
    probe = RobustProbe(classifier(tmp_path / "probe", gives="NaN"), images=2)
    with pytest.raises(InputError, match="the RobustProbe's classifier gives logits of nan"):
        trained(addt(), Data(), tmp_path, callbacks=[probe])


@pytest.mark.parametrize("kind", [own, addt], ids=["classifier", "diffusion"])
def test_bytes_train_as_pixels_do(kind: Callable[[], Any], tmp_path: Path) -> None:
    """Bit for bit, in the training's precision."""
    eight = {"image": lambda image: (image * 255).byte()}
    scaled = {"image": lambda image: (image * 255).byte().double() / 255}
    found, expected = (
        trained(kind(), Data(**every), tmp_path, precision="64-true").state_dict()
        for every in (eight, scaled)
    )
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_asking_takes_no_gradient_away(tmp_path: Path) -> None:
    """Autocast keeps the weights that it has cast, those of a call without gradients too."""
    module = own()
    weight = module.classifier.network.linear.weight
    before = weight.clone()
    trained(module, Data(), tmp_path, max_steps=1, precision="bf16-mixed")
    assert not torch.equal(weight, before)
