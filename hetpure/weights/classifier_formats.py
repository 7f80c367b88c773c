"""Published classifiers, recognised by their names and given to one of our networks, key by key.

A state dict does not hold the normalisation of its images. A normalisation is taken where all
published networks of the family share it, and a remark says so; where they differ it is left out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hetpure.errors import InputError
from hetpure.weights.classifier import ARCHITECTURES
from hetpure.weights.classifier_layouts import LAYOUTS, Layout, Network, Normalisation, State
from hetpure.weights.formats import misfit


@dataclass(frozen=True)
class ClassifierWeights:
    """A published classifier under the names of one of our networks.

    Args:
        format: its name, for people.
        config: content of the folder's `config.json`; `mean` and `std` (pixel [0, 1]) are None
            where neither the file nor its layout tells them.
        state: exactly the state dict of the network that `config` describes.
        remarks: what was dropped and what was assumed.
        licence: of the published source, or "not stated".
        normalisation: whose `mean` and `std` are, or which are published where none were taken.
    """

    format: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    remarks: tuple[str, ...]
    licence: str
    normalisation: str = "mean and std must be given"


def recognise_classifier(state: State) -> ClassifierWeights | None:
    """The classifier that a flat state dict holds, or None where its names are none that are known.

    `state` maps published names without wrappers' prefixes to tensors; only a normalisation that
    the file holds is read, of the others names, shapes and kinds of number. InputError where the
    names are known and something is missing, in excess or of another shape.
    """
    for layout in LAYOUTS:
        if all(name in state for name in layout.marks):
            try:
                return _convert(layout, state)
            except InputError as error:
                raise InputError(f"it looks like {layout.format}, but {error}") from None
    return None


def _convert(layout: Layout, state: State) -> ClassifierWeights:
    held, state = _held_normalisation(state)
    renamed, dropped = _rename(layout, state)
    network, assumed = layout.read(renamed)
    with torch.device("meta"):
        expected = ARCHITECTURES[layout.architecture](**network).state_dict()
    complete, added = _complete(renamed, expected)
    normalisation, origin = _choose(held, layout.normalisations(network), network)
    config = {
        "architecture": layout.architecture,
        "network": network,
        "mean": list(normalisation.mean) if normalisation else None,
        "std": list(normalisation.std) if normalisation else None,
    }
    remarks = (*dropped, *assumed, *added)
    return ClassifierWeights(layout.format, config, complete, remarks, layout.licence, origin)


def _held_normalisation(state: State) -> tuple[Normalisation | None, State]:
    """Mean and std that a network keeps among its weights, and the other weights."""
    for names in (("mean", "std"), ("mu", "sigma")):
        if all(name in state for name in names):
            others = {key: value for key, value in state.items() if key not in names}
            mean, std = (tuple(state[name].flatten().tolist()) for name in names)
            return Normalisation("of the file", mean, std), others
    return None, state


def _rename(layout: Layout, state: State) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under our names, and what was dropped."""
    renamed: dict[str, Tensor] = {}
    dropped = 0
    for name, value in state.items():
        if layout.dead is not None and name.startswith(layout.dead):
            dropped += 1
            continue
        ours = name
        for pattern, replacement in layout.renames:
            ours = re.sub(pattern, replacement, ours)
        if ours in renamed:
            raise InputError(f"it holds {ours} twice, once as {name}")
        renamed[ours] = value
    if not dropped:
        return renamed, []
    return renamed, [f"dropped {layout.dead}* ({dropped} tensors): the network never calls it"]


def _complete(state: State, expected: State) -> tuple[dict[str, Tensor], list[str]]:
    """`state` in the network's order with batch norms' counters, and a remark where they are new;
    InputError where the two are not one network."""
    counters = [key for key in expected if key.endswith("num_batches_tracked") and key not in state]
    whole = {**state, **{key: torch.zeros((), dtype=torch.long) for key in counters}}
    if problem := misfit(whole, expected):
        raise InputError(problem)
    remarks = ["counters of batches, which only training needs, begin at 0"] if counters else []
    return {key: whole[key] for key in expected}, remarks


def _choose(
    held: Normalisation | None, published: Sequence[Normalisation], network: Network
) -> tuple[Normalisation | None, str]:
    """The normalisation and a line about it; None where the published ones differ or none fits."""
    if held is not None:
        return held, f"mean and std are {held.source}: {list(held.mean)}, {list(held.std)}"
    fits = [known for known in published if len(known.mean) == network["in_channels"]]
    if len(fits) == 1:
        return fits[0], f"the file holds no mean and std; taken are those of {fits[0]}"
    known = "; ".join(map(str, fits)) or "none for this number of classes and channels"
    return None, f"mean and std must be given, the file holds none. Published are {known}"
