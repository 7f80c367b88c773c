"""Paths of an attack through the images, step by step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hetpure.analysis.subject import Subject
from hetpure.attacks import PGD, Addresses, Target
from hetpure.attacks.gradient import Ascent
from hetpure.attacks.losses import criterion
from hetpure.attacks.pgd import steepest
from hetpure.evaluation.protocol import Block
from hetpure.geometry import project
from hetpure.noise import Group, Noise, Stream


@dataclass(frozen=True)
class AttackPath:
    """One ascent on each image of a block.

    `iterates` (S + 1, B, C, H, W) begin with the image itself and end with the last adversarial
    image, pixel [0, 1]. `directions` (S, B, C, H, W) are those that the steps take before they are
    cut to the ball and to [0, 1]: a cut step can be zero, and then has no direction.
    """

    iterates: Tensor
    directions: Tensor


def attack_path(
    subject: Subject,
    attack: PGD,
    block: Block,
    *,
    known: tuple[Group, ...] = (),
    number: int = 0,
    member: int = 0,
) -> AttackPath:
    """The path of PGD from the images, without random start and momentum: `attack.steps` steps
    along the gradient of the expected loss. `number` and `member` tell paths' noise apart."""
    addresses = Addresses(block.samples, Noise.of(subject.seed, Stream.DW_BOX), known, member)
    target = Target(subject.defense, block.images, block.labels, addresses)
    mask = subject.defense.mask(block.images, block.samples)
    run = Ascent(target, number, criterion(attack.loss, block.labels), mask)
    iterates, directions = [block.images], []
    for iteration in range(attack.steps):
        answer = attack.gradient_at(run, iterates[-1], attack.noises(run, iteration))
        along = steepest(answer.gradient, attack.norm)
        moved = iterates[-1] + attack.step_size * along
        iterates.append(project(moved, block.images, attack.epsilon, attack.norm))
        directions.append(along)
    return AttackPath(torch.stack(iterates), torch.stack(directions))
