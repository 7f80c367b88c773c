"""A picture of one purification: the image, where it is attended, its states, the result."""

from collections.abc import Sequence

import torch

from hetpure.defense import Defense, resized
from hetpure.denoiser import to_pixels
from hetpure.noise import BatchNoise
from hetpure.purifiers import HeterogeneousPurifier, heterogeneous_state
from hetpure.report.figure import Panel
from hetpure.schedule import NO_NOISE

STATES = 6


@torch.no_grad()
def purification_panels(
    defense: Defense, images: torch.Tensor, noise: BatchNoise, classes: Sequence[str]
) -> list[Panel]:
    """Panels for images (B, C, H, W) in pixel [0, 1]: input; mask and x(t_l, t_s) where the
    purifier is heterogeneous; at most six of the states between; the purified image."""
    purifier, denoiser = defense.purifier, defense.denoiser
    assert purifier is not None and denoiser is not None, "a plain classifier purifies nothing"

    def answers(pixels: torch.Tensor) -> list[str]:
        return [classes[k] for k in defense.classifier(pixels).argmax(1)]

    rows = len(images)
    panels = [Panel("image", images, answers(images))]
    known, mask = defense.resized(images), defense.mask(images, noise.samples)
    if mask is not None:
        shares = [f"{share:.0%} attended" for share in mask.flatten(1).mean(1).tolist()]
        panels.append(Panel("attention", mask, shares))
    if isinstance(purifier, HeterogeneousPurifier) and mask is not None:
        large, small = (denoiser.schedule.index(s) for s in (purifier.t_large, purifier.t_small))
        both = heterogeneous_state(denoiser, known, mask, noise, large, small)
        label = [f"t_l = {large}, t_s = {small}"] * rows
        panels.append(Panel("x(t_l, t_s)", to_pixels(both).clamp(0, 1), label))
    state = purifier.start(denoiser, known, noise)
    states = [(defense.plan[0].at, state)]
    for step in defense.plan:
        state = purifier.advance(denoiser, step, state, known, mask, noise)
        states.append((step.to, state))
    inner = states[:-1]
    shown = sorted({round(k * (len(inner) - 1) / (STATES - 1)) for k in range(STATES)})
    for position in shown:
        index, held = inner[position]
        title = "start" if position == 0 else f"step {position}"
        again = position > 0 and defense.plan[position - 1].at == index
        below = f"resampled, t = {index}" if again else f"t = {index}"
        if index == NO_NOISE:
            below = "an image"
        panels.append(Panel(title, to_pixels(held).clamp(0, 1), [below] * rows))
    purified = resized(purifier.finish(state), images.shape[-2:])
    panels.append(Panel("purified", purified, answers(purified)))
    return panels
