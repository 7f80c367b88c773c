"""A cascade of attacks: what an attack made certainly wrong, later ones need not look for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hetpure.evaluation.protocol import CLEAN, NULL, Cell, Outcome, Record
from hetpure.evaluation.rows import Row
from hetpure.evaluation.store import Job, Store


@dataclass(frozen=True)
class Before:
    """What earlier attacks left of a block's first images.

    Args:
        left: positions (R,) of the images that none of them made wrong on all selection draws.
        wrong: of the others, by their position, the first such record, and its image (C, H, W).
    """

    left: Tensor
    wrong: Mapping[int, tuple[Record, Tensor]]

    def completed(self, outcome: Outcome, cell: Cell) -> Outcome:
        """The outcome of the cell on what is left, with the images that it skipped in their
        places."""
        records = dict(zip(self.left.tolist(), outcome.records, strict=True))
        images = dict(zip(self.left.tolist(), outcome.adversarial.cpu(), strict=True))
        for position, (record, image) in self.wrong.items():
            records[position] = replace(record, attack=cell.name, network_calls=0, skipped=True)
            images[position] = image
        order = sorted(records)
        return Outcome([records[k] for k in order], torch.stack([images[k] for k in order]))


def earlier(row: Row, cell: Cell) -> list[Cell]:
    """The attacks before a further one that search the main attack's ball for the same images,
    knowing as little. There are none for a cell that is not such an attack itself."""
    main = row.cells[1].attack.threat
    alike = [
        other
        for other in row.cells
        if other.name not in (CLEAN, NULL)
        and not other.known
        and other.attack.threat == main is not None
    ]
    if cell.member == 0 or cell not in alike:
        return []
    return alike[: alike.index(cell)]


def already_wrong(store: Store, row: Row, cell: Cell, block: int, count: int) -> Before:
    """What the attacks before a cell left of the first `count` images of a block."""
    wrong: dict[int, tuple[Record, Tensor]] = {}
    for attack in earlier(row, cell):
        job = Job(row.name, attack.name, block)
        if store.has(job):  # an attack on fewer images may have none in this block
            images = store.block_images(job)
            for position, record in enumerate(store.get(job).records[:count]):
                if record.kept == 0:
                    wrong.setdefault(position, (record, images[position]))
    left = [position for position in range(count) if position not in wrong]
    return Before(torch.tensor(left, dtype=torch.int64), wrong)
