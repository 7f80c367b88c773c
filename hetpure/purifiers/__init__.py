"""Purifiers: each file is a plan of steps and what a step does."""

from hetpure.purifiers.edm import EDMPurifier
from hetpure.purifiers.gradual import GradualPurifier
from hetpure.purifiers.guided import GuidedPurifier
from hetpure.purifiers.heterogeneous import (
    HeterogeneousPurifier,
    Known,
    Resampling,
    heterogeneous_state,
)
from hetpure.purifiers.likelihood import LikelihoodPurifier
from hetpure.purifiers.purifier import Output, Plan, Purifier, Step
from hetpure.purifiers.uniform import UniformPurifier

__all__ = [
    "EDMPurifier",
    "GradualPurifier",
    "GuidedPurifier",
    "HeterogeneousPurifier",
    "Known",
    "LikelihoodPurifier",
    "Output",
    "Plan",
    "Purifier",
    "Resampling",
    "Step",
    "UniformPurifier",
    "heterogeneous_state",
]
