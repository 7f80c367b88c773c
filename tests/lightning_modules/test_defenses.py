"""Rows of an evaluation: one setting changed at a time, and what cannot be changed."""

from dataclasses import replace
from typing import Any

import pytest

from hetpure.attention import AttentionMask
from hetpure.errors import InputError
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from hetpure.samplers import DDIM, DDPM
from hetpure.weights import load_classifier, load_denoiser
from lightning_modules.defenses import DefenseConfig, Sweep

BASE = DefenseConfig(HeterogeneousPurifier(steps=20), "ddpm", AttentionMask(threshold=0.5))
DEFENSES = {"plain": DefenseConfig(), "base": BASE}
DDPM_PATH = "hetpure.samplers.DDPM"


def rows(vary: dict[str, list[Any]], base: str = "base") -> dict[str, DefenseConfig]:
    return Sweep(base, vary).rows(DEFENSES)


def test_one_row_for_each_value_that_differs_from_the_base() -> None:
    found = rows({"mask.threshold": [0.3, 0.5, 0.7], "purifier.t_large": [0.3, 0.2]})
    assert list(found) == ["mask.threshold=0.3", "mask.threshold=0.7", "purifier.t_large=0.3"]
    assert found["mask.threshold=0.7"] == DefenseConfig(
        HeterogeneousPurifier(steps=20), "ddpm", AttentionMask(threshold=0.7)
    )
    assert found["purifier.t_large=0.3"] == DefenseConfig(
        HeterogeneousPurifier(steps=20, t_large=0.3), "ddpm", AttentionMask(threshold=0.5)
    )
    fresh = DefenseConfig(HeterogeneousPurifier(steps=20), "ddpm", AttentionMask(threshold=0.5))
    assert fresh == BASE, "the base stays as it was"


