"""Published diffusion networks: converted, they compute what the official code computes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.schedule import Level
from hetpure.weights import load_denoiser
from hetpure.weights.checkpoint import without_wrappers
from hetpure.weights.convert import convert
from hetpure.weights.diffusion import meta_network
from hetpure.weights.formats import DiffusionWeights, Hints
from hetpure.weights.song_formats import read_edm, read_score_sde
from hetpure.weights.unet_formats import read_ho, read_openai
from tests.hetpure.networks import cosine_schedule
from tests.hetpure.weights.files import edm_snapshot
from tests.published import (
    Reference,
    published_map,
    published_state,
    reference,
)

GUIDED, IMPROVED = Hints(16, 16, "linear", 1000), Hints(16, 16, "squaredcos_cap_v2", 4000)
# Of each reference: what the file does not say, and the names of its input, times and output.
REFERENCES: dict[str, tuple[Hints, tuple[str, str, str]]] = {
    "ddpm_ho": (Hints(16), ("x", "timesteps", "output")),
    "guided_diffusion_uncond": (GUIDED, ("x", "timesteps", "output")),
    "improved_diffusion_uncond": (IMPROVED, ("x", "timesteps", "output")),
    "score_sde_ddpmpp_vp": (Hints(16), ("x", "labels", "output")),
    "edm_ddpmpp_uncond": (Hints(), ("network_x", "c_noise", "network_output")),
    "edm_ddpmpp_cond": (Hints(), ("network_x", "c_noise", "network_output")),
}
READERS: dict[str, Callable[[Any, Hints], DiffusionWeights | None]] = {
    "ddpm_ho_cifar10_svhn": read_ho,
    "guided_diffusion_256x256_uncond": read_openai,
    "improved_diffusion_cifar10_uncond": read_openai,
    "score_sde_cifar10_ddpmpp_continuous": read_score_sde,
    "score_sde_cifar10_ddpmpp_deep_continuous": read_score_sde,
    "edm_cifar10_uncond_vp": read_edm,
    "edm_cifar10_cond_vp": read_edm,
}


def on_disk(name: str, official: Reference, path: Path) -> Path:
    """The reduced network in the nesting of the published file."""
    weights = official.weights
    wrapped = {f"module.{key}": value for key, value in weights.items()}
    if name == "edm_ddpmpp_uncond":
        return edm_snapshot(weights, path)
    content: Any = weights
    if name == "ddpm_ho":  # as for SVHN
        content = [wrapped, {"state": {}, "param_groups": []}, 12, 3456]
    if name == "score_sde_ddpmpp_vp":
        average = [value for key, value in weights.items() if key != "sigmas"]
        raw = {key: torch.zeros_like(value) for key, value in wrapped.items()}
        ema = {"decay": 0.9999, "num_updates": 5, "shadow_params": average}
        content = {"optimizer": {"state": {}}, "model": raw, "ema": ema, "step": 5}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module", params=REFERENCES)
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Reference, Denoiser]:
    """(name, what the official code computed, the converted network)."""
    name, folder = request.param, tmp_path_factory.mktemp("converted")
    official = reference(name)
    path = on_disk(name, official, folder / "published")
    convert(path, folder / "out", REFERENCES[name][0])
    return name, official, load_denoiser(folder / "out")


def ask(denoiser: Denoiser, x: Tensor, times: Tensor, *labels: Tensor) -> Tensor:
    output = denoiser.network(x, times, *labels)
    found: Tensor = output if isinstance(output, Tensor) else output.sample
    return found


def asked(name: str, official: Reference) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    x, times, output = (official.values[key] for key in REFERENCES[name][1])
    labels = [official.values["class_labels"]] if "class_labels" in official.values else []
    return x, times, output[:, :3], labels  # of six channels the last three are a variance


@torch.no_grad()
def test_it_computes_what_the_official_code_does(
    converted: tuple[str, Reference, Denoiser],
) -> None:
    name, official, denoiser = converted
    x, times, output, labels = asked(name, official)
    assert output.std() > 0.1
    assert (ask(denoiser, x, times, *labels) - output).abs().max() < 1e-5


@torch.no_grad()
def test_edms_preconditioning_is_the_official_one(tmp_path: Path) -> None:
    """D(x; sigma) of EDMPrecond, at any sigma, from the whole denoiser."""
    official = reference("edm_ddpmpp_uncond")
    convert(on_disk("edm_ddpmpp_uncond", official, tmp_path / "edm.pkl"), tmp_path / "out")
    denoiser = load_denoiser(tmp_path / "out")
    sigma = official.values["sigma"].reshape(-1, 1, 1, 1)
    signal = (1 + sigma**2) ** -0.5
    level = Level(signal, sigma * signal, sigma.flatten())
    x0, _ = denoiser.predict(signal * official.values["x"], level)
    assert (x0 - official.values["denoised"]).abs().max() < 1e-5


@torch.no_grad()
def test_score_sdes_network_at_the_index_itself() -> None:
    """What HetPure's published code tells it."""
    official = reference("score_sde_ddpmpp_vp")
    found = read_score_sde(official.weights, Hints(16))
    assert found is not None
    network = meta_network(found.network, found.config).to_empty(device="cpu")
    network.load_state_dict(found.state)
    output = network.eval()(official.values["x"], official.values["labels_integer"])
    assert (output - official.values["output_integer"]).abs().max() < 1e-5


