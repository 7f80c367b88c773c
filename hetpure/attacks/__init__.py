"""Attacks: functions of a target, which binds a defence, images, labels and noise addresses."""

from hetpure.attacks.apgd import APGD
from hetpure.attacks.attack import Addresses, Attack, Cost, Monitor, Target, Threat
from hetpure.attacks.auto_eot import AutoEOT
from hetpure.attacks.autoattack import AutoAttack
from hetpure.attacks.bpda import BPDA
from hetpure.attacks.diffattack import DiffAttack
from hetpure.attacks.diffhammer import DiffHammer
from hetpure.attacks.filters import FilterAttack
from hetpure.attacks.gradient import unfolded
from hetpure.attacks.low_frequency import LowFrequency
from hetpure.attacks.pgd import PGD
from hetpure.attacks.progressive import Progressive
from hetpure.attacks.replay import Replay
from hetpure.attacks.square import Square
from hetpure.attacks.stadv import StAdv

__all__ = [
    "APGD",
    "BPDA",
    "PGD",
    "Addresses",
    "Attack",
    "AutoAttack",
    "AutoEOT",
    "Cost",
    "DiffAttack",
    "DiffHammer",
    "FilterAttack",
    "LowFrequency",
    "Monitor",
    "Progressive",
    "Replay",
    "Square",
    "StAdv",
    "Target",
    "Threat",
    "unfolded",
]
