"""A defence is its classifier after its purifier, and nothing is left behind by counting calls."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hetpure.attention import AttentionMask
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.noise import BatchNoise
from hetpure.purifiers import HeterogeneousPurifier, Purifier, UniformPurifier

UNIFORM = UniformPurifier(steps=20, strength=0.2)
HETEROGENEOUS = HeterogeneousPurifier(steps=20)
Rows = Callable[..., BatchNoise]


@pytest.mark.parametrize("purifier", [UNIFORM, HETEROGENEOUS], ids=["uniform", "heterogeneous"])
def test_logits_are_those_of_the_purified_image(
    purifier: Purifier, denoiser: Denoiser, classifier: Classifier, images: Tensor, rows: Rows
) -> None:
    defense, noise = Defense(classifier, purifier, denoiser), rows(0, 1, 2, 3)
    purified = defense.purify(images, noise)
    assert purified.shape == images.shape
    assert 0 <= purified.min() <= purified.max() <= 1
    assert not torch.isclose(purified, images).all()
    assert torch.equal(defense(images, noise), classifier(purified))
    assert not torch.isclose(defense(images, rows(0, 1, 2, 3, draw=1)), classifier(purified)).all()
    assert defense.stochastic


def test_without_purifier_it_is_the_classifier(
    classifier: Classifier, images: Tensor, rows: Rows
) -> None:
    defense = Defense(classifier)
    assert torch.equal(defense(images, rows(0, 1, 2, 3)), classifier(images))
    assert not defense.stochastic
    assert defense.mask(images) is None
    with count_network_calls(defense) as counter:
        defense(images, rows(0, 1, 2, 3))
    assert counter == [] and defense.network_calls == 0


def test_purifier_and_denoiser_come_together(denoiser: Denoiser, classifier: Classifier) -> None:
    with pytest.raises(InputError, match="needs a denoiser"):
        Defense(classifier, purifier=UNIFORM)
    with pytest.raises(InputError, match="a denoiser a purifier"):
        Defense(classifier, denoiser=denoiser)


def test_mask_is_that_of_the_image_to_purify(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, rows: Rows
) -> None:
    """By default from this very image, with the rule the defence was given."""
    rule, noise = AttentionMask(selection="area", threshold=0.3), rows(0, 1, 2, 3)
    defense = Defense(classifier, HETEROGENEOUS, denoiser, rule)
    other = images.flip(-1)
    mask = defense.mask(other)
    assert mask is not None
    assert torch.equal(mask, rule(classifier, other))
    assert not torch.equal(mask, rule(classifier, images))
    assert torch.equal(defense(other, noise), defense(other, noise, mask))


def test_given_mask_is_honoured(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, half_mask: Tensor, rows: Rows
) -> None:
    """An attack that freezes the mask of the clean image depends on it; a uniform purifier has
    no use for one."""
    noise = rows(0, 1, 2, 3)
    defense = Defense(classifier, HETEROGENEOUS, denoiser)
    results = [defense.purify(images, noise, m) for m in (None, half_mask, 1 - half_mask)]
    for one, another in ((0, 1), (0, 2), (1, 2)):
        assert not torch.isclose(results[one], results[another]).all()
    uniform = Defense(classifier, UNIFORM, denoiser)
    assert uniform.mask(images) is None
    assert torch.equal(uniform(images, noise, half_mask), uniform(images, noise))


def test_models_are_frozen(denoiser: Denoiser, classifier: Classifier) -> None:
    denoiser.train().requires_grad_()
    defense = Defense(classifier, UNIFORM, denoiser)
    assert not any(parameter.requires_grad for parameter in defense.parameters())
    assert not any(module.training for module in defense.modules())
