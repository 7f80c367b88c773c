"""BPDA with expectation over transformation (Athalye et al. 2018, arXiv 1802.00420)."""

from dataclasses import dataclass

from hetpure.attacks.gradient import Approximation
from hetpure.attacks.pgd import PGD


@dataclass(frozen=True, kw_only=True)
class BPDA(PGD):
    """PGD that takes the purifier's derivative for the identity (section 4.1): the classifier's
    gradient at the purified images, averaged over noise draws (section 4.2)."""

    approximation: Approximation = "bpda"
