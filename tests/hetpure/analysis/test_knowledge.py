"""Accuracy by what is known, sampler and steps."""

import pytest
from torch import Tensor

from hetpure.analysis import Knowledge
from hetpure.analysis.knowledge import KNOWN, sampler_name
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Block, Protocol
from hetpure.purifiers import GuidedPurifier, UniformPurifier
from hetpure.samplers import DDIM, DDPM, VPSDE
from tests.hetpure.analysis.subjects import SAMPLES, halves, pgd, subject
from tests.hetpure.attacks.defenses import LABELS


def test_knowledge_of_the_noise_that_is_drawn_counts_and_no_other() -> None:
    """The coin is reverse noise: to know the forward noise is to know nothing."""
    analysis = Knowledge()
    summary = analysis.summarise({"row": analysis.examine(*halves())})
    values = {line.quantity: line.value for line in summary.lines}
    lost = {"white box less DW-reverse": 1, "white box less DW-both": 1}
    known = {"clean": 1, "white box": 1, "DW-forward": 1, "DW-reverse": 0, "DW-both": 0}
    assert values == known | lost
    assert "; white box less DW-both 100.0 [" in summary.finding[0]
    assert {line.series for line in summary.lines} == {"as it is"}


def test_variants_of_sampler_and_grid(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    purifier = UniformPurifier(strength=0.1, steps=20, sampler=DDIM(eta=0.5))
    defense = Defense(classifier, purifier, denoiser, policy="tape")
    row = subject(defense, pgd(steps=1, eot_samples=1), protocol=Protocol(2, 1))
    analysis = Knowledge(steps=(10,))
    variants = {(name, v.defense.network_calls): v for name, v in analysis.variants(row)}
    names = ("DDIM, eta 0.5", "DDPM", "DDIM")
    assert list(variants) == [(name, calls) for name in names for calls in (1, 2)]
    assert variants["DDPM", 2].defense.groups == {"forward", "reverse"}
    assert variants["DDIM", 2].defense.groups == {"forward"}
    with count_network_calls(defense) as calls:
        (record,) = analysis.examine(row, Block(images[:1], LABELS[:1], SAMPLES[:1]))
    assert sum(calls) == analysis.work(row).calls
    of_ddim = record["variants"][-1]["right"]
    assert of_ddim["white box"] == of_ddim["DW-reverse"]
    assert of_ddim["DW-forward"] == of_ddim["DW-both"] and len(of_ddim["DW-both"]) == 1
    assert len(of_ddim["white box"]) == 2
    summary = analysis.summarise({"row": [record]})
    settings = ("clean", *KNOWN)
    for name, _ in variants:
        assert all(len(summary.of("row", setting, name)) == 2 for setting in settings)
    for name, less in (("DDPM", ["forward", "reverse", "both"]), ("DDIM", ["forward", "both"])):
        lines = [line for line in summary.lines if (line.series, line.at) == (name, 2)]
        assert [line.quantity for line in lines[len(settings) :]] == [
            f"white box less DW-{setting}" for setting in less
        ], "of reverse noise DDIM draws none"
    assert [line.at for line in summary.of("row", "white box", "DDPM")] == [1, 2]
    again = Knowledge(steps=(20, 10, 20)).variants(row)
    assert [(name, v.defense.network_calls) for name, v in again] == list(variants), "a plan once"


def test_what_it_refuses_and_how_samplers_are_called() -> None:
    with pytest.raises(InputError, match="steps"):
        Knowledge(steps=(0,))
    assert sampler_name(DDPM(variance="fixed_small")) == "DDPM, variance fixed_small"


def test_a_guided_purifier_has_its_own_sampler_alone(
    denoiser: Denoiser, classifier: Classifier
) -> None:
    purifier = GuidedPurifier(rounds=1, guidance=0.0, steps=50)
    row = subject(Defense(classifier, purifier, denoiser, policy="tape"))
    assert {name for name, _ in Knowledge(steps=(100,)).variants(row)} == {"DDPM"}


def test_an_adjoint_has_its_own_sampler_alone(denoiser: Denoiser, classifier: Classifier) -> None:
    purifier = UniformPurifier(strength=0.1, steps=20, sampler=VPSDE())
    row = subject(Defense(classifier, purifier, denoiser, policy="adjoint"))
    assert {name for name, _ in Knowledge(steps=(10,)).variants(row)} == {"VPSDE"}
