"""The same expected gradient as others' published programs compute it, told from their description:
one image and one noise draw after another."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hetpure.defense import Defense
from hetpure.expectation import Criterion, Query
from hetpure.noise import BatchNoise
from hetpure.purifiers import Step

Purify = Callable[[Defense, Tensor, BatchNoise, Tensor | None], Tensor]


def looped_gradient(defense: Defense, query: Query, criterion: Criterion, purify: Purify) -> Tensor:
    """Gradient (B, C, H, W) of the expected loss, summed over single (image, draw) purifications:
    that of `expected_gradient` to rounding."""
    total = torch.zeros_like(query.images)
    for entry, image, noise, mask in query.pieces(1):
        index = entry % len(total)
        point = image.detach().requires_grad_()
        logits = defense.classifier(purify(defense, point, noise, mask))
        loss = criterion(logits, index).sum() / len(query.noises)
        total[index] += torch.autograd.grad(loss, point)[0]
    return total


def purify_taped(defense: Defense, image: Tensor, noise: BatchNoise, mask: Tensor | None) -> Tensor:
    """All activations kept."""
    return _purify(defense, image, noise, mask, lambda advance, state, image: advance(state, image))


def purify_checkpointed(
    defense: Defense, image: Tensor, noise: BatchNoise, mask: Tensor | None
) -> Tensor:
    """Every step a checkpoint of its own, called once more on the way back."""

    def step(advance: Callable[..., Tensor], state: Tensor, image: Tensor) -> Tensor:
        after: Tensor = checkpoint(advance, state, image, use_reentrant=False)
        return after

    return _purify(defense, image, noise, mask, step)


def _purify(
    defense: Defense,
    image: Tensor,
    noise: BatchNoise,
    mask: Tensor | None,
    call: Callable[[Callable[..., Tensor], Tensor, Tensor], Tensor],
) -> Tensor:
    purifier, denoiser = defense.purifier, defense.denoiser
    assert purifier is not None and denoiser is not None and defense.purified_size is None
    state = purifier.start(denoiser, image, noise)
    for step in defense.plan:

        def advance(state: Tensor, image: Tensor, step: Step = step) -> Tensor:
            return purifier.advance(denoiser, step, state, image, mask, noise)

        state = call(advance, state, image)
    return purifier.finish(state)
