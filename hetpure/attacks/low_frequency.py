"""Low-frequency perturbations (Guo, Frank & Weinberger 2019, arXiv 1809.08758) by gradient ascent.
A purifier's noise hides high frequencies first."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hetpure.attacks.gradient import Ascent
from hetpure.attacks.pgd import PGD
from hetpure.errors import check_fraction
from hetpure.geometry import Norm, direction, norms

PROJECTIONS = 8  # on linear problems 1 to 7% short of the best; none, with scaling: 12 to 24%


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II of n numbers as a matrix (n, n), float64: row k is the k-th cosine,
    c_k cos(pi (2 i + 1) k / (2 n)) with c_0 = sqrt(1 / n) and c_k = sqrt(2 / n)."""
    place = torch.arange(n, dtype=torch.float64)
    cosines = torch.cos(math.pi / (2 * n) * torch.outer(place, 2 * place + 1))
    cosines[0] /= math.sqrt(2)
    return math.sqrt(2 / n) * cosines


def low_pass(images: Tensor, ratio: float) -> Tensor:
    """Images (B, C, H, W) less all their frequencies but the lowest `ratio` of the rows and the
    lowest `ratio` of the columns, rounded, and at least one of each: the nearest ones in L2 that
    hold no other. Ratio 1 keeps all."""
    rows, columns = (
        _projection(size, ratio).to(images.device, images.dtype) for size in images.shape[-2:]
    )
    return rows @ images @ columns


def _projection(n: int, ratio: float) -> Tensor:
    """(n, n), onto the span of the lowest cosines."""
    kept = dct_matrix(n)[: max(round(ratio * n), 1)]
    return kept.T @ kept


@dataclass(frozen=True, kw_only=True)
class LowFrequency(PGD):
    """PGD whose perturbation is an inverse discrete cosine transform of the lowest frequencies only
    (section 3), until the image is cut to [0, 1].

    A step goes along the gradient's sign (linf) or the gradient itself (l2) with high frequencies
    taken out, at size `step_size` in the norm, and a perturbation that leaves the ball is brought
    back into it by low frequencies alone. The gradient is that of the image after the cut.

    Args:
        ratio: share of the rows' and of the columns' frequencies that the perturbation holds, the
            paper's r.
    """

    ratio: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "ratio")

    @property
    def name(self) -> str:
        return f"low_frequency_{self.norm}"

    def ascend(self, run: Ascent) -> list[Tensor]:
        images = run.target.images

        def images_of(offset: Tensor) -> Tensor:
            return (images + offset).clamp(0, 1)

        def step(offset: Tensor, gradient: Tensor) -> Tensor:
            inside = images_of(offset) == images + offset  # the cut passes no gradient elsewhere
            along = ascent(gradient * inside, self.ratio, self.norm)
            return within(offset + self.step_size * along, self.epsilon, self.norm, self.ratio)

        start = torch.zeros_like(images)
        if self.random_start:  # PGD's without its high frequencies
            start = low_pass(self.start(run) - images, self.ratio)
            start = within(start, self.epsilon, self.norm, self.ratio)
        return self.climb(run, start, step, images_of)


def ascent(gradient: Tensor, ratio: float, norm: Norm) -> Tensor:
    """A direction (B, C, H, W) of norm 1 that holds low frequencies only; zero for a gradient of
    zero. Where P takes high frequencies out, g gains |P g|_1 >= 0 along P sign(P g)."""
    low = low_pass(gradient, ratio)
    if norm == "l2":
        return direction(low)
    raised = low_pass(low.sign(), ratio)
    return raised / _size(raised, norm)


def within(offset: Tensor, epsilon: float, norm: Norm, ratio: float) -> Tensor:
    """A low-frequency offset (B, C, H, W) brought into the ball; it still holds nothing else.

    In l2 the nearest one is the offset, scaled back. In linf scaling alone would waste a fifth of
    what the ball allows, so the offset is first projected in turn onto the ball and onto the low
    frequencies (von Neumann), which ends near where both meet.
    """
    if norm == "linf":
        for _ in range(PROJECTIONS):
            offset = low_pass(offset.clamp(-epsilon, epsilon), ratio)
    return offset * (epsilon / _size(offset, norm)).clamp(max=1)


def _size(offset: Tensor, norm: Norm) -> Tensor:
    """(B, 1, 1, 1) norms, kept off zero."""
    return norms(offset) if norm == "l2" else offset.abs().amax((1, 2, 3), True).clamp(min=1e-12)
