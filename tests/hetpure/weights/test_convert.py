"""`hetpure convert`: from a published file to a folder that the scripts read."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file

from hetpure.__main__ import main
from hetpure.classifiers import WideResNet
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.schedule import linear_schedule
from hetpure.weights import load_classifier, load_denoiser
from hetpure.weights.check import denoising
from hetpure.weights.convert import CustomNetwork, convert
from hetpure.weights.formats import Hints
from hetpure.weights.schedulers import load_scheduler
from tests.hetpure.networks import tiny_unet
from tests.published import published_state, reference


@pytest.fixture
def ho(tmp_path: Path) -> Path:
    path = tmp_path / "ema_diffusion.ckpt"
    torch.save(reference("ddpm_ho").weights, path)
    return path


@pytest.fixture
def score_sde(tmp_path: Path) -> Path:
    path = tmp_path / "net.pth"
    torch.save(reference("score_sde_ddpmpp_vp").weights, path)
    return path


def test_a_diffusion_on_the_command_line(
    ho: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["convert", str(ho), str(out), "--sample_size=16", "--check"])
    said = capsys.readouterr().out
    assert "Ho's DDPM" in said
    assert said.count("predicted noise of mean") == 3
    assert f"--model.denoisers.ddpm {out}" in said
    pipeline = DDPMPipeline.from_pretrained(str(out), local_files_only=True)
    assert isinstance(pipeline.scheduler, DDPMScheduler)
    weights = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_the_folder_says_where_it_is_from(ho: Path, tmp_path: Path) -> None:
    convert(ho, tmp_path / "out", Hints(16))
    origin = json.loads((tmp_path / "out" / "source.json").read_text())
    digest = hashlib.sha256(ho.read_bytes()).hexdigest()
    assert (origin["file"], origin["sha256"]) == (ho.name, digest)
    card = (tmp_path / "out" / "README.md").read_text()
    assert digest in card
    assert "Licence" in card
    assert all(remark in card for remark in origin["remarks"])
    torch.save(reference("edm_ddpmpp_uncond").weights, tmp_path / "edm.pt")
    remarks = convert(tmp_path / "edm.pt", tmp_path / "edm").remarks
    assert "CC BY-NC-SA 4.0" in remarks[-1]
    with pytest.raises(InputError, match="a diffusion has none"):
        convert(ho, tmp_path / "other", Hints(16), mean=[0.5], std=[0.5])


@pytest.mark.parametrize(
    ("pairing", "sigma"), [("network", 0.3405), ("table", 0.3423), ("diffpure", 0.3436)]
)
def test_which_pairing_of_time_and_level_is_used_is_said(
    score_sde: Path, tmp_path: Path, pairing: str, sigma: float
) -> None:
    found = convert(score_sde, tmp_path / "out", Hints(16, pairing=pairing))  # type: ignore[arg-type]
    (said,) = (line for line in found.remarks if "time and noise level" in line)
    assert ("HetPure" in said, "DiffPure" in said) == (pairing == "table", pairing == "diffpure")
    denoiser = load_denoiser(tmp_path / "out")
    assert denoiser.schedule.sigma(100) == pytest.approx(sigma, abs=5e-5)
    assert isinstance(load_scheduler(tmp_path / "out"), DDPMScheduler) == (pairing == "table")


def test_check_sees_a_wrong_map() -> None:
    """A network that gives the noisy image nearly predicts the noise where there is much of it; one
    that gives it upside down does not."""

    class Given(torch.nn.Module):
        config: ClassVar = {"in_channels": 3, "sample_size": 16}

        def __init__(self, upside_down: bool) -> None:
            super().__init__()
            self.upside_down = upside_down

        def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            return x.flip(2) if self.upside_down else x

    for upside_down in (False, True):
        most = denoising(Denoiser(Given(upside_down), linear_schedule()))[2]
        alike = float(most.rpartition(" ")[2])
        assert (alike > 0.99) != upside_down
        assert (abs(alike) < 0.1) == upside_down


def classifier_file(path: Path) -> WideResNet:
    torch.manual_seed(0)
    network = WideResNet(depth=10, widen_factor=1, num_classes=10, in_channels=3).eval()
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 5}, path)
    return network


def test_a_classifier_and_its_normalisation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Networks of this layout are published with and without one: it has to be given."""
    network = classifier_file(tmp_path / "Standard.pt")
    with pytest.raises(InputError, match="give --mean and --std"):
        convert(tmp_path / "Standard.pt", tmp_path / "out")
    mean, std = [0.49, 0.48, 0.45], [0.2, 0.2, 0.2]
    given = ["--mean", *map(str, mean), "--std", *map(str, std), "--check"]
    main(["convert", str(tmp_path / "Standard.pt"), str(tmp_path / "out"), *given])
    assert "logits" in capsys.readouterr().out
    pixels = torch.rand(2, 3, 32, 32)
    expected = network((pixels - torch.tensor(mean).reshape(3, 1, 1)) / 0.2)
    torch.testing.assert_close(load_classifier(tmp_path / "out")(pixels), expected)
    with pytest.raises(InputError, match="mean and std"):
        convert(tmp_path / "Standard.pt", tmp_path / "other", mean=[0.5], std=[0.5])
    with pytest.raises(InputError, match="pairing is no choice"):
        convert(tmp_path / "Standard.pt", tmp_path / "other", Hints(pairing="table"))


