"""Images that are purified at another size than their own, as ImageNet's 224 at 256."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.attacks.diffattack import Deviated
from hetpure.attention import AttentionMask, attention_map, captured, normalise
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.extent import thinned, thinned_plan
from hetpure.gradients import Execution
from hetpure.noise import noise_for
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier

PURIFIER = HeterogeneousPurifier(t_large=0.2, t_small=0.1, steps=20, resample_jump=10)


def images(size: int = 12) -> Tensor:
    torch.manual_seed(3)
    return torch.rand(2, 1, size, size, dtype=torch.float64)


def bilinear(pixels: Tensor, size: int) -> Tensor:
    return F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)


def sized(classifier: Classifier, denoiser: Denoiser, policy: str = "tape") -> Defense:
    mask = AttentionMask(selection="area", threshold=0.25)
    return Defense(classifier, PURIFIER, denoiser, mask, Execution(policy), 8)  # type: ignore[arg-type]


def test_it_is_the_purifier_between_two_resizings(
    classifier: Classifier, denoiser: Denoiser
) -> None:
    """By hand: 12 -> 8, purified with the mask of the classifier's view of 12 pixels, -> 12."""
    defense, pixels = sized(classifier, denoiser), images()
    noise = noise_for(pixels)
    mask = defense.mask(pixels)
    assert mask is not None
    assert mask.shape == (2, 1, 8, 8)
    assert mask.mean().item() == 0.25
    inner = Defense(classifier, PURIFIER, denoiser, policy="tape")
    by_hand = bilinear(inner.purify(bilinear(pixels, 8), noise, mask), 12)
    assert torch.equal(defense.purify(pixels, noise), by_hand)
    assert torch.equal(defense(pixels, noise), classifier(by_hand))


def test_the_mask_is_of_the_activations_at_the_purifiers_size(
    classifier: Classifier, denoiser: Denoiser
) -> None:
    """Not the mask of the image resized: an area of the smaller grid is selected."""
    one = AttentionMask(blocks=("relu",))
    pixels = images()
    with captured(classifier.network, ["relu"]) as activations:
        classifier(pixels)
    large = F.interpolate(attention_map(activations["relu"])[:, None], (8, 8), mode="bilinear")
    expected = normalise(large[:, 0], "minmax")
    assert torch.equal(one.scores(classifier, pixels, (8, 8)), expected)
    points = images().requires_grad_()
    soft = sized(classifier, denoiser).mask(points, soft=True)
    assert soft is not None
    assert soft.shape == (2, 1, 8, 8)
    assert torch.autograd.grad(soft.sum(), points)[0].abs().sum() > 0


def test_the_gradient_is_that_of_finite_differences(
    smooth_classifier: Classifier, denoiser: Denoiser
) -> None:
    """Through both resizings and the whole purification."""
    defense = Defense(
        smooth_classifier,
        UniformPurifier(strength=0.1, steps=20),
        denoiser,
        policy="tape",
        purified_size=12,
    )
    torch.manual_seed(5)
    x = (0.3 + 0.4 * torch.rand(1, 1, 8, 8, dtype=torch.float64)).requires_grad_()
    noise = noise_for(x)
    direction = torch.randn_like(x)
    slope = float((torch.autograd.grad(defense(x, noise)[:, 1].sum(), x)[0] * direction).sum())
    with torch.no_grad():
        up, down = (defense(x + sign * 1e-5 * direction, noise)[:, 1] for sign in (1, -1))
    assert float((up - down) / 2e-5) == pytest.approx(slope, rel=1e-6)


def test_other_users_of_a_defence_resize_too(classifier: Classifier, denoiser: Denoiser) -> None:
    """DiffAttack's answers are the defence's; a footprint is of the purifier's size."""
    defense, pixels = sized(classifier, denoiser), images()
    deviated = Deviated(defense)
    noise = noise_for(pixels)
    torch.testing.assert_close(deviated(pixels, noise)[:, :-1], defense(pixels, noise))
    assert defense.footprint(pixels).state == 8 * 8 * 8
    straight = defense.purify(pixels, noise, policy="bpda")
    assert torch.equal(straight, defense.purify(pixels, noise))


def test_a_thinned_defence_purifies_at_the_same_size(
    classifier: Classifier, denoiser: Denoiser
) -> None:
    """So that the gradient check is of the resizings too, and of the mask at that size."""
    defense = sized(classifier, denoiser)
    short = thinned(defense, thinned_plan(defense.plan, 2))
    assert len(short.plan) < len(defense.plan)
    assert short.purified_size == 8
    assert short.purify(images(), noise_for(images())).shape == images().shape


def test_a_size_without_a_purifier_is_refused(classifier: Classifier, denoiser: Denoiser) -> None:
    with pytest.raises(InputError, match="purified_size 8"):
        Defense(classifier, purified_size=8)
    with pytest.raises(InputError, match="purified_size 0"):
        Defense(classifier, PURIFIER, denoiser, purified_size=0)
