"""The official AutoAttack: its noise, what it cannot know, and that it leaves no trace."""

import sys
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hetpure.attacks.attack import Addresses, check_candidates
from hetpure.attacks.autoattack import AutoAttack
from hetpure.attacks.library_model import LibraryModel, Listener
from hetpure.attention import AttentionMask
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import FieldError, InputError
from hetpure.noise import Noise, Stream, attack_draw
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from hetpure.samplers import DDPM
from tests.hetpure.attacks.defenses import ADDRESSES, LABELS, NOISE, SAMPLES, Spy, linear, target_of

FEW = ["apgd-ce", "fab-t", "square"]
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


class Toy(nn.Module):
    """A network (B, C, H, W) -> (B, 4) from a function of the flat images."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images.flatten(1))


def toy(function: Any) -> Defense:
    return Defense(Classifier(Toy(function), num_classes=4, mean=[0.0], std=[1.0]))


def weights(classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(classes, 64, generator=generator, dtype=torch.float64)


WEIGHTS = weights(4).T


def small(**settings: Any) -> AutoAttack:
    budget = {"steps": 3, "eot_samples": 2, "square_queries": 5, "epsilon": 0.05}
    return AutoAttack(**{"version": "rand", **budget, **settings})


def predicted(defense: Defense, images: Tensor) -> Tensor:
    """What the defence answers with the noise that it runs with, (B,)."""
    return defense(images, NOISE.on(SAMPLES)).argmax(1)


def test_noise_is_addressed_by_place_and_call(
    smooth_classifier: Classifier, denoiser: Denoiser, images: Tensor
) -> None:
    """The library hands on some of the images only, and does not say which. No two calls share a
    draw, nor two places a sample id."""
    defense = Spy(
        smooth_classifier, UniformPurifier(strength=0.01, steps=3, sampler=DDPM()), denoiser
    )
    labels = predicted(defense, images)
    labels[0] = (labels[0] + 1) % 4  # wrong from the start: never attacked
    defense.calls.clear()
    addresses = Addresses(SAMPLES, NOISE, member=3)
    candidates = small(epsilon=1e-4)(target_of(defense, images, labels, addresses))
    assert torch.equal(candidates[0, 0], images[0])
    assert {len(call.images) for call in defense.calls} >= {3, 4}
    for number, call in enumerate(defense.calls):
        noise = call.noise
        assert noise.samples.tolist() == [31, 32, 33, 34][: len(call.images)]
        for stream in (noise.forward[:, 0], noise.reverse[:, 0]):
            assert (stream == Stream.ATTACK).all()
        for draw in (noise.forward[:, 1], noise.reverse[:, 1]):
            assert (draw == attack_draw(3, 0, 0, number).index).all()


def test_sample_ids_wrap_around(images: Tensor) -> None:
    defense = Spy(linear(weights(4)))
    addresses = replace(ADDRESSES, samples=SAMPLES * 0 + 2**32 - 2)
    model = LibraryModel(target_of(defense, images, LABELS, addresses))
    assert model(images[:0]).shape == (0, 4)
    model(images[:3].float())
    assert defense.calls[0].noise.samples.tolist() == [2**32 - 2, 2**32 - 1, 0]


@pytest.mark.parametrize(
    ("known", "placement", "words"),
    [
        (("forward",), "attended", "noise that the attacker knows"),
        ((), "random", "goes by sample ids"),
        ((), "shifted", "goes by sample ids"),
    ],
)
def test_what_belongs_to_an_image_is_refused(
    known: Any,
    placement: Any,
    words: str,
    classifier: Classifier,
    denoiser: Denoiser,
    images: Tensor,
) -> None:
    mask = AttentionMask(threshold=0.5, placement=placement)
    defense = Defense(classifier, HeterogeneousPurifier(steps=3), denoiser, mask)
    target = target_of(defense, images, LABELS, Addresses(SAMPLES, NOISE, known))
    with pytest.raises(InputError, match=f"{words}.*: take AutoEOT") as error:
        small()(target)
    assert "\n" not in str(error.value)


def test_standard_is_for_deterministic_defenses(
    classifier: Classifier, denoiser: Denoiser, images: Tensor
) -> None:
    defense = Defense(classifier, UniformPurifier(steps=3), denoiser)
    with pytest.raises(FieldError, match="AutoAttack.version is standard.* make it rand, or take"):
        small(version="standard")(target_of(defense, images))


def test_the_mask_is_that_of_the_images_asked_about(
    classifier: Classifier, denoiser: Denoiser, images: Tensor
) -> None:
    defense = Spy(classifier, HeterogeneousPurifier(steps=3), denoiser)
    labels = predicted(defense, images)
    defense.calls.clear()
    small(steps=1)(target_of(defense, images, labels))
    for call in defense.calls:
        assert call.mask is not None
        assert torch.equal(call.mask, defense.mask(call.images, call.noise.samples))


def broken(flat: Tensor) -> Tensor:
    raise ZeroDivisionError("the defence's own")


def test_traces_and_generators_are_left_as_they_were(
    smooth_classifier: Classifier, images: Tensor, capsys: Any
) -> None:
    """The library ends tracing and seeds the global generator; also where it fails half-way."""

    def trace(frame: Any, event: str, argument: Any) -> None:
        return None

    defense = Defense(smooth_classifier)
    labels = predicted(defense, images)
    before, state = sys.gettrace(), torch.get_rng_state()
    sys.settrace(trace)
    try:
        first = small()(target_of(defense, images, labels))
        with pytest.raises(ZeroDivisionError, match="the defence's own"):
            small()(target_of(toy(broken), images, labels))
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(small()(target_of(defense, images, labels)), first)
    assert capsys.readouterr().out == ""


def test_the_seed_is_the_noises(smooth_classifier: Classifier, images: Tensor) -> None:
    defense = Defense(smooth_classifier)
    labels = predicted(defense, images)
    attack = small(epsilon=0.3)
    first = attack(target_of(defense, images, labels))
    addresses = replace(ADDRESSES, noise=Noise.of(8, Stream.DW_BOX))
    assert not torch.equal(first, attack(target_of(defense, images, labels, addresses)))


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_it_finds_is_in_the_ball_and_wrong(
    norm: str, dtype: torch.dtype, smooth_classifier: Classifier, images: Tensor
) -> None:
    """What it does not find is the image itself."""
    defense = Defense(smooth_classifier.to(dtype))
    images = images.to(dtype)
    labels = predicted(defense, images)
    epsilon = 0.03 if norm == "linf" else 0.25
    attack = small(version="standard", epsilon=epsilon, norm=norm, steps=10, square_queries=30)
    candidates = attack(target_of(defense, images, labels))
    assert candidates.shape == (1, *images.shape)
    assert candidates.dtype == dtype
    check_candidates(candidates, images, SAMPLES, attack.threat)
    wrong = predicted(defense, candidates[0]) != labels
    moved = (candidates[0] != images).flatten(1).any(1)
    assert torch.equal(moved, wrong)
    assert 0 < wrong.sum() < 4


class Infinite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor) -> Tensor:
        return flat.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


CALLS = count()


@pytest.mark.parametrize(
    ("function", "version", "message"),
    [
        (lambda x: x @ WEIGHTS * torch.nan, "rand", "defence answers holds NaN"),
        (lambda x: Infinite.apply(x) @ WEIGHTS, "rand", "the gradient holds NaN"),
        (lambda x: x @ WEIGHTS + next(CALLS) * torch.eye(4)[0], "standard", "randomized defense"),
        (lambda x: (x @ WEIGHTS).softmax(1), "standard", "be sure that the logits are used"),
    ],
    ids=["nan", "infinite slope", "random", "probabilities"],
)
def test_a_defence_that_it_cannot_attack(
    function: Any, version: Any, message: str, images: Tensor
) -> None:
    """One that draws noise and says that it draws none, too."""
    labels = (images.flatten(1) @ WEIGHTS).argmax(1)
    with pytest.raises(InputError, match=message) as error:
        small(version=version, epsilon=0.001)(target_of(toy(function), images, labels))
    assert "\n" not in str(error.value)


def test_other_warnings_are_passed_on() -> None:
    with pytest.warns(UserWarning, match="^AutoAttack: Square has decreased it.$"):
        Listener().warning("Square has decreased it. See flags_doc.md for details.")


@pytest.mark.parametrize(
    ("version", "classes", "ran", "without"),
    [
        ("standard", 2, FEW, "apgd-t, which needs 4 classes"),
        ("standard", 3, FEW, "apgd-t, which needs 4 classes"),
        ("standard", 4, ["apgd-ce", "apgd-t", *FEW[1:]], ""),
        ("rand", 2, ["apgd-ce"], "apgd-dlr, which needs 3 classes"),
        ("rand", 4, ["apgd-ce", "apgd-dlr"], ""),
    ],
)
def test_few_classes(
    version: Any, classes: int, ran: list[str], without: str, images: Tensor
) -> None:
    defense = Defense(linear(weights(classes)))
    attack = small(version=version, epsilon=0.3)
    assert list(attack.parts(classes)) == ran
    notes = [f"autoattack_{version}_linf: without {without}"] if without else []
    assert attack.notes(classes) == notes
    labels = predicted(defense, images)
    candidates = attack(target_of(defense, images, labels))
    assert (predicted(defense, candidates[0]) != labels).all()
