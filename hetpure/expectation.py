"""A defence asked over several noise draws: the pairs (image, draw) are the entries of a batch,
which is cut into pieces that fit the memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.defense import Defense
from hetpure.gradients import Execution, check_finite, differentiate, require_gradient
from hetpure.noise import BatchNoise, Noise

Average = Literal["gradients", "probabilities", "logits"]
Criterion = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Query:
    """Images (B, C, H, W) in pixel [0, 1], their sample ids (B,), their masks (B, 1, H, W) where
    the purifier wants them, and the N noises on which the defence is asked. A mask that hangs on
    the images by a graph is differentiated along with them."""

    images: Tensor
    samples: Tensor
    mask: Tensor | None
    noises: Sequence[Noise]

    def entries(self) -> BatchNoise:
        """The noise of every pair (image, draw), noise-major: entry e belongs to image e % B."""
        return BatchNoise.stack(self.noises, self.samples)

    def pieces(
        self, size: int, full: bool = False
    ) -> Iterator[tuple[Tensor, Tensor, BatchNoise, Tensor | None]]:
        """At most `size` entries at a time: their positions (R,) among all of them, the images,
        their noise, their masks. Where pieces must be `full`, the last goes on with the first
        entries, whose answers are there already."""
        device, count, noise = self.images.device, len(self.images), self.entries()
        places = -(-len(noise) // size) * size if full else len(noise)
        for entries in torch.split(torch.arange(places, device=device) % len(noise), size):
            index = entries % count
            mask = None if self.mask is None else self.mask[index]
            yield entries, self.images[index], noise.take(entries), mask


@dataclass(frozen=True)
class Answer:
    """What one question for a gradient tells: the `gradient` (B, C, H, W) of the expected loss,
    that `loss` (B,) and the `logits` (N, B, classes), all of one forward pass, and the cosine
    between the gradients of the first and of the second half of the draws (B,), `agreement`: near
    1 the draws are enough, near 0 they are mostly noise. Of a single draw there is none. `mask`
    (B, 1, H, W) is the one that all draws were purified with, where there is one mask an image."""

    gradient: Tensor
    loss: Tensor
    logits: Tensor
    agreement: Tensor | None
    mask: Tensor | None = None


def expected_loss(logits: Tensor, criterion: Criterion, average: Average) -> Tensor:
    """The loss (B,) of the answers (N, B, classes) on N draws: the mean of the draws' losses
    (`gradients`: its gradient is the mean of theirs), or the loss of their mean probabilities or
    logits.

    `criterion(logits, index)` gives the losses (R,) of entries whose images are at the positions
    `index` (R,), given their logits (R, classes); an entry's loss depends on that entry alone.
    """
    draws, count = logits.shape[:2]
    index = torch.arange(count, device=logits.device)
    if average == "gradients":
        return criterion(logits.flatten(0, 1), index.repeat(draws)).reshape(draws, count).mean(0)
    logits = logits.double()
    if average == "logits":
        return criterion(logits.mean(0), index)
    return criterion(F.log_softmax(logits, -1).logsumexp(0) - math.log(draws), index)


def expected_gradient(
    defense: Defense,
    query: Query,
    criterion: Criterion,
    progress: Progress = lambda entries: None,
    *,
    average: Average = "gradients",
    execution: Execution | None = None,
    labels: Tensor | None = None,
) -> Answer:
    """Gradient of the expected loss in the images, checked: see `expected_loss`.

    It may be zero only for images that some draw answers otherwise than with their `labels` (B,):
    a loss that is done with them can be flat (DLR is, where the label ranks third). `progress`
    gets the number of entries that were differentiated. A given `execution` takes the place of the
    defence's. Losses of mean answers need all answers before any of their gradients: where the
    entries do not fit into one piece, they are asked twice.
    """
    frozen = not any(weight.requires_grad for weight in defense.parameters())
    assert frozen, "a defence's weights are frozen, or its layers keep what their gradients need"
    execution = execution or defense.execution
    draws, count = len(query.noises), len(query.images)
    size = execution.micro_batch or draws * count

    def share(logits: Tensor, index: Tensor) -> Tensor:  # of some entries in the mean
        return criterion(logits, index) / draws

    total = left = draws * count
    known = None
    if average != "gradients" and size < total:
        known = _cotangent(_ask(defense, query, size), criterion, average)
    of_images, of_masks, logits = [], [], []
    for entries, images, noise, mask in query.pieces(size, defense.compiled):
        point = images.detach().requires_grad_()
        through = mask.detach().requires_grad_(mask.requires_grad) if mask is not None else None
        with torch.enable_grad():
            answer = defense(point, noise, through, execution)
        logits.append(answer.detach())
        if average == "gradients":
            cotangent = _derivative(partial(share, index=entries % count), logits[-1])
        else:
            if known is None:  # all entries are here
                whole = logits[-1][:total].reshape(draws, count, -1)
                known = _cotangent(whole, criterion, average)
            cotangent = known.flatten(0, 1)[entries]
        inputs = [t for t in (point, through) if t is not None and t.requires_grad]
        of_image, *of_mask = differentiate(answer, inputs, cotangent)
        of_images.append(of_image)
        of_masks += of_mask
        progress(min(len(entries), left))
        left -= len(entries)
    answers = torch.cat(logits)[:total].reshape(draws, count, -1)
    # Summed over draws in order: adding entries by index would be in any order on an accelerator.
    halves = _halves(torch.cat(of_images)[:total].reshape(draws, *query.images.shape))
    if of_masks and query.mask is not None:
        masks = _halves(torch.cat(of_masks)[:total].reshape(draws, *query.mask.shape))
        for half, cotangent in zip(halves, masks, strict=True):
            half += torch.autograd.grad(query.mask, query.images, cotangent, retain_graph=True)[0]
    agreement = None
    if len(halves) == 2:
        agreement = F.cosine_similarity(
            halves[0].flatten(1).double(), halves[1].flatten(1).double()
        )
    loss = expected_loss(answers, criterion, average)
    flat = None if labels is None else (answers.argmax(2) != labels).any(0)
    gradient = require_gradient(torch.stack(halves).sum(0), flat)
    mask = None if query.mask is None else query.mask.detach()
    return Answer(gradient, loss, answers, agreement, mask)


@torch.no_grad()
def answers(defense: Defense, query: Query, progress: Progress = lambda entries: None) -> Tensor:
    """Logits (N, B, classes) for each noise; not finite, they are an error: the class with the
    largest of them would mean nothing."""
    logits = _ask(defense, query, defense.execution.micro_batch or len(query.images), progress)
    return check_finite(logits, "what the defence answers")


@torch.no_grad()
def _ask(
    defense: Defense, query: Query, size: int, progress: Progress = lambda entries: None
) -> Tensor:
    """Logits (N, B, classes), in pieces of at most `size` entries."""
    draws, count = len(query.noises), len(query.images)
    total = left = draws * count
    logits = []
    for entries, images, noise, mask in query.pieces(size, defense.compiled):
        logits.append(defense(images, noise, mask))
        progress(min(len(entries), left))
        left -= len(entries)
    return torch.cat(logits)[:total].reshape(draws, count, -1)


def _derivative(losses: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """d sum of losses / d logits, in their shape."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        return differentiate(losses(leaf).sum(), [leaf])[0]


def _cotangent(logits: Tensor, criterion: Criterion, average: Average) -> Tensor:
    """d expected loss / d logits (N, B, classes)."""
    return _derivative(lambda x: expected_loss(x, criterion, average), logits)


def _halves(parts: Tensor) -> list[Tensor]:
    """Sums over the first and over the second half of the draws (N, ...); of one draw, itself."""
    cut = len(parts) // 2
    return [half.sum(0) for half in (parts[:cut], parts[cut:]) if len(half)]
