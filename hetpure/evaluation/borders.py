"""How visible a mask's border is in a purified image."""

import torch
from torch import Tensor


def border_inconsistency(images: Tensor, purified: Tensor, mask: Tensor) -> Tensor:
    """(B,) gradient energy of what purification changed, across mask borders over elsewhere.

    The change is purified - images, (B, C, H, W) in pixel [0, 1]; its energy is the mean squared
    difference of neighbouring pixels. Pairs whose two pixels differ in the mask (B, 1, H, W) are
    the border. The image's own edges cancel in the change, but borders of a mask tend to lie where
    purifiers change more: compare with a purifier that has no mask. Not finite where an image has
    no border, or no change elsewhere.
    """
    change = purified - images
    energies, crossings = [], []
    for axis in (-2, -1):
        energies.append(change.diff(dim=axis).square().sum(1).flatten(1))
        crossings.append((mask.diff(dim=axis) != 0)[:, 0].flatten(1))
    energy, crossing = torch.cat(energies, 1), torch.cat(crossings, 1)
    return _mean_where(energy, crossing) / _mean_where(energy, ~crossing)


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum(1) / where.sum(1)
