"""An attack of one's own: momentum on the sign of the gradient (Dong et al. 2018, section 3.1).

Expectation over noise, masks, restarts and the check of its candidates come with `BallAttack`.

    python examples/own_attack.py
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import hetpure
from datamodules.fashion_mnist import read_packaged
from hetpure.attacks.gradient import Ascent, BallAttack
from hetpure.evaluation.protocol import Block, Protocol, evaluate_block
from hetpure.geometry import project
from hetpure.numbers import Number


@dataclass(frozen=True, kw_only=True)
class Momentum(BallAttack):
    """Steps along the sign of all gradients so far, each at L1 norm 1.

    Args:
        decay: what a step keeps of the direction before it.
    """

    decay: float = 1.0

    def ascend(self, run: Ascent) -> list[Tensor]:
        images = run.target.images

        def step(state: tuple[Tensor, Tensor], gradient: Tensor) -> tuple[Tensor, Tensor]:
            adversarial, total = state
            total = self.decay * total + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
            moved = adversarial + self.epsilon / self.steps * total.sign()
            return project(moved, images, self.epsilon, self.norm), total

        return self.climb(run, (images, torch.zeros_like(images)), step, lambda state: state[0])


def main(images: int = 4, steps: int = 5) -> tuple[int, int]:
    """How many report draws are right on the clean and on the adversarial images."""
    test = read_packaged("test")
    block = Block(test.images[:images].float() / 255, test.labels[:images], test.samples[:images])
    attack = Momentum(epsilon=Number("16/255"), steps=steps, eot_samples=2)
    protocol = Protocol(report_draws=5, selection_draws=2)
    defense = hetpure.load_defense("fashion_mnist")
    records = evaluate_block("mine", defense, attack, block, protocol, seed=0).records
    right = {"clean": 0, attack.name: 0}
    for record in records:
        right[record.attack] += record.predictions.count(record.label)
        print(f"image {record.sample}, {record.attack}: {record.predictions}, is {record.label}")
    clean, robust = right.values()
    print(f"right answers: {clean} clean, {robust} under attack, of {images * 5}")
    return clean, robust


if __name__ == "__main__":
    main()
