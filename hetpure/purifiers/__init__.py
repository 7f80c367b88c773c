"""Purifiers: each file is a plan of steps and what a step does."""

from hetpure.purifiers.edm import EDMPurifier
from hetpure.purifiers.guided import GuidedPurifier
from hetpure.purifiers.heterogeneous import (
    HeterogeneousPurifier,
    Resampling,
    heterogeneous_state,
)
from hetpure.purifiers.purifier import Output, Plan, Purifier, Step
from hetpure.purifiers.uniform import UniformPurifier

__all__ = [
    "EDMPurifier",
    "GuidedPurifier",
    "HeterogeneousPurifier",
    "Output",
    "Plan",
    "Purifier",
    "Resampling",
    "Step",
    "UniformPurifier",
    "heterogeneous_state",
]
