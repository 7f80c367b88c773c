"""The figure of a run: what the attack did to images and what each defence made of it."""

import textwrap
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hetpure.defense import Defense
from hetpure.evaluation.protocol import Block
from hetpure.noise import Noise, Stream
from hetpure.report.figure import Panel

ROWS = 6


@torch.no_grad()
def outcome_panels(
    defenses: Mapping[str, Defense],
    block: Block,
    attacked: Mapping[str, Tensor],
    names: Sequence[str],
    seed: int,
) -> list[Panel]:
    """The first images clean, then for each defence with a purifier: adversarial, mask, purified.
    `attacked` holds the adversarial images of each, `names` are those of the classes."""
    images, samples = block.images[:ROWS], block.samples[:ROWS]
    noise = Noise.of(seed, Stream.REPORT).on(samples)
    panels = [Panel("clean", images, [names[label] for label in block.labels[:ROWS].tolist()])]
    for name, images_of in attacked.items():
        defense = defenses[name]
        if not defense.stochastic:
            continue
        label = textwrap.fill(name, 16)
        adversarial = images_of[: len(images)]
        plain = defense.classifier(adversarial).argmax(1).tolist()
        mask = defense.mask(adversarial, samples)
        purified = defense.purify(adversarial, noise, mask)
        answers = defense.classifier(purified).argmax(1).tolist()
        panels.append(Panel(f"{label}\nadversarial", adversarial, [names[k] for k in plain]))
        if mask is not None:
            shares = [f"{100 * share:.0f}%" for share in mask.flatten(1).mean(1).tolist()]
            panels.append(Panel(f"{label}\nmask", mask, shares))
        panels.append(Panel(f"{label}\npurified", purified, [names[k] for k in answers]))
    return panels
