"""A purifier of one's own: diffuse and denoise in one network call, several times over.

Its gradient is compared with finite differences before anything is believed.

    python examples/own_purifier.py
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.fashion_mnist import read_packaged
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser, to_model
from hetpure.noise import Group, Noise, Purpose, Randomness, Stream
from hetpure.purifiers import Plan, Purifier, Step
from hetpure.samplers import add_noise
from hetpure.schedule import NO_NOISE, Schedule
from hetpure.weights import load_classifier, load_denoiser


@dataclass(frozen=True)
class Repeated(Purifier):
    """Diffuses to one level and takes the predicted image, so many times.

    Args:
        strength: the level, as a fraction of the schedule.
        rounds: how many times.
    """

    strength: float = 0.1
    rounds: int = 2

    def plan(self, schedule: Schedule) -> Plan:
        index = schedule.index(self.strength)
        rounds = range(self.rounds)
        return tuple(Step(at=NO_NOISE, via=index, to=NO_NOISE, repeat=k) for k in rounds)

    def groups(self, plan: Plan) -> frozenset[Group]:
        return frozenset({"forward"})

    def start(self, denoiser: Denoiser, images: Tensor, noise: Randomness) -> Tensor:
        return to_model(images)  # pixel [0, 1] to [-1, 1]

    def advance(
        self,
        denoiser: Denoiser,
        step: Step,
        state: Tensor,
        images: Tensor,
        mask: Tensor | None,
        noise: Randomness,
    ) -> Tensor:
        draw = noise.normal(Purpose.FORWARD, images, step=step.via, repeat=step.repeat)
        noisy = add_noise(state, denoiser.schedule.alpha_cumprod(step.via), draw)
        return denoiser.predict(noisy, step.via)[0].clamp(-1, 1)


def main(images: int = 32) -> tuple[float, float]:
    """Accuracy on clean images, and the relative error of the gradient."""
    test = read_packaged("test")
    pixels, labels = test.images[:images].float() / 255, test.labels[:images]
    classifier, denoiser = load_classifier("fashion_mnist_wrn"), load_denoiser("fashion_mnist_ddpm")
    defense = Defense(classifier, Repeated(rounds=2), denoiser)
    noise = Noise.of(seed=0, stream=Stream.REPORT)

    with torch.no_grad():
        right = defense(pixels, noise.on(test.samples[:images])).argmax(1) == labels
    accuracy = float(right.double().mean())
    print(f"right after purification: {int(right.sum())} of {images}")

    # One image in float64: the slope along a direction, by the gradient and by two answers.
    defense, point = defense.double(), (0.1 + 0.8 * pixels[:1]).double()
    draw = noise.on(test.samples[:1])
    direction = torch.linspace(-1, 1, point.numel(), dtype=torch.float64).reshape(point.shape)

    def loss(x: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(defense(x, draw), labels[:1])

    moving = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(moving), moving)
    slope = float((gradient * direction).sum())
    step = 1e-6
    with torch.no_grad():
        ahead, behind = loss(point + step * direction), loss(point - step * direction)
    numeric = float(ahead - behind) / (2 * step)
    error = abs(slope - numeric) / abs(numeric)
    print(f"slope by the gradient {slope:.6g}, by finite differences {numeric:.6g}")
    return accuracy, error


if __name__ == "__main__":
    main()
