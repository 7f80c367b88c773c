"""All attacks on one row for one block of images; what is finished is not computed again."""

import time

import torch
from torch import Tensor

from hetpure.evaluation.protocol import (
    CLEAN,
    Block,
    Cell,
    Outcome,
    Protocol,
    evaluate_attack,
    evaluate_clean,
)
from hetpure.evaluation.records import RunFolder
from hetpure.saved_images import save_images
from lightning_modules.progress import AttackProgress
from lightning_modules.rows import Row


class Blocks:
    """Evaluates rows on blocks and writes what they give to the run's folder.

    Args:
        folder: of the run; what it holds by now is finished.
        protocol: how draws are counted.
        seed: of all noise.
        progress: told of everything.
    """

    def __init__(
        self, folder: RunFolder, protocol: Protocol, seed: int, progress: AttackProgress
    ) -> None:
        self.folder = folder
        self.protocol = protocol
        self.seed = seed
        self.progress = progress
        self.finished = folder.finished()

    def evaluate(self, row: Row, block: Block, number: int, seen: int) -> None:
        """The clean images and all cells of a row, on the block of this number, before which so
        many images were seen: some cells have the first images only."""
        self._clean(row, block, number)
        for cell in row.cells:
            left = len(block.images) if cell.limit is None else cell.limit - seen
            if left > 0:
                self._attack(row, cell, block.first(left), number)

    def _clean(self, row: Row, block: Block, number: int) -> None:
        if self._done(row, CLEAN, block):
            self.progress.skipped_clean(row, len(block.images), self.protocol)
            return
        monitor = self.progress.begun(row, CLEAN)
        start = time.perf_counter()
        outcome = evaluate_clean(
            row.name, row.defense, block, self.protocol, self.seed, monitor=monitor
        )
        self._keep(row, CLEAN, block, number, outcome, time.perf_counter() - start)

    def _attack(self, row: Row, cell: Cell, block: Block, number: int) -> None:
        if self._done(row, cell.name, block):
            self.progress.skipped(row, cell, len(block.images), self.protocol)
            return
        monitor = self.progress.begun(row, cell.name, cell)
        start = time.perf_counter()
        outcome = evaluate_attack(
            row.name,
            row.defense,
            cell,
            block,
            self.protocol,
            self.seed,
            clean=self._clean_kept(row, block),
            attacked=row.attacked,
            monitor=monitor,
        )
        seconds = time.perf_counter() - start
        what = {"defense": row.name, "attack": cell.name, "block": number}
        self.folder.append_iterations(what | {"iterations": monitor.iterations})
        self._keep(row, cell.name, block, number, outcome, seconds)

    def _clean_kept(self, row: Row, block: Block) -> Tensor:
        """On how many selection draws the row is right on the clean images (B,)."""
        kept = self.finished[row.name, CLEAN]
        return torch.tensor([kept[sample] for sample in block.samples.tolist()]).to(block.labels)

    def _done(self, row: Row, attack: str, block: Block) -> bool:
        """Whether an earlier run finished this block."""
        samples = self.finished.get((row.name, attack), {})
        return samples.keys() >= set(block.samples.tolist())

    def _keep(
        self, row: Row, attack: str, block: Block, number: int, outcome: Outcome, seconds: float
    ) -> None:
        """Writes what a block gave: images and timing first, records last, for they say that the
        block is done."""
        save_images(self.folder.path, row.name, attack, number, outcome.adversarial, block.samples)
        self.folder.append_timing(
            {"defense": row.name, "attack": attack, "block": number, "seconds": seconds}
        )
        self.folder.append_records(outcome.records)
        found = self.finished.setdefault((row.name, attack), {})
        found |= {record.sample: record.kept for record in outcome.records}
        self.progress.finished(row.name, attack, outcome.records)
