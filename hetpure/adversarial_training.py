"""Adversarial training: PGD (Madry et al. 2018, arXiv 1706.06083) and TRADES (Zhang et al. 2019,
arXiv 1901.08573).

Networks map pixels [0, 1] (B, C, H, W) to logits (B, K). Perturbations are made with the network in
eval mode, so batch norm's statistics are those of the training passes alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.errors import FieldError, check_at_least, check_choice, check_positive
from hetpure.geometry import Norm, direction, project, uniform_in_ball
from hetpure.noise import BatchNoise, Purpose
from hetpure.numbers import Number

Method = Literal["pgd", "trades"]
TRADES_START = 0.001  # standard deviation of TRADES' random start, pixel units, as published


@dataclass(frozen=True)
class AdversarialTraining:
    """What a classifier is trained against.

    Args:
        method: `pgd` trains on the adversarial images alone; `trades` on the clean images, and
            draws the predictions on the adversarial ones to the clean predictions.
        epsilon: radius in pixel units [0, 1]; 8/255 may be written.
        step_size: of the sign (linf) or of the normalised gradient (l2), pixel units.
        steps: of the inner ascent, in every update.
        norm: of the ball.
        beta: of TRADES alone: weight of the divergence (1/lambda in the paper).
    """

    method: Method = "pgd"
    epsilon: Number = Number("8/255")  # noqa: RUF009 (immutable)
    step_size: Number = Number("2/255")  # noqa: RUF009 (immutable)
    steps: int = 10
    norm: Norm = "linf"
    beta: float | None = None

    def __post_init__(self) -> None:
        check_choice(self, "method", Method)
        check_choice(self, "norm", Norm)
        check_at_least(self, 1, "steps")
        check_at_least(self, 0, "epsilon", "beta")
        check_positive(self, "step_size")
        if (self.method == "trades") != (self.beta is not None):
            wrong = f"is {self.beta}: method trades needs it (as published: 6), pgd has none"
            raise FieldError(self, "beta", wrong)


def adversarial_loss(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    noise: BatchNoise,
    against: AdversarialTraining,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The mean loss of one update. Epsilon 0 of PGD and beta 0 of TRADES are clean training."""
    if against.beta == 0:
        return F.cross_entropy(network(images), labels, label_smoothing=label_smoothing)
    adversarial = perturb(network, images, labels, noise, against)
    if against.beta is None:
        return F.cross_entropy(network(adversarial), labels, label_smoothing=label_smoothing)
    clean = network(images)
    classification = F.cross_entropy(clean, labels, label_smoothing=label_smoothing)
    return classification + against.beta * divergence(clean, network(adversarial)).mean()


def perturb(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    noise: BatchNoise,
    against: AdversarialTraining,
) -> Tensor:
    """Images in the ball around `images` and in [0, 1] that the training loss dislikes.

    Gradients are taken with respect to the images only, so nothing leaks into the weights'
    gradients and no collective is triggered under data parallelism.
    """
    with evaluating(network):
        if against.method == "pgd":
            adversarial = uniform_in_ball(noise, images, against.epsilon, against.norm)
        else:
            adversarial = images + TRADES_START * noise.normal(Purpose.START, images)
            # Not under no_grad: autocast keeps the weights it has cast, and older releases of torch
            # would then give the update copies that no gradient flows through.
            clean = network(images).detach()
        for _ in range(against.steps):
            adversarial = adversarial.detach().requires_grad_()
            logits = network(adversarial)
            # Summed over images, so that no image's gradient depends on the batch; in float64,
            # where 1 - p of a sure classifier is not yet 0.
            if against.method == "pgd":
                loss = F.cross_entropy(logits.double(), labels, reduction="sum")
            else:
                loss = divergence(clean.double(), logits.double()).sum()
            (gradient,) = torch.autograd.grad(loss, adversarial)
            uphill = gradient.sign() if against.norm == "linf" else direction(gradient)
            moved = adversarial.detach() + against.step_size * uphill
            adversarial = project(moved, images, against.epsilon, against.norm)
    return adversarial


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """(B,) KL(p_clean || p_adversarial) in nats, of logits (B, K)."""
    log_clean, log_adversarial = clean.log_softmax(1), adversarial.log_softmax(1)
    return F.kl_div(log_adversarial, log_clean, reduction="none", log_target=True).sum(1)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in eval mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
