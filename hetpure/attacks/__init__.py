"""Attacks: functions of a defence, images, labels and noise addresses."""

from hetpure.attacks.attack import Addresses, Attack, Monitor, Threat
from hetpure.attacks.pgd import PGD

__all__ = ["PGD", "Addresses", "Attack", "Monitor", "Threat"]
