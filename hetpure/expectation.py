"""A defence asked over several noise draws: images x draws as rows of one batch, cut into pieces
that fit the memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetpure.defense import Defense
from hetpure.gradients import NOT_FINITE, Execution, GradientError, check_gradient, raw_gradient
from hetpure.noise import Noise, RowNoise

Progress = Callable[[int], None]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Query:
    """Images (B, C, H, W) in pixel [0, 1], their sample ids (B,), their masks (B, 1, H, W) where
    the purifier wants them, and the N noises on which the defence is asked."""

    images: Tensor
    samples: Tensor
    mask: Tensor | None
    noises: Sequence[Noise]

    def pieces(self, size: int) -> Iterator[tuple[Tensor, Tensor, RowNoise, Tensor | None]]:
        """At most `size` rows at a time, noise-major: which image each row is (R,), the images,
        their noise, their masks."""
        count = len(self.images)
        noise = RowNoise.stack(self.noises, self.samples)
        whose = torch.arange(count, device=self.images.device).repeat(len(self.noises))
        for rows in torch.split(torch.arange(len(whose), device=whose.device), size):
            index = whose[rows]
            mask = None if self.mask is None else self.mask[index]
            yield index, self.images[index], noise.rows(rows), mask


def expected_gradient(
    defense: Defense,
    query: Query,
    loss: Loss,
    progress: Progress = lambda rows: None,
    *,
    execution: Execution | None = None,
) -> Tensor:
    """Gradient (B, C, H, W) of a loss that is a sum over rows, checked.

    `loss(logits, index)` is that of the rows whose images are `index` (R,), given their logits
    (R, classes); `progress` is told how many rows were differentiated. An `execution` that is given
    stands in for the defence's own.
    """
    execution = execution or defense.execution
    images = query.images.detach()
    found = []
    size = execution.micro_batch or len(images) * len(query.noises)
    for index, rows, noise, mask in query.pieces(size):
        point = rows.detach().requires_grad_()
        found.append(raw_gradient(loss(defense(point, noise, mask, execution), index), point))
        progress(len(index))
    # Summed over draws in order: adding rows by index would be in any order on an accelerator.
    return check_gradient(torch.cat(found).reshape(len(query.noises), *images.shape).sum(0))


@torch.no_grad()
def answers(defense: Defense, query: Query, progress: Progress = lambda rows: None) -> Tensor:
    """Logits (N, B, classes) for each noise; not finite, they are an error: the class with the
    largest of them would mean nothing."""
    found = []
    size = defense.execution.micro_batch or len(query.images)
    for index, rows, noise, mask in query.pieces(size):
        found.append(defense(rows, noise, mask))
        progress(len(index))
    logits = torch.cat(found)
    if not logits.isfinite().all():
        raise GradientError(f"what the defence answers {NOT_FINITE}")
    return logits.reshape(len(query.noises), len(query.images), -1)
