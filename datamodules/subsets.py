"""Which images of a split: chosen by rules that give the same images long from now."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hetpure.errors import InputError

PUBLISHED = 512  # images that DiffPure and HetPure report on


def choose(labels: Tensor, counts: tuple[int, ...], choice: str) -> list[Tensor]:
    """Disjoint class-balanced index sets, ascending int32; counts[k] of each class in the k-th.

    Indices of a class are ordered by a hash, not by a random generator: its sequence may change
    with the library's version, and the same images should be chosen long from now.
    """
    chosen: list[list[int]] = [[] for _ in counts]
    for label in sorted(set(labels.tolist())):
        indices: list[int] = (labels == label).nonzero().squeeze(1).tolist()
        indices.sort(key=lambda index: hashlib.sha256(f"{choice}:{index}".encode()).digest())
        assert len(indices) >= sum(counts), f"class {label} has {len(indices)} images only"
        for part, count in zip(chosen, counts, strict=True):
            part.extend(indices[:count])
            del indices[:count]
    return [torch.tensor(sorted(part), dtype=torch.int32) for part in chosen]


def smallest_class(labels: Tensor, classes: int) -> int:
    """How many images the class with the fewest has; labels (N,) are below `classes`."""
    return int(labels.bincount(minlength=classes).min())


def published_512(count: int) -> Tensor:
    """Ascending indices (512,) of the test images that DiffPure and HetPure report on, of `count`.

    Both draw them as `RandomState(0).choice(count, 512, replace=False)`; numpy has promised that
    the stream of this generator never changes.
    """
    if count < PUBLISHED:
        raise InputError(
            f"subset published_512 needs {PUBLISHED} images, the test split has {count}"
        )
    drawn = np.random.RandomState(0).choice(count, PUBLISHED, replace=False)
    return torch.from_numpy(np.sort(drawn))


def read_ids(path: Path) -> list[int]:
    """The ids in a text file, one integer a line, in ascending order; blank lines at its end
    are none."""
    try:
        lines = path.read_text().rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"ids {path} cannot be read as text: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip().isdecimal():
            raise InputError(
                f"ids {path}: line {number} is {line[:40]!r}, expected one id, an integer"
            )
    ids = [int(line) for line in lines]
    if not ids or len(set(ids)) < len(ids):
        raise InputError(f"ids {path}: {len(ids)} ids, expected one or more, none twice")
    return sorted(ids)
