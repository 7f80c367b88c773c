"""The gradient certificate of a whole defence, on a slice of the run's own images."""

import torch
from torch import Tensor, nn

from hetpure.defense import Defense
from hetpure.gradients import Certificate, Policy, certify
from hetpure.noise import Noise, Purpose, Stream

IMAGES, DIRECTIONS = 2, 3


def certify_defense(
    defense: Defense, images: Tensor, samples: Tensor, seed: int, *, bound: float
) -> Certificate:
    """Certifies the policy in use on the first images (B, C, H, W), pixel [0, 1].

    The scalar is a random weighting of the logits: unlike a cross-entropy it stays well
    conditioned where the classifier is sure. Images are moved into the interior of [0, 1] and
    the mask is held fixed.
    """
    images = 0.1 + 0.8 * images[:IMAGES].detach().cpu().double()
    samples = samples[:IMAGES].cpu()
    classifier = defense.classifier
    classes = classifier.num_classes
    rows = Noise.of(seed, Stream.PROBE).on(samples)
    weights = rows.normal(Purpose.START, torch.empty(len(images), classes, dtype=torch.float64))
    directions = torch.stack(
        [rows.normal(Purpose.START, images, step=k) for k in range(1, DIRECTIONS + 1)]
    )
    directions = directions / directions.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1, 1)
    device = next(classifier.parameters()).device
    dtype = next(classifier.parameters()).dtype
    mask = defense.mask(images.to(device, dtype), samples.to(device))
    fixed = None if mask is None else mask.cpu().double()

    def loss(module: nn.Module, point: Tensor, policy: Policy) -> Tensor:
        logits: Tensor = module(point, rows, fixed, policy)
        return (weights * logits).sum()

    return certify(defense, loss, images, directions, defense.policy, bound=bound)
