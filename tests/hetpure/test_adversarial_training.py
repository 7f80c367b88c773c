"""Adversarial training against closed forms and the published loops, and what it must not touch."""

from math import log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.adversarial_training import (
    AdversarialTraining,
    adversarial_loss,
    divergence,
    perturb,
)
from hetpure.classifiers import Classifier
from hetpure.noise import BatchNoise, Noise, Purpose, Stream

SAMPLES, LABELS = torch.tensor([31, 7, 100, 5]), torch.tensor([0, 1, 1, 0])
EPSILON = {"linf": 0.1, "l2": 0.8}
norms = pytest.mark.parametrize("norm", ["linf", "l2"])
methods = pytest.mark.parametrize("method", ["pgd", "trades"])


def against(method: str = "pgd", norm: str = "linf", **changes: Any) -> AdversarialTraining:
    epsilon = EPSILON[norm]
    settings = {"epsilon": epsilon, "step_size": 0.4 * epsilon, "steps": 4, "norm": norm}
    settings["beta"] = 6.0 if method == "trades" else None
    return AdversarialTraining(**{"method": method, **settings, **changes})  # type: ignore[arg-type]


def batch_noise(samples: Tensor = SAMPLES, update: int = 3) -> BatchNoise:
    return Noise.of(7, Stream.TRAIN, update).on(samples)


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 1, 8, 8, generator=generator, dtype=torch.float64)


@pytest.fixture
def trained(classifier: Classifier) -> Classifier:
    """The WRN as an update sees it: in train mode, its weights to be learned."""
    return classifier.train().requires_grad_(True)


def size(offset: Tensor, norm: str) -> Tensor:
    return offset.flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)


def gradients(network: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters())))


def weights_and_statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@methods
@norms
def test_inside_the_ball_and_the_pixel_range(
    method: str, norm: str, trained: Classifier, images: Tensor
) -> None:
    images = images.round()  # every pixel at an end of the range
    found = perturb(trained, images, LABELS, batch_noise(), against(method, norm))
    offset = size(found - images, norm)
    assert found.min() >= 0 and found.max() <= 1
    assert (offset <= EPSILON[norm] * (1 + 1e-9)).all()
    assert (offset > 0.3 * EPSILON[norm]).all()  # and it went somewhere
    assert not found.requires_grad


@norms
def test_pgd_on_a_linear_classifier_is_known(norm: str, linear_classifier: Classifier) -> None:
    """The loss rises along one fixed direction: the maximum lies where that leaves the ball."""
    images = torch.full((4, 1, 8, 8), 0.5, dtype=torch.float64)
    weight = linear_classifier.network[1].weight
    away = (weight[1 - LABELS] - weight[LABELS]).reshape(-1, 1, 8, 8)
    unit = away.sign() if norm == "linf" else away / size(away, norm).reshape(-1, 1, 1, 1)
    found = perturb(linear_classifier, images, LABELS, batch_noise(), against(norm=norm, steps=100))
    torch.testing.assert_close(found, images + EPSILON[norm] * unit, rtol=0, atol=1e-6)


