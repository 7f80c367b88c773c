"""A run verified: its saved images are asked again, on draws that it has never seen."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetpure.attacks.attack import check_candidates
from hetpure.errors import InputError
from hetpure.evaluation.description import Run
from hetpure.evaluation.identity import differences
from hetpure.evaluation.protocol import AUDIT, Block, Cell, Record
from hetpure.evaluation.results import draws_right, summarise
from hetpure.evaluation.rows import Row
from hetpure.evaluation.run_results import Contents
from hetpure.evaluation.statistics import CONFIDENCE, Estimate, exchangeable, mean_accuracy
from hetpure.evaluation.store import RESULTS, Finished, Job, Store
from hetpure.expectation import Query, answers
from hetpure.noise import SEEDS, Draw, Noise, Stream

MOST_REPLAYED = 2**15  # report draws of a run: so many indices has each replay for itself
OTHER_MACHINE = ("versions", "device")  # of an identity, which a replay may change


@dataclass(frozen=True)
class Claim:
    """A row under an attack: what its records claim, and what the replay counted.

    Args:
        row: of the run.
        attack: or `clean`.
        claimed: the mean accuracy over draws, by the run's records.
        counted: the same over the replay's draws.
        low: the lowest claim that agrees with the replay.
        high: the highest one.
        problem: what is wrong with the images or the labels themselves; None where nothing is.
    """

    row: str
    attack: str
    claimed: Estimate
    counted: Estimate
    low: float
    high: float
    problem: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the claim agrees with the replay."""
        return self.problem is None and self.low <= self.claimed.accuracy <= self.high


def check_is_that_run(run: Run, store: Store) -> None:
    """InputError unless what the config describes here is the run that the store holds: the same
    settings, weights and images. Versions and device may be others."""
    before, now = Contents.read(store).run["identity"], run.identity()
    parts = ({k: v for k, v in each.items() if k not in OTHER_MACHINE} for each in (before, now))
    if lines := differences(*parts):
        raise InputError(
            f"{store.path}: what its config describes here is not what it holds:"
            f" {'; '.join(lines[:5])}: get the weights and the images of that run"
        )


def replay(
    run: Run, store: Store, seed: int, begin: Callable[[str, str], None] = lambda *_: None
) -> list[Claim]:
    """The claims of a run, each beside a replay of its images on as many fresh report draws.

    The claim and the replay are paired: they ask the same images. An interval of two independent
    samples would also hold the spread between images, which both share, and let a false claim of
    several points pass at a small n. Given the images only draws differ, and `exchangeable` says
    which claims they allow. The intervals of all claims hold together with 95% (Bonferroni), so
    that many rows and attacks make no false alarm. What the attacker knew of the noise is kept; the
    rest is drawn anew. The audit's attacks are not replayed. Nothing is said about how strong an
    attack is.

    `begin` is told the row and the attack. `seed` chooses the draws: no seed's are another's, nor
    the run's.
    """
    if not 0 <= seed < SEEDS:
        raise InputError(f"--seed must be in 0 to {SEEDS - 1}, got {seed}")
    if run.config.protocol.report_draws > MOST_REPLAYED:
        raise InputError(f"runs of at most {MOST_REPLAYED} report draws can be verified")
    kept = [
        (row, cell, finished)
        for row in run.rows.values()
        if store.struck(row.name) is None
        for cell in row.cells
        if (finished := dict(_finished(run, store, row, cell)))
    ]
    if not kept:
        raise InputError(f"{store.path}: it holds no finished block yet, nothing is claimed")
    level = 1 - (1 - CONFIDENCE) / len(kept)
    claims = []
    for row, cell, finished in kept:
        begin(row.name, cell.name)
        problem, counted = None, []
        for job, left in finished.items():
            block = run.images.read(run.positions(job.block)).first(len(left.records))
            images = store.block_images(job).to(block.images)
            problem = problem or _problem(left.records, images, block, cell)
            if problem is None:
                counted.append(_right(run, row, cell, images, block, seed, left.records))
        right = draws_right([record for left in finished.values() for record in left.records])
        claims.append(_claim(row, cell, right, problem, counted, level))
    return claims


