"""Attacks and searches for perturbations ask for the gradient in the input alone: no layer computes
one in its weights, and nothing is written into them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hetpure.addt import Batch, RankGaussian
from hetpure.adversarial_training import AdversarialTraining, perturb
from hetpure.attention import AttentionMask
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser, to_model
from hetpure.expectation import Query, expected_gradient
from hetpure.gradients import Execution
from hetpure.noise import Noise, Stream
from hetpure.purifiers import HeterogeneousPurifier, Purifier, UniformPurifier
from tests.hetpure.networks import rows

LABELS = torch.arange(4)
SAMPLES = torch.tensor([31, 7, 100, 5])


class Asked(TorchDispatchMode):
    """Keeps which backward passes of layers compute a gradient of the input, and which one of a
    weight or a bias: of convolutions and normalisations by their output masks, of linear layers by
    their products. A product without a weight in it is that of an input and of what came back."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.weights = {
            weight.untyped_storage().data_ptr()
            for module in modules
            for weight in module.parameters()
        }
        self.of_inputs: list[str] = []
        self.of_weights: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        given = dict(zip((each.name for each in func._schema.arguments), args, strict=False))
        wanted = {**given, **(kwargs or {})}.get("output_mask")
        if wanted is not None:
            self.of_inputs += [name] * wanted[0]
            self.of_weights += [name] * any(wanted[1:])
        if name == "mm":
            known = any(each.untyped_storage().data_ptr() in self.weights for each in args)
            (self.of_inputs if known else self.of_weights).append(name)
        return func(*args, **(kwargs or {}))


def none_left(*modules: nn.Module) -> bool:
    return all(weight.grad is None for module in modules for weight in module.parameters())


def test_weight_gradients_are_seen(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """Of every kind of layer that has weights here, where a backward pass is for all leaves."""
    defense = Defense(classifier, UniformPurifier(strength=0.1, steps=20), denoiser, policy="tape")
    defense.requires_grad_(True)
    with Asked(defense) as asked:
        logits = defense(images.clone().requires_grad_(), Noise.of(0, Stream.PROBE).on(SAMPLES))
        logits.square().sum().backward()
    kinds = {"convolution_backward", "native_group_norm_backward", "native_batch_norm_backward"}
    assert set(asked.of_weights) == {*kinds, "mm"} == set(asked.of_inputs)
    assert not none_left(defense)


PURIFIERS: dict[str, Purifier] = {
    "uniform": UniformPurifier(strength=0.1, steps=20),
    "heterogeneous": HeterogeneousPurifier(steps=20, t_large=0.2, t_small=0.1),
}


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("purifier", PURIFIERS.values(), ids=PURIFIERS.keys())
@pytest.mark.parametrize(
    "execution",
    [Execution("tape"), Execution("checkpoint"), Execution("hybrid", taped_steps=2)],
    ids=lambda how: how.policy,
)
def test_an_attack_asks_for_the_input_gradient_alone(
    execution: Execution,
    purifier: Purifier,
    soft: bool,
    denoiser: Denoiser,
    classifier: Classifier,
    images: Tensor,
) -> None:
    """Networks that come from a training have weights with gradients: a defence freezes them."""
    denoiser.requires_grad_(True)
    classifier.requires_grad_(True)
    mask = AttentionMask(threshold=0.5)
    defense = Defense(classifier, purifier, denoiser, mask, policy=execution)
    point = images.requires_grad_(soft)
    noises = [Noise.of(0, Stream.PROBE, k) for k in range(2)]
    with Asked(defense) as asked:
        query = Query(point, SAMPLES, defense.mask(point, SAMPLES, soft=soft), noises)
        expected_gradient(defense, query, lambda logits, index: logits.square().sum(1))
    assert {"convolution_backward", "mm"} <= set(asked.of_inputs)
    assert not asked.of_weights and none_left(defense)


def test_a_defence_that_is_not_frozen_is_refused(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """Its layers would keep their inputs for gradients that nobody asks for."""
    defense = Defense(classifier, PURIFIERS["uniform"], denoiser)
    next(classifier.parameters()).requires_grad_(True)
    query = Query(images, SAMPLES, None, [Noise.of(0, Stream.PROBE)])
    with pytest.raises(AssertionError, match="weights are frozen"):
        expected_gradient(defense, query, lambda logits, index: logits.sum(1))


@pytest.mark.parametrize("objective", ["classification", "denoising"])
def test_addts_search_asks_for_the_input_gradient_alone(
    objective: Any, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """In a training, where the network's weights do have gradients."""
    denoiser.requires_grad_(True)
    noise, x0 = rows(4), to_model(images)
    level = denoiser.schedule.level(torch.tensor([300, 50, 400, 700]), x0)
    search = RankGaussian(steps=2, objective=objective)
    with Asked(denoiser, classifier) as asked:
        search.find(denoiser, classifier, Batch(x0, LABELS, level, noise))
    assert asked.of_inputs and not asked.of_weights
    assert none_left(denoiser, classifier)


@pytest.mark.parametrize("against", [AdversarialTraining(steps=2)], ids=["pgd"])
def test_adversarial_trainings_search_does_so_too(
    against: AdversarialTraining, classifier: Classifier, images: Tensor
) -> None:
    network = classifier.train().requires_grad_(True)
    with Asked(network) as asked:
        perturb(network, images, LABELS, rows(4), against)
    assert asked.of_inputs and not asked.of_weights and none_left(network)