def test_a_part_can_be_chosen(tmp_path: Path) -> None:
    weights = reference("ddpm_ho").weights
    other = {name: value + 1 for name, value in weights.items()}
    torch.save({"model": other, "ema": weights, "note": {"x": 1}}, tmp_path / "both.pt")
    key = "conv_out.bias"
    for part, expected in ((None, weights), ("ema", weights), ("model", other)):
        out = tmp_path / str(part)
        found = convert(tmp_path / "both.pt", out, Hints(16), part=part)
        assert ("not taken: 'model'; --part takes another" in found.remarks) == (part is None)
        assert torch.equal(load_denoiser(out).network.state_dict()[key], expected[key])
    with pytest.raises(InputError, match="no part 'state'.*'ema', 'model'"):
        convert(tmp_path / "both.pt", tmp_path / "out", Hints(16), part="state")


def test_what_cannot_be_converted_says_why(ho: Path, tmp_path: Path) -> None:
    save_file({"some.weight": torch.ones(2)}, tmp_path / "unknown.safetensors")
    with pytest.raises(InputError, match=r"no known format.*some\.weight.*known are"):
        convert(tmp_path / "unknown.safetensors", tmp_path / "out")
    torch.save(tiny_unet().state_dict(), tmp_path / "unet.bin")
    with pytest.raises(InputError, match=r"diffusers' names.*config\.json"):
        convert(tmp_path / "unet.bin", tmp_path / "out")
    with pytest.raises(InputError, match="is a folder"):
        convert(tmp_path, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        convert(ho, tmp_path / "full", Hints(16))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


MEASURE = """
import resource, sys
from pathlib import Path
from hetpure.weights.convert import CustomNetwork, convert
convert(Path(sys.argv[1]), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_the_published_checkpoint_needs_less_than_2_5_gigabytes(tmp_path: Path) -> None:
    """A file of checkpoint_8.pth's 1.7 GB: weights, their average, and Adam's two moments."""
    state = {
        name: torch.zeros(value.shape, dtype=value.dtype)
        for name, value in published_state("score_sde_cifar10_ddpmpp_deep_continuous").items()
    }
    parameters = [value for name, value in state.items() if name != "sigmas"]
    moments = {
        number: {"step": 1, "exp_avg": value.clone(), "exp_avg_sq": value.clone()}
        for number, value in enumerate(parameters)
    }
    content = {
        "optimizer": {"state": moments, "param_groups": []},
        "model": {f"module.{name}": value for name, value in state.items()},
        "ema": {"decay": 0.9999, "shadow_params": [value.clone() for value in parameters]},
        "step": 8,
    }
    path = tmp_path / "checkpoint_8.pth"
    torch.save(content, path)
    assert 1.70e9 < path.stat().st_size < 1.71e9
    del content, moments, state, parameters
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(done.stdout.split()[-1]) * 1024
    print(f"peak memory {peak / 1e9:.2f} GB")
    assert peak < 2.5e9


def test_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its import path; weights that do not fit it are refused."""
    (tmp_path / "my_nets.py").write_text(OWN_NET)
    monkeypatch.syspath_prepend(tmp_path)
    state = {"conv.weight": torch.rand(4, 3, 1, 1), "fc.weight": torch.rand(5, 4)}
    torch.save({"model": state, "epoch": 7}, tmp_path / "mine.pt")
    options = ["--architecture=my_nets.Net", '--network={"width": 4}', "--num_classes=5"]
    scaling = ["--mean", "0.5", "0.5", "0.5", "--std", "0.2", "0.2", "0.2"]
    blocks = ["--attention_blocks", "conv"]
    arguments = ["convert", str(tmp_path / "mine.pt"), str(tmp_path / "out")]
    main([*arguments, *options, *scaling, *blocks, "--check"])
    assert "(2, 5) logits" in capsys.readouterr().out
    classifier = load_classifier(tmp_path / "out")
    assert classifier.attention_blocks == ("conv",)
    assert torch.equal(classifier.network.state_dict()["fc.weight"], state["fc.weight"])
    arguments[2] = str(tmp_path / "other")
    for wrong, says in (
        ([*options[:2], "--num_classes=5"], "needs --mean and --std"),
        ([*options[:2], *scaling], "--num_classes"),
        (["--num_classes=5", *scaling], "belong to --architecture"),
        ([options[0], '--network={"width": 5}', options[2], *scaling], "do not fit"),
    ):
        with pytest.raises(InputError, match=says):
            main([*arguments, *wrong])


OWN_NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1, bias=False)
        self.fc = nn.Linear(width, 5, bias=False)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))