@pytest.mark.parametrize(
    ("path", "raw", "name", "expected"),
    [
        ("mask.threshold", "0.3", "0.3", 0.3),
        ("mask.power", 4, "4", 4.0),
        ("mask.root", True, "True", True),
        ("mask.blocks", ["a.relu1", "b"], "a.relu1+b", ("a.relu1", "b")),
        ("mask.normalisation", "softmax", "softmax", "softmax"),
        ("mask", {"threshold": 0.3}, "AttentionMask(threshold=0.3)", AttentionMask(threshold=0.3)),
        ("denoiser", "addt", "addt", "addt"),
        ("gradient", "tape", "tape", "tape"),
        ("purifier", None, "None", None),
        ("purifier.resampling", "none", "none", "none"),
        ("purifier.steps", "50", "50", 50),
        ("purifier.sampler.eta", 0.5, "0.5", 0.5),
        ("purifier.sampler", {"class_path": DDPM_PATH}, "DDPM", DDPM()),
        (
            "purifier.sampler",
            {"class_path": DDPM_PATH, "init_args": {"variance": "fixed_small"}},
            "DDPM(variance=fixed_small)",
            DDPM(variance="fixed_small"),
        ),
        (
            "surrogate",
            {"class_path": "hetpure.purifiers.UniformPurifier", "init_args": {"steps": 5}},
            "UniformPurifier(steps=5)",
            UniformPurifier(steps=5),
        ),
    ],
)
def test_values_are_read_as_in_a_config(path: str, raw: Any, name: str, expected: object) -> None:
    ((found, row),) = rows({path: [raw]}).items()
    assert found == f"{path}={name}"
    value: Any = row
    for part in path.split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("path", "raw", "said"),
    [
        ("nothing", 1, "no setting 'nothing' to vary, only purifier, denoiser, mask"),
        ("mask.nothing", 1, "no setting 'nothing' to vary, only blocks, power"),
        ("purifier.sampler.nothing", 1, "no setting 'nothing' to vary, only clip_x0, eta"),
        ("mask.threshold.deeper", 1, "no setting 'deeper' to vary, 0.5 has none"),
        ("surrogate.steps", 5, "no setting 'steps' to vary, None has none"),
        ("", 1, "no setting '' to vary"),
        ("mask.", 1, "no setting '' to vary, only blocks"),
        ("mask.threshold", 0, r"threshold must be in \(0, 1\], got 0"),
        ("mask.threshold", float("nan"), "threshold must be in"),
        ("mask.threshold", "8/255", "threshold cannot be '8/255'"),
        ("mask.threshold", True, "threshold cannot be True"),
        ("mask.threshold", [0.3], "threshold cannot be"),
        ("mask.threshold", None, "threshold cannot be null"),
        ("mask.root", 1, "root cannot be 1"),
        ("mask.blocks", "relu", "blocks cannot be 'relu'"),
        ("mask.selection", "volume", "selection cannot be 'volume'"),
        ("mask", 5, "mask cannot be 5"),
        ("gradient", "none", "gradient cannot be 'none'"),
        ("denoiser", 5, "denoiser cannot be 5"),
        ("purifier.steps", 20.5, "steps cannot be 20.5"),
        ("purifier.t_small", 0.3, "t_small 0.3 is above t_large 0.2"),
        ("purifier.sampler", None, "sampler cannot be null"),
        ("purifier.sampler", {"class_path": "hetpure.attacks.PGD"}, "subclass of Sampler"),
        ("purifier.sampler", {"class_path": "hetpure.samplers.Nothing"}, "'Nothing'"),
        ("purifier", {"class_path": "hetpure.purifiers.UniformPurifier",
                      "init_args": {"strength": 7}}, "strength is a fraction"),
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_named(path: str, raw: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        rows({path: [raw]})
    assert str(error.value).startswith(f"--model.sweep.vary {path}: ")


def test_a_setting_inside_nothing() -> None:
    with pytest.raises(InputError, match="no setting 't_large' to vary, None has none"):
        rows({"purifier.t_large": [0.3]}, base="plain")


def test_an_unknown_base_is_answered_with_those_there_are() -> None:
    with pytest.raises(InputError, match="'nobody' is not among the defences: plain, base"):
        rows({"mask.threshold": [0.3]}, base="nobody")


def test_equal_values_give_one_row() -> None:
    assert list(rows({"mask.power": [1, 1.0, "1", 2]})) == ["mask.power=1"]
    whole = {"class_path": DDPM_PATH, "init_args": {"clip_x0": True}}
    found = rows({"purifier.sampler": [{"class_path": DDPM_PATH}, whole]})
    assert list(found) == ["purifier.sampler=DDPM"]


def test_no_row_takes_the_name_of_another() -> None:
    defenses = DEFENSES | {"mask.threshold=0.3": DefenseConfig()}
    with pytest.raises(InputError, match="another row 'mask.threshold=0.3'"):
        Sweep("base", {"mask.threshold": [0.3]}).rows(defenses)
    with pytest.raises(InputError, match=r"another row 'mask.blocks=a\+b'"):
        rows({"mask.blocks": [["a", "b"], ["a+b"]]})


def test_a_surrogate_differs_from_the_defence_in_the_purifier_only() -> None:
    classifier, denoiser = load_classifier("fashion_mnist_wrn"), load_denoiser("fashion_mnist_ddpm")
    surrogate = UniformPurifier(steps=20, sampler=DDIM(eta=1))
    config = replace(BASE, gradient="tape")
    assert config.build(classifier, denoiser)[1] is None
    defense, attacked = replace(config, surrogate=surrogate).build(classifier, denoiser)
    assert attacked is not None
    assert (defense.purifier, attacked.purifier) == (BASE.purifier, surrogate)
    for each in (defense, attacked):
        assert (each.classifier, each.denoiser) == (classifier, denoiser)
        assert each.attention_mask == BASE.mask
    assert attacked.execution.policy == "tape"


def test_a_surrogate_needs_a_denoiser() -> None:
    classifier = load_classifier("fashion_mnist_wrn")
    with pytest.raises(InputError, match="a purifier needs a denoiser"):
        DefenseConfig(surrogate=UniformPurifier()).build(classifier, None)
