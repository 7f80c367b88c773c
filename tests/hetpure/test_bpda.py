"""BPDA is PGD with the classifier's gradient at the purified images."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.attacks import PGD
from hetpure.attacks.attack import Addresses
from hetpure.attacks.bpda import BPDA
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.noise import Noise, Stream, attack_draw
from hetpure.purifiers import UniformPurifier

SAMPLES, LABELS = torch.tensor([31, 7, 100, 5]), torch.tensor([0, 1, 1, 0])
ADDRESSES = Addresses(SAMPLES, Noise.of(7, Stream.REPORT))


def test_a_step_goes_along_the_classifiers_gradient_at_the_purified_images(
    denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """Averaged over draws, and without a backward pass through the purifier."""
    defense = Defense(smooth_classifier, UniformPurifier(steps=20), denoiser)
    attack = BPDA(
        norm="l2", epsilon=9.0, step_size=0.05, steps=1, eot_samples=3, random_start=False
    )
    gradient = torch.zeros_like(images)
    for k in range(3):
        noise = ADDRESSES.noise.redraw(attack_draw(0, 0, 0, k)).on(SAMPLES)
        purified = defense.purify(images, noise).requires_grad_()
        loss = F.cross_entropy(smooth_classifier(purified), LABELS, reduction="sum")
        gradient += torch.autograd.grad(loss, purified)[0]
    with count_network_calls(defense) as calls:
        last = attack(defense, images, LABELS, ADDRESSES)[0]
    unit = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close((last - images) / 0.05, unit, rtol=0, atol=1e-10)
    assert calls.rows == 4 * attack.purifications(defense) * defense.network_calls


def test_it_says_what_it_is(linear_classifier: Classifier, images: Tensor) -> None:
    attack = BPDA(epsilon=0.1, steps=3)
    assert (attack.name, replace(attack, norm="l2").name) == ("bpda_linf", "bpda_l2")
    assert "gradient bpda" in attack.describe()
    assert any("approximation, bpda" in said for said in attack.weaker_than_full())
    exact = replace(attack, approximation="none")
    assert exact.name == "pgd_linf", "it is PGD then"
    plain = Defense(linear_classifier)
    assert torch.equal(
        attack(plain, images, LABELS, ADDRESSES),
        PGD(epsilon=0.1, steps=3)(plain, images, LABELS, ADDRESSES),
    ), "nothing is approximated where there is no purifier"