def test_trades_perturbs_as_published(classifier: Classifier, images: Tensor) -> None:
    """The loop of the authors' code (github.com/yaodongyu/TRADES, trades.py), from our start."""
    step, epsilon = 0.04, 0.1
    moved = images + 0.001 * batch_noise().normal(Purpose.START, images)
    for _ in range(4):
        moved.requires_grad_()
        clean = F.softmax(classifier(images), dim=1)
        loss = F.kl_div(F.log_softmax(classifier(moved), dim=1), clean, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = moved.detach() + step * gradient.sign()
        moved = torch.min(torch.max(moved, images - epsilon), images + epsilon).clamp(0, 1)
    found = perturb(classifier, images, LABELS, batch_noise(), against("trades"))
    torch.testing.assert_close(found, moved, rtol=0, atol=1e-12)


@methods
@norms
def test_the_inner_loop_leaves_the_network_alone(
    method: str, norm: str, trained: Classifier, images: Tensor
) -> None:
    frozen = next(part for part in trained.modules() if isinstance(part, nn.BatchNorm2d)).eval()
    before = weights_and_statistics(trained)
    seen: list[bool] = []
    hook = trained.register_forward_pre_hook(
        lambda network, _: seen.append(any(part.training for part in network.modules()))
    )
    perturb(trained, images, LABELS, batch_noise(), against(method, norm))
    hook.remove()
    assert seen == [False] * (4 if method == "pgd" else 5)
    assert all(parameter.grad is None for parameter in trained.parameters())
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert trained.training and not frozen.training


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@methods
def test_an_update_has_the_gradient_of_the_outer_loss_alone(
    method: str, autocast: bool, trained: Classifier, images: Tensor
) -> None:
    """Also under autocast, which keeps the weights cast in the inner loop for the outer one."""
    trained, images = trained.float(), images.float()
    attack, before = against(method), weights_and_statistics(trained)

    def low_precision() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=autocast)

    with low_precision():
        loss = adversarial_loss(trained, images, LABELS, batch_noise(), attack)
    loss.backward()
    trained.load_state_dict(before)
    with low_precision():
        moved = perturb(trained, images, LABELS, batch_noise(), attack)
    with low_precision():
        if method == "pgd":
            outer = F.cross_entropy(trained(moved), LABELS)
        else:
            clean = trained(images)
            outer = F.cross_entropy(clean, LABELS) + 6 * divergence(clean, trained(moved)).mean()
    expected = gradients(trained, outer)
    assert torch.equal(loss, outer)
    for parameter, gradient in zip(trained.parameters(), expected, strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)


def test_the_divergence_of_logits_by_hand() -> None:
    """KL((1/4, 3/4) || (1/2, 1/2)): the clean prediction comes first; a common shift is nothing."""
    clean = torch.tensor([[0.0, log(3)], [5.0, 5 + log(3)]])
    adversarial = torch.tensor([[0.0, 0.0], [0.0, log(3)]])
    expected = torch.tensor([0.25 * log(0.5) + 0.75 * log(1.5), 0.0])
    torch.testing.assert_close(divergence(clean, adversarial), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "attack",
    [against("pgd", epsilon=0.0), against("pgd", "l2", epsilon=0.0), against("trades", beta=0.0)],
    ids=["epsilon 0", "epsilon 0, l2", "beta 0"],
)
def test_degenerate_cases_are_clean_training(
    attack: AdversarialTraining, trained: Classifier, images: Tensor
) -> None:
    """Loss, gradients and batch norm's statistics, bit for bit."""
    before = weights_and_statistics(trained)
    clean = F.cross_entropy(trained(images), LABELS, label_smoothing=0.1)
    expected, statistics = gradients(trained, clean), weights_and_statistics(trained)
    trained.load_state_dict(before)
    found = adversarial_loss(trained, images, LABELS, batch_noise(), attack, label_smoothing=0.1)
    assert torch.equal(found, clean)
    for mine, theirs in zip(gradients(trained, found), expected, strict=True):
        assert torch.equal(mine, theirs)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, statistics[name]), name


@methods
@norms
def test_an_image_is_perturbed_alike_in_every_batch(
    method: str, norm: str, smooth_classifier: Classifier, images: Tensor
) -> None:
    attack = against(method, norm)

    def on(index: list[int], update: int = 3) -> Tensor:
        kept = torch.tensor(index)
        noise = batch_noise(SAMPLES[kept], update)
        return perturb(smooth_classifier, images[kept], LABELS[kept], noise, attack)

    whole = on([0, 1, 2, 3])
    parts = torch.cat([on([2]), on([3, 0, 1])])[[2, 3, 0, 1]]
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-9)
    assert not torch.allclose(on([0, 1, 2, 3], update=4), whole)
