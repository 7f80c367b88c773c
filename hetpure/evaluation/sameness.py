"""Whether a defence is the same for everyone who asks it: attacker and reporter, alone or in
company, once or again, with gradients or without."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hetpure.acceleration import Asked, compiled, unaccelerated
from hetpure.attention import CONTROLS
from hetpure.defense import Defense
from hetpure.evaluation.audit import Check
from hetpure.evaluation.extent import thinned, thinned_plan
from hetpure.evaluation.protocol import Block
from hetpure.gradient_check import float64_device, in_float64
from hetpure.gradients import Execution
from hetpure.noise import BatchNoise, Noise, Purpose, Stream, attack_draw

IMAGES, STEPS = 2, 8  # in float64, of a batch and of a plan
WHO, AGAIN, COMPANY, MODE = "who asks", "repeated calls", "companions", "gradient mode"
# The largest relative difference of logits as the run computes them: the root of the precision.
TOLERANCES: dict[Asked, float] = {"float32": 3.5e-4, "bfloat16": 9e-2, "float16": 3.2e-2}


@dataclass(frozen=True)
class Disguised(BatchNoise):
    """Noise that shows another address than the one that its numbers are of."""

    numbers: BatchNoise

    def words(self, purpose: Purpose, step: int, repeat: int, count: int) -> Tensor:
        return self.numbers.words(purpose, step, repeat, count)

    def _draws(self, purpose: Purpose) -> Tensor:
        return self.numbers._draws(purpose)


def sameness(defense: Defense, block: Block, seed: int, precision: Asked) -> list[Check]:
    """Four checks, each of which fails where an answer changes with what must not matter.

    In float64, with attention's plain products and at one batch size, answers are the same bits; of
    a long plan a few steps are taken, one of every kind among them. As the run computes them, with
    all steps, logits are the same up to a tolerance.

    Args:
        defense: of a row, on the run's device.
        block: of the run's images; the first two are asked about.
        seed: of the noise.
        precision: of the diffusion network's calls.
    """
    exact = in_float64(unaccelerated(thinned(defense, thinned_plan(defense.plan, STEPS))))
    device = float64_device(block.images.device)
    images, samples = block.images[:IMAGES].to(device).double(), block.samples[:IMAGES].to(device)
    with sdpa_kernel(SDPBackend.MATH):
        bits = _answers(exact, images, samples, seed)
    size = (defense.execution.micro_batch or IMAGES) if compiled(defense) else IMAGES
    first = torch.arange(size, device=block.images.device) % len(block.images[:IMAGES])
    rounded = _answers(defense, block.images[first], block.samples[first], seed)
    checks = []
    for name, (there, here) in bits.items():
        change = _change(*rounded[name])
        same, tolerance = torch.equal(there, here), TOLERANCES[precision]
        said = (
            f"{'the same bits' if same else f'another answer (by {_change(there, here):.1e})'} in"
            f" float64 on {len(exact.plan)} of {len(defense.plan)} steps, logits {change:.1e} apart"
            f" as run (at most {tolerance:g})"
        )
        verdict: Literal["PASS", "FAIL"] = "PASS" if same and change <= tolerance else "FAIL"
        checks.append(Check(name, verdict, said))
    return checks


def _answers(
    defense: Defense, images: Tensor, samples: Tensor, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """By what must not matter: logits as they are, and as they are where it is otherwise."""
    if len(images) < 2:  # company of its own
        images, samples = torch.cat([images, 1 - images]), torch.cat([samples, samples + 1])
    noise = Noise.of(seed, Stream.REPORT)
    numbers, strangers = noise.on(samples), samples.roll(1)
    mask = defense.mask(images, samples)

    @torch.no_grad()
    def ask(images: Tensor, samples: Tensor) -> Tensor:
        logits: Tensor = defense(images, noise.on(samples), defense.mask(images, samples))
        return logits

    before = ask(images, samples)
    ask(1 - images, strangers)
    again = ask(images, samples)

    others = torch.cat([images[:1], 1 - images[1:]])
    company = ask(others, torch.cat([samples[:1], samples[1:] + 1]))

    shown = Noise(seed, *[attack_draw(0, 0, 1, 1)] * 2).on(strangers)
    disguised = Disguised(seed, strangers, shown.forward, shown.reverse, numbers)
    placed = (
        mask if defense.attention_mask.placement in CONTROLS else defense.mask(images, strangers)
    )
    with torch.no_grad():
        asked_by_attack = defense(images, disguised, placed)

    with torch.enable_grad():
        how = Execution("checkpoint", micro_batch=defense.execution.micro_batch)
        differentiated = defense(images.clone().requires_grad_(), numbers, mask, how).detach()
    return {
        WHO: (before, asked_by_attack),
        AGAIN: (before, again),
        COMPANY: (before[:1], company[:1]),
        MODE: (before, differentiated),
    }


def _change(before: Tensor, after: Tensor) -> float:
    """The relative difference of logits."""
    return float((after - before).norm() / before.norm().clamp(min=1e-12))
