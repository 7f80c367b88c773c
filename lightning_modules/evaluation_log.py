"""What loggers are told of an evaluation while it runs."""

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import count

import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray
from torch import Tensor

from hetpure.errors import only_warned
from hetpure.evaluation.description import Run
from hetpure.evaluation.protocol import AUDIT, CLEAN, NULL, Record
from hetpure.evaluation.store import Job, Store
from hetpure.evaluation.worker import Watch
from lightning_modules.loggers import log_histogram, log_image, log_numbers

IMAGES = 8  # of a gallery
TENFOLD = 10.0


class EvaluationLog(Watch):
    """Tells loggers what an evaluation finds while it runs.

    By row and attack: `loss`, `right` and `agreement` of each iteration (the cosine between the
    gradients of the two halves of the EOT draws), `accuracy` of the images so far, a histogram of
    the images' shares of right draws, and once a gallery: clean, adversarial, and ten times their
    difference. Steps count what was logged, so they only rise. A logger that fails costs one line
    of warning and no result: it is told nothing more.

    Args:
        loggers: of the trainer.
        run: that is evaluated.
        store: of the run.
    """

    def __init__(self, loggers: Sequence[Logger], run: Run, store: Store) -> None:
        self.loggers, self.run, self.store = list(loggers), run, store
        self.steps = count()
        self.shares: dict[tuple[str, str], list[float]] = {}

    def iteration(self, row: str, attack: str, number: int, values: Mapping[str, float]) -> None:
        told = ("loss", "right", "agreement")
        known = {f"{row}/{attack}/{name}": values[name] for name in told if name in values}
        if known:
            self._numbers(known)

    def finish(self, row: str, attack: str, records: Sequence[Record]) -> None:
        first = (row, attack) not in self.shares
        shares = self.shares.setdefault((row, attack), [])
        shares += [
            record.predictions.count(record.label) / len(record.predictions) for record in records
        ]
        self._numbers({f"{row}/{attack}/accuracy": float(np.mean(shares))})
        right = torch.tensor(shares)
        self._tell(
            lambda logger, step: log_histogram(logger, f"{row}/{attack}/right_draws", right, step)
        )
        if first and attack not in (CLEAN, NULL) and not attack.startswith(AUDIT):
            self._gallery(row, attack, records[0].sample)

    def _numbers(self, values: dict[str, float]) -> None:
        self._tell(lambda logger, step: log_numbers(logger, values, step))

    def _gallery(self, row: str, attack: str, sample: int) -> None:
        with only_warned(f"a gallery of {row}, {attack}"):
            block = self.run.images.samples.tolist().index(sample) // self.run.block
            clean = self.run.read(block).images[:IMAGES].cpu()
            adversarial = self.store.block_images(Job(row, attack, block))[:IMAGES]
            picture = gallery(clean[: len(adversarial)], adversarial)
            self._tell(lambda logger, step: log_image(logger, f"{row}/{attack}", picture, step))

    def _tell(self, what: Callable[[Logger, int], None]) -> None:
        """Every logger, at the next step. One that fails is told nothing more."""
        step = next(self.steps)
        for logger in list(self.loggers):
            try:
                what(logger, step)
            except Exception as error:
                self.loggers.remove(logger)
                name, reason = type(logger).__name__, (str(error).splitlines() or [""])[0][:200]
                print(f"warning: {name} failed and is told nothing more: {reason}", file=sys.stderr)


def gallery(clean: Tensor, adversarial: Tensor) -> NDArray[np.uint8]:
    """Clean images above their adversarial ones above ten times the difference around gray: from
    pixels (B, C, H, W) in [0, 1] one image (3H, BW, 3)."""
    difference = (0.5 + TENFOLD * (adversarial - clean)).clamp(0, 1)
    rows = [torch.cat(list(images), dim=2) for images in (clean, adversarial, difference)]
    picture = torch.cat(rows, dim=1)
    picture = picture.expand(3, -1, -1) if len(picture) == 1 else picture[:3]
    pixels: NDArray[np.uint8] = (255 * picture.movedim(0, -1)).round().byte().numpy()
    return pixels