def published(name: str) -> dict[str, Tensor]:
    """The published file's tensors by name, without their memory."""
    state = without_wrappers(published_state(name))
    quarter = torch.tensor(0.25)
    return {
        key: quarter.expand(value.shape) if key.endswith("resample_filter") else value
        for key, value in state.items()
    }


@pytest.mark.parametrize("name", READERS)
def test_published_sizes_map_without_a_rest(name: str) -> None:
    found = READERS[name](published(name), Hints())
    assert found is not None
    wanted = meta_network(found.network, found.config).state_dict()
    assert {key: value.shape for key, value in found.state.items()} == {
        key: value.shape for key, value in wanted.items()
    }


@pytest.mark.parametrize(
    "name", [name for name in READERS if "edm" not in name and "p_c" not in name]
)
def test_names_and_settings_are_those_of_the_published_maps(name: str) -> None:
    """Name by name, with the settings that are known to be exact."""
    found, expected = READERS[name](published(name), Hints()), published_map(name)
    assert found is not None
    entries = {entry[0]: tuple(entry[1]) for entry in expected["entries"]}
    assert {key: tuple(value.shape) for key, value in found.state.items()} == entries
    shared = found.config.keys() & expected["config"].keys()
    assert {key: found.config[key] for key in shared} == {
        key: expected["config"][key] for key in shared
    }
    if found.network == "UNet2DModel":
        assert expected["config"].keys() <= found.config.keys()


@pytest.mark.parametrize("name", ["score_sde_cifar10_ddpmpp_deep_continuous"])
def test_a_list_of_parameters_is_known_by_its_order(name: str) -> None:
    state = published(name)
    parameters = [value for key, value in state.items() if key != "sigmas"]
    assert len(parameters) == 956
    named, listed = read_score_sde(state, Hints()), read_score_sde(parameters, Hints())
    assert named is not None
    assert listed is not None
    assert listed.config == named.config
    assert {k: v.shape for k, v in listed.state.items()} == {
        k: v.shape for k, v in named.state.items()
    }
    # ADBM's files end in an embedding of classes that is not used.
    with_classes = read_score_sde([*parameters, torch.zeros(10, 512)], Hints())
    assert with_classes is not None
    assert with_classes.config == named.config


def test_the_average_is_taken_by_its_order_not_the_raw_weights(tmp_path: Path) -> None:
    """The raw weights of the reference's file are zeros."""
    official = reference("score_sde_ddpmpp_vp")
    path = on_disk("score_sde_ddpmpp_vp", official, tmp_path / "checkpoint_8.pth")
    found = convert(path, tmp_path / "out", Hints(16))
    assert any("'ema'" in line for line in found.remarks)
    first = load_denoiser(tmp_path / "out").network.map_layer0.weight  # type: ignore[union-attr]
    assert torch.equal(first, official.weights["all_modules.0.weight"])  # type: ignore[arg-type]


def changed(name: str, change: Callable[[dict[str, Tensor]], object]) -> dict[str, Tensor]:
    state = dict(reference(name).weights)
    change(state)
    return state


