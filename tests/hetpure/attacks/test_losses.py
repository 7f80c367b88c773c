"""Losses of attacks: by hand, where they are flat, and towards targets."""

import pytest
import torch
from torch import Tensor

from hetpure.attacks import PGD
from hetpure.attacks.losses import (
    criterion,
    cross_entropy,
    difference_of_logits_ratio,
    likely_targets,
    margin,
)
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.expectation import Query, expected_gradient
from hetpure.noise import Noise, Stream
from tests.hetpure.attacks.defenses import SAMPLES, target_of

NOISE = Noise.of(7, Stream.PROBE)
LOGITS = torch.tensor([[2.0, 1.0, -1.0, 0.5], [0.0, 3.0, 1.0, 2.5]], dtype=torch.float64)


def test_losses_by_hand() -> None:
    labels, targets = torch.tensor([0, 1]), torch.tensor([2, 0])
    log = LOGITS.log_softmax(-1)
    torch.testing.assert_close(cross_entropy(LOGITS, labels), -log[[0, 1], [0, 1]])
    assert margin(LOGITS, labels).tolist() == [-1.0, -0.5]
    assert difference_of_logits_ratio(LOGITS, labels).tolist() == [-1 / 1.5, -0.5 / 2.0]
    torch.testing.assert_close(cross_entropy(LOGITS, labels, targets), log[[0, 1], [2, 0]])
    assert margin(LOGITS, labels, targets).tolist() == [-3.0, -3.0]
    # z_(1) - (z_(3) + z_(4)) / 2 is 2 - (.5 - 1) / 2 and 3 - (1 + 0) / 2.
    ratio = difference_of_logits_ratio(LOGITS, labels, targets)
    assert ratio.tolist() == pytest.approx([-3 / 2.25, -3 / 2.5])
    for loss in (difference_of_logits_ratio, margin):
        wrong = loss(LOGITS, torch.tensor([1, 0]))
        assert (wrong > 0).all(), "above 0 the answer is wrong"
    scaled = difference_of_logits_ratio(100 * LOGITS + 3, labels)
    torch.testing.assert_close(scaled, difference_of_logits_ratio(LOGITS, labels))


def test_a_sure_float32_answer_keeps_its_gradient() -> None:
    """In float32 p - 1 is 0 where logits are 25 apart: the label would drop out."""
    logits = torch.tensor([[25.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, torch.tensor([0])).sum(), logits)
    assert gradient.all() and torch.allclose(gradient.flip(1), -gradient)


@pytest.mark.parametrize(
    ("classes", "targets", "falls"), [(2, 0, 1), (3, 0, 0), (3, 1, 1), (4, 1, 0)]
)
def test_dlr_falls_back_to_the_margin_and_says_so(classes: int, targets: int, falls: int) -> None:
    logits = LOGITS[:, :classes]
    labels, goals = torch.tensor([0, 1]), torch.tensor([1, 0])
    given = [labels, goals][: 1 + bool(targets)]
    losses = criterion("dlr", *given)(logits, torch.tensor([0, 1]))
    fallback = criterion("margin", *given)(logits, torch.tensor([0, 1]))
    assert torch.equal(losses, fallback) == bool(falls)
    notes = PGD(loss="dlr", targets=targets).notes(classes)
    assert len(notes) == falls
    assert all("margin was used" in note and str(classes) in note for note in notes)
    assert PGD(loss="margin").notes(2) == []


def test_a_loss_that_is_done_with_an_image_may_be_flat(images: Tensor) -> None:
    """Where the label ranks third DLR is 1, whatever the image: that image is broken already. With
    the label still predicted a zero gradient stays an error."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4).double())
    with torch.no_grad():
        network[1].bias.copy_(torch.tensor([0.0, 50.0, 100.0, -50.0]))
    defense = Defense(Classifier(network, num_classes=4, mean=[0.0], std=[1.0]).double())
    third = torch.zeros(4, dtype=torch.long)
    attack = PGD(epsilon=0.1, steps=2, step_size=0.05, loss="dlr")
    assert attack(target_of(defense, images, third)).isfinite().all()
    query = Query(images, SAMPLES, None, [NOISE])
    flat = criterion("dlr", third)
    assert not expected_gradient(defense, query, flat, labels=third).gradient.any()
    for labels in (None, torch.full((4,), 2)):
        with pytest.raises(InputError, match="zero for 4 of 4 images"):
            expected_gradient(defense, query, flat, labels=labels)


def test_targets_are_the_likeliest_wrong_classes() -> None:
    logits = torch.stack([LOGITS, LOGITS])
    assert likely_targets(logits, torch.tensor([0, 1]), 2).tolist() == [[1, 3], [3, 2]]
    assert likely_targets(logits, torch.tensor([3, 0]), 9).T.tolist() == [[0, 1, 2], [1, 3, 2]]