"""


def test_a_network_of_ones_own_in_wrappers_and_beside_other_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All under `model`, which is its own name; or behind numbers that are tensors too."""
    (tmp_path / "my_wrapped.py").write_text(OWN_NET + WRAPPED)
    monkeypatch.syspath_prepend(tmp_path)
    state = {"model.conv.weight": torch.rand(4, 3, 1, 1), "model.fc.weight": torch.rand(5, 4)}
    own = CustomNetwork("my_wrapped.Wrapped", 5)
    scaling = {"mean": [0.5] * 3, "std": [0.5] * 3}
    wrapped = {f"module.{name}": value for name, value in state.items()}
    for number, content in enumerate(
        (
            state,
            {"epoch": torch.tensor(3), "state_dict": state},
            {"model": wrapped, "best": torch.tensor(0.5)},
        )
    ):
        torch.save(content, tmp_path / "mine.pt")
        if number == 2:  # without the wrapper's name, and so without its own
            own = CustomNetwork("my_wrapped.Net", 5, {"width": 4})
        convert(tmp_path / "mine.pt", tmp_path / f"out{number}", custom=own, **scaling)


WRAPPED = """
class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Net(4)

    def forward(self, x):
        return self.model(x)
"""


def test_a_target_that_cannot_be_written_says_so(ho: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for target in (tmp_path / "file" / "out", tmp_path / ("x" * 300), Path("/proc/out")):
        with pytest.raises(InputError, match="cannot be written"):
            convert(ho, target, Hints(16))


def test_sizes_are_sizes() -> None:
    for wrong in ({"sample_size": 0}, {"head_channels": -16}, {"steps": 0}):
        with pytest.raises(InputError, match="must be >= 1"):
            Hints(**wrong)  # type: ignore[arg-type]
