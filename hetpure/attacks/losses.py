"""What attacks maximise: losses of logits (..., classes) and labels (...), one each, in float64.

In float32 a sure classifier's probability is exactly 1 and its class drops out of the gradient.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.expectation import Criterion

Loss = Literal["cross_entropy", "dlr", "margin"]


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """-log of the label's probability, or log of the target's."""
    if targets is not None:
        return -cross_entropy(logits, targets)
    return F.cross_entropy(logits.double(), labels, reduction="none")


def margin(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """max_{j != y} z_j - z_y (Carlini & Wagner 2017): above 0 the answer is wrong. Towards a target
    t it is z_t - z_y."""
    logits = logits.double()
    if targets is None:
        other = logits.masked_fill(_is(labels, logits), -torch.inf).amax(-1)
    else:
        other = _at(logits, targets)
    return other - _at(logits, labels)


def difference_of_logits_ratio(
    logits: Tensor, labels: Tensor, targets: Tensor | None = None
) -> Tensor:
    """The margin over z_(1) - z_(3), the largest less the third largest logit (Croce & Hein 2020,
    DLR, eq. 6): unchanged when logits are shifted or scaled. Needs three classes. Towards a target
    it is over z_(1) - (z_(3) + z_(4)) / 2 (eq. 7), and needs four."""
    ranked = logits.double().sort(-1, descending=True).values
    low = ranked[..., 2] if targets is None else (ranked[..., 2] + ranked[..., 3]) / 2
    return margin(logits, labels, targets) / (ranked[..., 0] - low).clamp(min=TINY)


TINY = 1e-12
LOSSES = {"cross_entropy": cross_entropy, "dlr": difference_of_logits_ratio, "margin": margin}


def usable(loss: Loss, classes: int, targeted: bool) -> Loss:
    """The loss itself, or the margin where there are too few classes for DLR."""
    return "margin" if loss == "dlr" and classes < 3 + targeted else loss


def criterion(loss: Loss, labels: Tensor, targets: Tensor | None = None) -> Criterion:
    """The losses (R,) of logits (R, classes), answers to the images `index` (R,), for an attack on
    labels (B,), towards targets (B,) where they are given."""

    def losses(logits: Tensor, index: Tensor) -> Tensor:
        kind = usable(loss, logits.shape[-1], targets is not None)
        return LOSSES[kind](logits, labels[index], None if targets is None else targets[index])

    return losses


def likely_targets(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """(count, B) wrong classes in the order of their mean probability in answers (N, B, classes):
    the most likely first."""
    mean = logits.double().softmax(-1).mean(0)
    ranked = mean.masked_fill(_is(labels, mean), -1).argsort(-1, descending=True)
    return ranked[:, : min(count, mean.shape[1] - 1)].T


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(-1, classes[..., None])[..., 0]


def _is(labels: Tensor, logits: Tensor) -> Tensor:
    """True at each label."""
    return torch.arange(logits.shape[-1], device=logits.device) == labels[..., None]