@pytest.mark.parametrize(
    ("name", "change", "hints", "says"),
    [
        (
            "guided_diffusion_uncond",
            lambda s: None,
            Hints(16),
            "head_channels, beta_schedule, steps",
        ),
        ("improved_diffusion_uncond", lambda s: None, Hints(16, 16, "linear"), "give its steps"),
        (
            "guided_diffusion_uncond",
            lambda s: None,
            Hints(16, 48, "linear", 1000),
            "no heads of 48",
        ),
        ("guided_diffusion_uncond", lambda s: None, Hints(17, 16, "linear", 1000), "be halved"),
        ("ddpm_ho", lambda s: None, Hints(16, 16), "head_channels is no choice"),
        ("ddpm_ho", lambda s: None, Hints(16, pairing="table"), "pairing is no choice"),
        ("edm_ddpmpp_uncond", lambda s: None, Hints(16), "sample_size is no choice"),
        (
            "guided_diffusion_uncond",
            lambda s: s.update({"label_emb.weight": torch.zeros(10, 128)}),
            GUIDED,
            "unconditional",
        ),
        (
            "guided_diffusion_uncond",
            lambda s: s.update({"input_blocks.1.0.h_upd.weight": torch.zeros(1)}),
            GUIDED,
            "h_upd",
        ),
        ("guided_diffusion_uncond", lambda s: s.pop("out.0.bias"), GUIDED, "do not fit"),
        ("ddpm_ho", lambda s: s.pop("up.0.block.0.norm1.bias"), Hints(16), "do not fit"),
        ("ddpm_ho", lambda s: s.update({"mid.x": torch.zeros(1)}), Hints(16), "has no mid.x"),
        (
            "score_sde_ddpmpp_vp",
            lambda s: s.update({"all_modules.30.W": torch.zeros(1)}),
            Hints(16),
            "not like DDPM",
        ),
        (
            "score_sde_ddpmpp_vp",
            lambda s: s.pop("all_modules.4.Conv_0.bias"),
            Hints(16),
            "not like",
        ),
        (
            "edm_ddpmpp_uncond",
            lambda s: s.update(
                {"model.enc.8x8_down.conv0.resample_filter": torch.ones(1, 1, 4, 4)}
            ),
            Hints(),
            "2x2 means",
        ),
        ("edm_ddpmpp_uncond", lambda s: s.pop("model.dec.4x4_in0.qkv.bias"), Hints(), "do not fit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_file_does_not_say_or_says_otherwise_is_refused(
    tmp_path: Path,
    name: str,
    change: Callable[[dict[str, Tensor]], object],
    hints: Hints,
    says: str,
) -> None:
    torch.save(changed(name, change), tmp_path / "file.pt")
    with pytest.raises(InputError, match=re.escape(says)):
        convert(tmp_path / "file.pt", tmp_path / "out", hints)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors[:-3], "no order that is known"),
        (lambda tensors: tensors[1:], "no order that is known"),
        (lambda tensors: [], "no order that is known"),
    ],
    ids=["short", "shifted", "empty"],
)
def test_an_average_that_does_not_fit_is_not_replaced_by_raw_weights(
    tmp_path: Path, change: Callable[[list[Tensor]], list[Tensor]], says: str
) -> None:
    """They lie beside it, under the official names."""
    weights = reference("score_sde_ddpmpp_vp").weights
    average = [value for name, value in weights.items() if name != "sigmas"]
    content = {"model": weights, "ema": {"shadow_params": change(average)}}
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError, match=rf"{says}.*'ema', 'model'"):
        convert(tmp_path / "file.pth", tmp_path / "out", Hints(16))
    convert(tmp_path / "file.pth", tmp_path / "out", Hints(16), part="model")


def test_improved_diffusion_is_told_times_up_to_1000(tmp_path: Path) -> None:
    """Of 4,000 steps: published networks were trained with rescale_timesteps."""
    found = read_openai(published("improved_diffusion_cifar10_uncond"), Hints())
    assert found is not None
    official = reference("improved_diffusion_uncond")
    convert(on_disk("improved", official, tmp_path / "file"), tmp_path / "out", IMPROVED)
    schedule = load_denoiser(tmp_path / "out").schedule
    assert len(schedule) == found.scheduler["num_train_timesteps"] == 4000
    assert (schedule.time(400), schedule.time(3999)) == (100, 999.75)
    expected = cosine_schedule(4000).alphas_cumprod
    assert schedule.alphas_cumprod == pytest.approx(expected, rel=1e-4)
    with_1000 = Hints(16, 16, "linear", 1000)
    convert(tmp_path / "file", tmp_path / "other", with_1000)
    assert load_denoiser(tmp_path / "other").schedule.time(999) == 999


@pytest.mark.parametrize(
    "change",
    [
        lambda state: dict(list(state.items())[: len(state) // 3]),
        lambda state: {k: v.flatten() for k, v in state.items()},
        lambda state: {k: v.reshape(-1)[0] for k, v in state.items()},
        lambda state: {k: v.to_sparse() if v.ndim == 2 else v for k, v in state.items()},
        lambda state: {k: v.to(torch.int8) for k, v in state.items()},
        lambda state: {k: v.to(torch.complex64) for k, v in state.items()},
        lambda state: {k: v * torch.nan for k, v in state.items()},
        lambda state: {k: v.to("meta") for k, v in state.items()},
    ],
    ids=["partial", "flat", "scalars", "sparse", "int8", "complex", "NaN", "meta"],
)
@pytest.mark.parametrize("name", ["guided_diffusion_uncond", "score_sde_ddpmpp_vp"])
def test_tensors_that_are_none_of_a_network_are_refused(
    tmp_path: Path, name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """In one line, and nothing is left behind."""
    torch.save(change(reference(name).weights), tmp_path / "file.pt")
    with pytest.raises(InputError) as refused:
        convert(tmp_path / "file.pt", tmp_path / "out", REFERENCES[name][0])
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


def test_low_precision_is_written_in_float32(tmp_path: Path) -> None:
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        state = {key: value.to(kind) for key, value in reference("ddpm_ho").weights.items()}
        torch.save(state, tmp_path / "file.pt")
        convert(tmp_path / "file.pt", tmp_path / str(kind), Hints(16))
        weights = load_denoiser(tmp_path / str(kind)).network.state_dict()
        assert {value.dtype for value in weights.values()} == {torch.float32}
        assert torch.equal(weights["conv_out.bias"], state["conv_out.bias"].float())