def misreported(store: Store) -> list[str]:
    """The accuracies of `results.json` that are not those of the records, one line each; of a run
    that has not written it, none."""
    path = store.path / RESULTS
    if not path.exists():
        return []
    records = Contents.read(store).records(complete=True)
    try:
        written = dict(_accuracies(json.loads(path.read_text("utf-8"))["defenses"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it") from None
    computed = dict(_accuracies(summarise(records)))
    return [
        f"{RESULTS}, {name}: it says {_percent(written.get(name))}, the records {_percent(value)}"
        for name, value in computed.items()
        if written.get(name) != value
    ]


def _finished(run: Run, store: Store, row: Row, cell: Cell) -> Iterator[tuple[Job, Finished]]:
    for block in range(run.blocks):
        job = Job(row.name, cell.name, block)
        if store.has(job):
            yield job, store.get(job)


def _problem(records: list[Record], images: Tensor, block: Block, cell: Cell) -> str | None:
    """What of a block cannot be as its records say: samples, labels, draws, or the ball."""
    if [r.sample for r in records] != block.samples.tolist():
        return "its samples are not those of the data"
    if [r.label for r in records] != block.labels.tolist():
        return "its labels are not those of the data"
    if images.shape != block.images.shape:
        return f"its images are {tuple(images.shape)}, the data's {tuple(block.images.shape)}"
    if len({len(r.predictions) for r in records}) != 1 or not records[0].predictions:
        return "its samples have different numbers of draws"
    try:
        check_candidates(images[None], block.images, block.samples, cell.attack.threat)
    except AssertionError as error:
        return str(error)
    return None


@torch.no_grad()
def _right(
    run: Run,
    row: Row,
    cell: Cell,
    images: Tensor,
    block: Block,
    seed: int,
    records: list[Record],
) -> NDArray[np.bool_]:
    """Which answers on fresh draws are right (B, draws): as many draws as the records have."""
    known = Noise.of(run.config.seed, Stream.DW_BOX)
    first = (seed + 1) * MOST_REPLAYED
    draws = range(first, first + len(records[0].predictions))
    noises = [known.redraw(Draw(Stream.REPORT, draw), keep=cell.known) for draw in draws]
    mask = row.defense.mask(images, block.samples)
    logits = answers(row.defense, Query(images, block.samples, mask, noises))
    right: NDArray[np.bool_] = (logits.argmax(2) == block.labels).T.cpu().numpy()
    return right


def _claim(
    row: Row,
    cell: Cell,
    right: NDArray[np.bool_],
    problem: str | None,
    counted: list[NDArray[np.bool_]],
    level: float,
) -> Claim:
    claimed = mean_accuracy(right)
    if problem is not None:
        nothing = Estimate(float("nan"), 0.0, 1.0, 0, 0)
        return Claim(row.name, cell.name, claimed, nothing, float("nan"), float("nan"), problem)
    again = np.concatenate(counted)
    low, high = exchangeable(right, again, level)
    return Claim(row.name, cell.name, claimed, mean_accuracy(again), low, high)


def _accuracies(defenses: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Of each row and attack, by protocol."""
    for row, summary in defenses.items():
        attacks = {"clean": summary["clean"], "robust": summary["robust"], **summary["attacks"]}
        for attack, protocols in attacks.items():
            if attack.startswith(AUDIT):
                continue
            for protocol, estimate in protocols.items():
                if isinstance(estimate, Mapping) and "accuracy" in estimate:
                    yield f"{row}, {attack}, {protocol}", estimate["accuracy"]


def _percent(share: float | None) -> str:
    return "nothing" if share is None else f"{100 * share:.1f}%"
