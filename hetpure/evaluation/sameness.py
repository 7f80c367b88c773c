"""Whether a defence is the same for everyone who asks it: attacker and reporter, alone or in
company, once or again, with gradients or without."""

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hetpure.acceleration import Asked, unaccelerated
from hetpure.defense import Defense
from hetpure.evaluation.audit import Check
from hetpure.evaluation.extent import thinned, thinned_plan
from hetpure.evaluation.protocol import Block
from hetpure.gradient_check import float64_device, in_float64
from hetpure.gradients import EXACT, Execution
from hetpure.noise import Address, BatchNoise, Draw, Noise, Purpose, Stream, attack_draw

IMAGES, STEPS = 2, 8  # in float64, of a batch and of a plan
DISGUISES = 8  # addresses that are shown in place of the true one
STREAMS = (Stream.SELECTION, Stream.DW_BOX)
WHO, AGAIN, COMPANY, MODE = "who asks", "repeated calls", "companions", "gradient mode"
# The largest relative difference of logits as the run computes them: the root of the precision.
TOLERANCES: dict[Asked, float] = {"float32": 3.5e-4, "bfloat16": 9e-2, "float16": 3.2e-2}


@dataclass(frozen=True)
class Disguised(BatchNoise):
    """Noise that shows another address than the one that its numbers are of."""

    numbers: BatchNoise

    def address(self, purpose: Purpose, step: int, repeat: int) -> Address:
        return self.numbers.address(purpose, step, repeat)


def sameness(defense: Defense, block: Block, seed: int, precision: Asked) -> list[Check]:
    """Four checks, each of which fails where an answer changes with what must not matter.

    In float64, with attention's plain products and at one batch size, answers are the same bits; of
    a long plan a few steps are taken, one of every kind among them. As the run computes them, with
    all steps, logits are the same up to a tolerance.

    Args:
        defense: of a row, on the run's device.
        block: of the run's images; the first two are asked about, and the ids of all are shown.
        seed: of the noise.
        precision: of the diffusion network's calls.
    """
    exact = in_float64(unaccelerated(thinned(defense, thinned_plan(defense.plan, STEPS))))
    device = float64_device(block.images.device)
    images, samples = block.images[:IMAGES].to(device).double(), block.samples[:IMAGES].to(device)
    with sdpa_kernel(SDPBackend.MATH):
        bits = _answers(exact, images, samples, block.samples, seed)
    size = defense.execution.micro_batch or IMAGES if defense.compiled else IMAGES
    first = torch.arange(size, device=block.images.device) % len(block.images[:IMAGES])
    rounded = _answers(defense, block.images[first], block.samples[first], block.samples, seed)
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
    defense: Defense, images: Tensor, samples: Tensor, ids: Tensor, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """By what must not matter: logits as they are, and as they are where it is otherwise. `ids` are
    those of strangers too."""
    if len(images) < 2:  # company of its own
        images, samples = torch.cat([images, 1 - images]), samples.repeat(2)
    noise = Noise.of(seed, Stream.REPORT)

    @torch.no_grad()
    def ask(images: Tensor, samples: Tensor) -> Tensor:
        logits: Tensor = defense(images, noise.on(samples), defense.mask(images, samples))
        return logits

    before = ask(images, samples)
    ask(1 - images, samples.roll(1))
    again = ask(images, samples)
    others = torch.cat([images[:1], 1 - images[1:]])
    strangers = ids.roll(1)[torch.arange(len(samples) - 1) % len(ids)].to(samples.device)
    company = ask(others, torch.cat([samples[:1], strangers]))

    every = torch.arange(max(DISGUISES, len(images)), device=images.device) % len(images)
    many, theirs = images[every], samples[every]
    known = ask(many, theirs)
    disguised = _disguised(noise.on(theirs), ids, seed)
    with torch.no_grad():
        mask = defense.mask(many, theirs if defense.attention_mask.control else disguised.samples)
        asked_by_others = defense(many, disguised, mask)

    with torch.enable_grad():
        how = defense.execution
        if how.policy not in EXACT:
            how = Execution("checkpoint", micro_batch=how.micro_batch)
        mask = defense.mask(images, samples)
        point = images.clone().requires_grad_()
        differentiated = defense(point, noise.on(samples), mask, how).detach()
    return {
        WHO: (known, asked_by_others),
        AGAIN: (before, again),
        COMPANY: (before[:1], company[:1]),
        MODE: (before, differentiated),
    }


def _disguised(numbers: BatchNoise, ids: Tensor, seed: int) -> Disguised:
    """The numbers under addresses of all kinds: attacks, restarts and iterations early and late,
    other streams, and the ids of others."""
    chance = random.Random(seed)
    draws = [
        attack_draw(
            chance.choice((0, 16, 32, 240)),
            chance.randrange(4),
            int(2 ** chance.uniform(0, 8)) - 1,
            chance.randrange(20),
        )
        for _ in range(len(numbers) - len(STREAMS))
    ]
    draws += [Draw(stream, chance.randrange(20)) for stream in STREAMS]
    device = numbers.samples.device
    shown = torch.tensor([[draw.stream, draw.index, 1] for draw in draws], device=device)
    strangers = [chance.choice(ids.tolist()) for _ in draws]
    samples = torch.tensor(strangers, dtype=torch.int64, device=device)
    return Disguised(numbers.seed, samples, shown, shown, numbers)


def _change(before: Tensor, after: Tensor) -> float:
    """The relative difference of logits."""
    return float((after - before).norm() / before.norm().clamp(min=1e-12))
