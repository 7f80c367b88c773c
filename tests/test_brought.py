"""The commonest cases of docs/guide/evaluate.md, as they stand there, on small files of published
formats."""

import json
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from datamodules.cifar import CIFAR10
from hetpure.__main__ import main
from hetpure.classifiers import ResNet, WideResNet
from hetpure.weights import load_denoiser
from hetpure.weights.classifier import build_classifier, save_classifier
from hetpure.weights.convert import convert
from hetpure.weights.formats import Hints
from tests.hetpure.weights.files import whole_module
from tests.published import reference

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "guide" / "evaluate.md").read_text().split("## Choose a config")[0]
BLOCKS = re.findall(r"^```bash\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
FIRST_LOOK = BLOCKS.pop()  # of the first case
QUICK = [  # the smallest evaluation
    "--model.attack.steps=1",
    "--model.attack.eot_samples=1",
    "--model.protocol={report_draws: 1, selection_draws: 1}",
    "--model.audit=null",
    "--model.run=one",
    "--data.subset=all",
    "--data.limit=2",
    "--data.batch_size=2",
    "--trainer.accelerator=cpu",
]
# Shorter grids, and small images in the place of ImageNet's, purified at the small network's size.
ROWS = """
model:
  defenses:
    plain classifier: {}
    heterogeneous:
      denoiser: %s
      purified_size: %s
      purifier:
        class_path: hetpure.purifiers.HeterogeneousPurifier
        init_args: {t_large: 0.2, t_small: 0.1, steps: 10}
"""
SMALL_WRN = {
    "architecture": "WideResNet",
    "network": {"depth": 10, "widen_factor": 1, "num_classes": 10, "in_channels": 3},
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}
OWN_NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer3 = nn.Conv2d(3, width, 3)
        self.layer4 = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, 2))
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        return self.fc(self.layer4(self.layer3(x)).mean((2, 3)))
"""


def write_parts(data: Path, diffusion: Path, classifier: Path) -> None:
    """CIFAR-10's files with fewer images, a diffusers folder and a classifier's folder, tiny."""
    random = np.random.default_rng(0)
    (data / CIFAR10.binary.folder).mkdir(parents=True)
    for name in CIFAR10.binary.names:
        records = random.integers(0, 256, (20, 3073), np.uint8)
        records[:, 0] = np.arange(20) % 10
        (data / CIFAR10.binary.folder / name).write_bytes(records.tobytes())
    network = UNet2DModel(
        sample_size=32,
        layers_per_block=1,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    network.save_pretrained(diffusion / "unet")
    DDPMScheduler().save_pretrained(diffusion / "scheduler")
    save_classifier(classifier, build_classifier(SMALL_WRN, where=classifier), SMALL_WRN)


def command(block: int, line: int) -> list[str]:
    """A line of the page, as a shell would split it."""
    return shlex.split(BLOCKS[block].splitlines()[line])


def converted(block: int) -> None:
    words = command(block, 0)
    assert words[:2] == ["hetpure", "convert"]
    main(words[1:])


def evaluated(
    block: int, *more: str, denoiser: str = "ddpm", size: str = "null"
) -> dict[str, dict[str, object]]:
    words = command(block, 1)
    assert words[:2] == ["hetpure", "evaluate"]
    Path("rows.yaml").write_text(ROWS % (denoiser, size))
    main([*words[1:], "--config=rows.yaml", *QUICK, *more])
    results = json.loads(Path("runs/evaluate/one/results.json").read_text())
    found: dict[str, dict[str, object]] = results["defenses"]
    return found


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of one's own, and a hub that holds a small network only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CIFAR10, "counts", {"train": 100, "test": 20})

    def snapshot(repository: str, **wanted: object) -> str:
        assert repository == "google/ddpm-cifar10-32"
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_parts(tmp_path / "DATA", tmp_path / "cache", tmp_path / "another")
        yield tmp_path


def test_the_page_shows_five_cases_in_two_lines_each() -> None:
    assert [block.count("\n") for block in BLOCKS] == [2] * 5
    assert FIRST_LOOK.startswith(BLOCKS[0].splitlines()[1])


def test_cifar_robustbench_and_googles_ddpm() -> None:
    network = WideResNet(depth=10, widen_factor=1, num_classes=10)
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, "Standard.pt")
    converted(0)
    rows = evaluated(0)
    assert [row["purification_calls"] for row in rows.values()] == [0, 3]
    assert rows["heterogeneous"]["gradient_check"]["passed"]  # type: ignore[index]


def guided() -> None:
    torch.save(reference("guided_diffusion_uncond").weights, "guided.pt")
    convert(Path("guided.pt"), Path("guided"), Hints(16, 16, "linear", 1000))


def photos(classes: int) -> None:
    random = np.random.default_rng(0)
    for number in range(classes):
        folder = Path("PHOTOS") / f"class {number}"
        folder.mkdir(parents=True)
        picture = random.integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(picture).save(folder / "a.png")


def test_a_folder_of_images_with_a_timm_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm itself is not here: a stand-in builds a network under its interface."""
    library = types.ModuleType("timm")

    def create_model(
        name: str, *, pretrained: bool, checkpoint_path: str, num_classes: int
    ) -> nn.Module:
        assert (name, pretrained, checkpoint_path) == ("resnet26", False, "")
        return ResNet(depth=18, num_classes=num_classes)

    library.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", library)
    save_file(ResNet(depth=18, num_classes=7).state_dict(), "mine.safetensors")
    guided()
    photos(7)
    converted(2)
    small = "--data.resize=14", "--data.crop=12"
    rows = evaluated(2, *small, denoiser="guided", size="16")
    assert rows["heterogeneous"]["purification_calls"] == 3
    assert rows["heterogeneous"]["gradient_check"]["passed"]  # type: ignore[index]


