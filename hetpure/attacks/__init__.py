"""Attacks: functions of a defence, images, labels and noise. They know nothing of diffusion."""

from hetpure.attacks.attack import Attack
from hetpure.attacks.pgd import PGD

__all__ = ["PGD", "Attack"]
