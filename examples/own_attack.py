"""An attack of one's own: steps along the sign of the gradient that shrink.

Expectation over noise, masks, restarts and the check of its candidates come with `BallAttack`.

    python examples/own_attack.py
"""

from dataclasses import dataclass

from torch import Tensor

import hetpure
from datamodules.fashion_mnist import read_packaged
from hetpure.attacks.gradient import Ascent, BallAttack
from hetpure.evaluation.protocol import Block, Protocol, evaluate_block
from hetpure.geometry import project
from hetpure.numbers import Number


@dataclass(frozen=True, kw_only=True)
class Shrinking(BallAttack):
    """Steps along the sign of the gradient, each shorter than the one before: from half of the
    radius down to nothing."""

    def ascend(self, run: Ascent) -> list[Tensor]:
        images = run.target.images

        def step(state: tuple[Tensor, int], gradient: Tensor) -> tuple[Tensor, int]:
            adversarial, taken = state
            size = self.epsilon / 2 * (1 - taken / self.steps)
            return project(
                adversarial + size * gradient.sign(), images, self.epsilon, self.norm
            ), taken + 1

        return self.climb(run, (images, 0), step, lambda state: state[0])


def main(images: int = 4, steps: int = 5) -> tuple[int, int]:
    """How many report draws are right on the clean and on the adversarial images."""
    test = read_packaged("test")
    block = Block(test.images[:images].float() / 255, test.labels[:images], test.samples[:images])
    attack = Shrinking(epsilon=Number("16/255"), steps=steps, eot_samples=2)
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
