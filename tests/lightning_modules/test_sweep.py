"""Sweeps: one setting of a row changed at a time, and the ablations that are shipped."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from datamodules.fashion_mnist import FashionMNIST
from hetpure.attention import AttentionMask
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Record
from hetpure.evaluation.results import summarise
from hetpure.evaluation.rows import DefenseConfig, Row
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from hetpure.samplers import DDPM
from lightning_modules.evaluation import RobustnessEvaluation
from lightning_modules.evaluation_cli import evaluation_cli
from lightning_modules.sweep import Sweep
from tests.lightning_modules.runs import ALONE, CONFIG, ROOT, main, records, refused, results

BASE = DefenseConfig(HeterogeneousPurifier(steps=20), "ddpm", AttentionMask(threshold=0.5))
DEFENSES = {"plain": DefenseConfig(), "base": BASE}
DDPM_PATH = "hetpure.samplers.DDPM"


def rows(vary: dict[str, list[Any]], base: str = "base") -> dict[str, DefenseConfig]:
    return Sweep(base, vary).rows(DEFENSES)


def test_one_row_for_each_value_that_differs_from_the_base() -> None:
    varied = rows({"mask.threshold": [0.3, 0.5, 0.7, "0.7"], "purifier.t_large": [0.3, 0.2]})
    assert varied == {
        "mask.threshold=0.3": replace(BASE, mask=AttentionMask(threshold=0.3)),
        "mask.threshold=0.7": replace(BASE, mask=AttentionMask(threshold=0.7)),
        "purifier.t_large=0.3": replace(
            BASE, purifier=HeterogeneousPurifier(steps=20, t_large=0.3)
        ),
    }


@pytest.mark.parametrize(
    ("path", "raw", "name", "expected"),
    [
        ("mask.threshold", "0.3", "0.3", 0.3),
        ("mask.power", 4, "4", 4.0),
        ("mask.blocks", ["a.relu1", "b"], "a.relu1+b", ("a.relu1", "b")),
        ("mask", {"threshold": 0.3}, "AttentionMask(threshold=0.3)", AttentionMask(threshold=0.3)),
        ("purifier", None, "None", None),
        ("purifier.sampler", {"class_path": DDPM_PATH}, "DDPM", DDPM()),
        (
            "purifier.sampler",
            {"class_path": DDPM_PATH, "init_args": {"variance": "fixed_small"}},
            "DDPM(variance=fixed_small)",
            DDPM(variance="fixed_small"),
        ),
    ],
)
def test_values_are_read_as_in_a_config(path: str, raw: Any, name: str, expected: object) -> None:
    ((row_name, value),) = rows({path: [raw]}).items()
    assert row_name == f"{path}={name}"
    for part in path.split("."):
        value = getattr(value, part)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("path", "raw", "message"),
    [
        ("nothing", 1, "no setting 'nothing' to vary, only purifier, denoiser, mask"),
        ("purifier.sampler.nothing", 1, "no setting 'nothing' to vary, only clip_x0, eta"),
        ("mask.threshold.deeper", 1, "no setting 'deeper' to vary, 0.5 has none"),
        ("surrogate.steps", 5, "no setting 'steps' to vary, None has none"),
        ("mask.threshold", 0, r"threshold must be in \(0, 1\], got 0"),
        ("mask.threshold", "8/255", "threshold cannot be '8/255'"),
        ("mask.threshold", None, "threshold cannot be null"),
        ("mask.selection", "volume", "selection cannot be 'volume'"),
        ("mask", 5, "mask cannot be 5"),
        ("purifier.t_small", 0.3, "t_small"),
        ("purifier.sampler", {"class_path": "hetpure.attacks.PGD"}, "subclass of Sampler"),
        ("purifier.sampler", {"class_path": "hetpure.samplers.Nothing"}, "'Nothing'"),
    ],
)
def test_what_cannot_be_set_is_named(path: str, raw: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        rows({path: [raw]})
    assert str(error.value).startswith(f"sweep.vary {path}: ")


def test_no_row_takes_the_name_of_another() -> None:
    defenses = DEFENSES | {"mask.threshold=0.3": DefenseConfig()}
    with pytest.raises(InputError, match="another row 'mask.threshold=0.3'"):
        Sweep("base", {"mask.threshold": [0.3]}).rows(defenses)
    with pytest.raises(InputError, match=r"another row 'mask.blocks=a\+b'"):
        rows({"mask.blocks": [["a", "b"], ["a+b"]]})


@pytest.fixture(scope="module")
def swept(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with a sweep and a row that is attacked by a surrogate: its place and its output."""
    place, printed = tmp_path_factory.mktemp("swept"), io.StringIO()
    config = yaml.safe_load(CONFIG.format(world=world))
    defenses = config["model"]["defenses"]
    surrogate = {
        "class_path": "hetpure.purifiers.UniformPurifier",
        "init_args": {"strength": 0.05, "steps": 20},
    }
    defenses["with surrogate"] = defenses["masked"] | {"mask": {}, "surrogate": surrogate}
    config["model"]["sweep"] = {"base": "masked", "vary": {"mask.threshold": [0.3, 0.5]}}
    (place / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(place)
        main(*ALONE, "--data.limit=2")
    return place, printed.getvalue()


def test_a_sweep_adds_rows_and_its_base_is_the_baseline(swept: tuple[Path, str]) -> None:
    """Results hold the differences, paired by image, that the records say; tables show them."""
    place, printed = swept
    content = results(place)
    assert list(content["defenses"]) == ["plain", "masked", "with surrogate", "mask.threshold=0.3"]
    assert content["run"]["baseline"] == "masked"
    entries = [Record(**yaml.safe_load(line)) for line in records(place)]
    expected: Mapping[str, Any] = summarise(entries, "masked")
    for name, row in content["defenses"].items():
        assert row.get("difference") == expected[name].get("difference")
        assert ("difference" in row) == (name != "masked")
    assert "difference" in printed
    assert "mask.threshold=0.3" in (place / "runs/one/report.md").read_text()


def test_the_surrogate_is_attacked_checked_and_named(swept: tuple[Path, str]) -> None:
    """The defence: two steps of one network call each; its surrogate: one."""
    content = results(swept[0])
    row = content["defenses"]["with surrogate"]
    assert row["gradient_check"]["passed"] and row["surrogate_gradient_check"]["passed"]
    assert row["surrogate_gradient_check"]["cosine_to_exact"] < 0.999
    named = (
        "with surrogate: the attack differentiates a surrogate of 1 network calls, not the"
        " defence's 2 (UniformPurifier, not HeterogeneousPurifier); its gradient has cosine"
        f" {row['surrogate_gradient_check']['cosine_to_exact']:.3f} to the exact one"
    )
    assert named in content["weaker_than_full"]
    assert named in (swept[0] / "runs/one/report.md").read_text()
    attack = 2 * 2 * 1  # steps, EOT draws, network calls
    # Selection and report of the clean images, the null attack and two candidates; network calls.
    answers = ((2 + 2) + (2 + 2) + (2 + 2 * 2)) * 2
    assert row["cost"]["network_calls"] == 2 * (attack + answers)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ('{"base": "nobody", "vary": {}}', "'nobody' is not among the defences: plain, masked"),
        ('{"base": "masked", "vary": {"mask.threshold": 0.3}}', "sweep"),
        ('{"base": "masked", "vary": {"mask.threshold": []}}', "names no value"),
        ('{"base": "masked", "vary": {"denoiser": ["addt"]}}', "not among the denoisers (ddpm)"),
        ('{"base": "masked", "vary": {"mask.blocks": [["nowhere"]]}}', "nowhere"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_runs(
    sweep: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "--config=config.yaml", f"--model.sweep={sweep}")
    assert not Path("runs").exists()


def test_a_baseline_is_named_or_there_is_none(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluation_cli(["--config=config.yaml"]).model.config.baseline is None
    sweep = '--model.sweep={"base": "masked", "vary": {"mask.power": [1]}}'
    named = evaluation_cli(["--config=config.yaml", sweep, "--model.baseline=plain"])
    assert named.model.config.baseline == "plain"
    line = refused(capsys, "--config=config.yaml", "--model.baseline=nobody")
    assert "baseline 'nobody' is not among the defences" in line


ABLATIONS = sorted((ROOT / "configs" / "evaluate").glob("ablation_*.yaml"))


def ablation(name: str) -> RobustnessEvaluation:
    return evaluation_cli(["--config", str(ROOT / f"configs/evaluate/{name}.yaml")]).model


@pytest.mark.parametrize("path", ABLATIONS, ids=[path.stem for path in ABLATIONS])
def test_every_row_of_an_ablation_builds(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module, config = ablation(path.stem), yaml.safe_load(path.read_text())["model"]
    varied = sum(map(len, config.get("sweep", {}).get("vary", {}).values()))
    built = module.loaded.rows
    assert len(built) == len(config["defenses"]) + varied, "no value is another row's"
    assert module.config.baseline in built
    different = {repr((r.defense.purifier, r.defense.attention_mask)) for r in built.values()}
    assert len(different) == len(built) and all(row.defense.plan for row in built.values())


def masks(built: Mapping[str, Row]) -> dict[str, Tensor]:
    """By row: the masks (N, 784) of validation images."""
    data = FashionMNIST(source="packaged", test_split="validation", limit=32, batch_size=32)
    data.setup("test")
    (batch,) = data.test_dataloader()
    computed = {name: r.defense.mask(batch["image"], batch["sample"]) for name, r in built.items()}
    return {name: mask.flatten(1) for name, mask in computed.items() if mask is not None}


def test_rows_of_the_mask_ablation_differ_in_the_mask_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its controls attend to as many pixels, and to others."""
    monkeypatch.chdir(tmp_path)
    built = ablation("ablation_mask").loaded.rows
    base = built["heterogeneous 200/100"].defense
    levels = {index for step in base.plan for index in (step.at, step.to)}
    for defense in (row.defense for row in built.values()):
        assert (defense.classifier, defense.denoiser) == (base.classifier, base.denoiser)
        if isinstance(defense.purifier, UniformPurifier):
            visited = {index for step in defense.plan for index in (step.at, step.to)}
            assert visited == {index for index in levels if index <= defense.plan[0].at}
        else:
            assert defense.purifier == base.purifier
    computed = masks(built)
    assert (computed.pop("every pixel") == 1).all()
    assert list(computed) == [
        "heterogeneous 200/100", "least attended", "random pixels", "mask moved elsewhere"
    ]  # fmt: skip
    first, *controls = computed.values()
    assert all(torch.equal(control.sum(1), first.sum(1)) for control in controls)
    assert first.sum(1).min() > 0 and first.sum(1).max() < 784
    assert len({tuple(mask.flatten().tolist()) for mask in computed.values()}) == 4


def test_every_mask_of_the_attention_ablation_has_its_area(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built = ablation("ablation_attention").loaded.rows
    computed = masks(built)
    assert computed.keys() == built.keys()
    for name, mask in computed.items():
        assert (mask.sum(1) - 0.4 * 784).abs().max() <= 1, name