def test_a_classifier_of_ones_own(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    (place / "my_package.py").write_text(OWN_NET)
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    from my_package import Net  # type: ignore[import-not-found]

    torch.save(Net(64).state_dict(), "mine.pt")
    converted(3)
    assert len(evaluated(3)) == 2


def test_a_hugging_face_id_is_fine_tuned() -> None:
    """By the published config, with all its callbacks, made small by numbers alone."""
    whole_module(reference("classifier_meliketoy_wrn").weights, Path("origin.t7"), zipped=False)
    converted(4)
    words = command(4, 1)
    assert words[:3] == ["hetpure", "train", "--config"]
    config = yaml.safe_load((ROOT / "configs" / "train" / f"{words[3]}.yaml").read_text())
    assert config["data"]["init_args"] == {"data_dir": "data", "batch_size": 256}
    config["trainer"] |= {"max_steps": 2, "enable_progress_bar": False, "accelerator": "cpu"}
    config["trainer"]["log_every_n_steps"] = 1
    options = {
        callback["class_path"].rpartition(".")[2]: callback.setdefault("init_args", {})
        for callback in config["trainer"]["callbacks"]
    }
    options["SampleGrid"] |= {"rows": 1, "network_calls": 2}
    options["RobustProbe"]["images"] = 2
    options["RobustProbe"]["attack"]["init_args"]["steps"] = 1
    options["RobustProbe"]["purifier"]["init_args"]["steps"] = 20
    Path("small.yaml").write_text(yaml.safe_dump(config))
    small = ["--data.batch_size=8", "--data.validation=20"]
    main(["train", "--config=small.yaml", *words[4:], *small])
    (exported,) = Path("runs").glob("**/diffusion")
    before = load_denoiser("hf://google/ddpm-cifar10-32").network.state_dict()
    after = load_denoiser(exported).network.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_imagenets_config_is_that_of_guided_diffusion(capsys: pytest.CaptureFixture[str]) -> None:
    """Its second line, read: 224 pixels, purified at 256."""
    words = command(1, 1)
    with pytest.raises(SystemExit) as stop:
        main([*words[1:], "--print_config"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed.count("purified_size: 256") == 2
    assert "data_dir: IMAGENET" in printed
    torch.save(ResNet(depth=18).state_dict(), "resnet50-0676ba61.pth")
    converted(1)
