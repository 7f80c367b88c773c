"""A run verified: its saved images are asked again, on draws that it has never seen."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetpure.attacks.attack import check_candidates, unknown_groups
from hetpure.errors import InputError
from hetpure.evaluation.description import Run
from hetpure.evaluation.facts import run_record
from hetpure.evaluation.identity import changes, differences
from hetpure.evaluation.protocol import Block, Cell, Record, mean_predictions
from hetpure.evaluation.results import FRESH, Counting, outcomes, recorded, robust_records
from hetpure.evaluation.rows import Row
from hetpure.evaluation.run_results import Contents, run_results
from hetpure.evaluation.statistics import CONFIDENCE, Estimate, exchangeable, mean_accuracy
from hetpure.evaluation.store import RESULTS, Store, json_bytes
from hetpure.evaluation.worker import jobs_of
from hetpure.expectation import Query, answers
from hetpure.noise import SEEDS, Draw, Group, Noise, Stream

MOST_REPORT_DRAWS = 2**14  # of a run that can be verified
SPAN = 2 * MOST_REPORT_DRAWS  # indices of a run, as many of the null attack, and of each replay
OTHER_MACHINE = ("versions", "device")  # of an identity, which a replay may change
ROBUST = "robust"
# Answers to known draws that may change, a share of all: what a run in bfloat16 may differ from one
# in float32. Another machine rounds otherwise, and an attack moves images to where that decides.
ROUNDING = 0.02
Begin = Callable[[str, str], None]


@dataclass(frozen=True)
class Claim:
    """A row under an attack: what its records claim, and what the replay counted.

    Args:
        row: of the run.
        attack: `clean`, or `robust`, the per-sample worst.
        counting: what of the draws is counted.
        claimed: the accuracy by the run's records.
        counted: the same by the replay's draws.
        low: the lowest claim that is expected, were the draws of both alike.
        high: the highest one.
        otherwise: images that answer otherwise, where no noise is left to draw; else None.
    """

    row: str
    attack: str
    counting: Counting
    claimed: Estimate
    counted: Estimate
    low: float
    high: float
    otherwise: int | None = None

    @property
    def within_chance(self) -> bool:
        """Whether the claim is one that is expected."""
        return self.low <= self.claimed.accuracy <= self.high


@dataclass(frozen=True)
class Problem:
    """What is wrong with the images or the records of a row under an attack themselves."""

    row: str
    attack: str
    said: str


@dataclass(frozen=True)
class Replay:
    """What asking a run's images again gave: its claims, and what has a problem instead."""

    claims: Sequence[Claim]
    problems: Sequence[Problem]

    @property
    def outside(self) -> list[Claim]:
        """The claims that are not within chance."""
        return [claim for claim in self.claims if not claim.within_chance]

    @property
    def within_chance(self) -> bool:
        """Whether all claims are, and nothing has a problem."""
        return not self.outside and not self.problems


@dataclass(frozen=True)
class Saved:
    """What the store holds of a row under an attack on a block: the data's images, the saved ones,
    their sample ids, and the records."""

    block: Block
    images: Tensor
    samples: Tensor
    records: Sequence[Record]


@dataclass(frozen=True)
class Pairs:
    """Records of a row under an attack, each beside the one that the replay makes of its image;
    and whether no noise was left to draw."""

    row: str
    attack: str
    claimed: Sequence[Record]
    counted: Sequence[Record]
    fixed: bool

    @property
    def countings(self) -> Sequence[Counting]:
        """What of the draws the run's results count. Of a single answer all are the same."""
        if self.claimed[0].known:
            return ("dw_box",)
        if self.fixed:
            return FRESH[:1]
        return [name for name in FRESH if recorded(self.claimed, name)]

    @property
    def otherwise(self) -> int:
        """Images with other answers."""
        pairs = zip(self.claimed, self.counted, strict=True)
        return sum(first.predictions != second.predictions for first, second in pairs)


def check_is_that_run(run: Run, store: Store) -> None:
    """InputError unless what the config describes here is the run that the store holds: the same
    settings, weights and images, and the same words and numbers about them. Versions and device may
    be others."""
    before, now = Contents.read(store).run, json.loads(json_bytes(run_record(run)))
    parts = (
        {k: v for k, v in each["identity"].items() if k not in OTHER_MACHINE}
        | {"facts": each["facts"]}
        for each in (before, now)
    )
    if lines := differences(*parts):
        raise InputError(
            f"{store.path}: what its config describes here is not what it holds:"
            f" {'; '.join(lines[:5])}: get the weights and the images of that run"
        )


def replay(run: Run, store: Store, seed: int, begin: Begin = lambda *_: None) -> Replay:
    """The claims of a run, each beside a replay of its images on as many fresh report draws.

    The claim and the replay are paired: they ask the same images. An interval of two independent
    samples would also hold the spread between images, which both share, and let a false claim of
    several points pass at a small n. Given the images only draws differ, and `exchangeable` says
    which claims are then expected. The intervals of all claims hold together with 95% (Bonferroni),
    so that many rows and attacks make no false alarm. What the attacker knew of the noise is kept;
    the rest is drawn anew. Answers that have no noise left have to be the same, but for rounding.

    The run's own selection draws are asked too, since they choose whose record `robust` takes.
    `robust` is then a claim as the others are. The audit's attacks are not replayed. Nothing is
    said about how strong an attack is.

    `begin` is told the row and the attack. `seed` chooses the draws: no seed's are another's, nor
    the run's.
    """
    if not 0 <= seed < SEEDS:
        raise InputError(f"--seed must be in 0 to {SEEDS - 1}, got {seed}")
    if run.config.protocol.report_draws > MOST_REPORT_DRAWS:
        raise InputError(f"runs of at most {MOST_REPORT_DRAWS} report draws can be verified")
    pairs, problems = [], []
    rows = [row for row in run.rows.values() if store.struck(row.name) is None]
    for row in rows:
        for cell in row.cells:
            begin(row.name, cell.name)
            problem: str | None = None
            claimed: list[Record] = []
            counted: list[Record] = []
            for saved in _saved(run, store, row, cell):
                problem = problem or _problem(run, row, cell, saved)
                claimed += saved.records
                if problem is None:
                    counted += _again(run, row, cell, saved, seed)
            if claimed and problem is None:
                fixed = not unknown_groups(row.defense, cell.known)
                pairs.append(Pairs(row.name, cell.name, claimed, counted, fixed))
                selections = run.config.protocol.selections(row.defense, cell.known)
                problem = _unlike(pairs[-1], selections)
            if problem is not None:
                problems.append(Problem(row.name, cell.name, problem))
    if not pairs and not problems:
        raise InputError(f"{store.path}: it holds no finished block yet, nothing is claimed")
    doubtful = {problem.row for problem in problems}
    whole = Contents.read(store).records(complete=True)
    for name in dict.fromkeys(pair.row for pair in pairs if pair.row not in doubtful):
        if of_row := [record for record in whole if record.defense == name]:
            pairs.append(_robust(of_row, [pair for pair in pairs if pair.row == name]))
    return Replay(_claims(pairs), problems)


def misreported(store: Store) -> list[str]:
    """What `results.json` says of the defences otherwise than the records, and what only one of
    them says, one line each. None of a run that has not written it, or wrote it before its last
    records: see `check_is_up_to_date`."""
    written, contents = _results(store), Contents.read(store)
    if written is None or _is_older(written, contents):
        return []
    computed = _from_json(json_bytes(run_results(store, contents)).decode())
    return [
        f"{RESULTS}, {name}: it says {str(said)[:60]}, the records {str(now)[:60]}"
        for name, said, now in changes(written["defenses"], computed["defenses"])
    ]


def check_is_up_to_date(store: Store) -> None:
    """InputError where `results.json` is of fewer records than are there: it is not compared."""
    written = _results(store)
    if written is not None and _is_older(written, Contents.read(store)):
        raise InputError(
            f"{store.path / RESULTS} is older than the records, and was not compared: run"
            f" hetpure report {store.path}, and verify again"
        )


def _results(store: Store) -> dict[str, Any] | None:
    """What `results.json` says; None where it is not there."""
    path = store.path / RESULTS
    if not path.exists():
        return None
    try:
        written = _from_json(path.read_text("utf-8"))
        if not isinstance(written, dict) or not isinstance(written.get("defenses"), dict):
            raise ValueError("it has no defences")
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): delete it") from None
    return written


def _from_json(text: str) -> Any:
    """A number that is none is a word: it would differ from itself."""
    return json.loads(text, parse_constant=str)


def _is_older(written: Mapping[str, Any], contents: Contents) -> bool:
    """Whether results were written when there were fewer records."""
    ids: dict[str, set[int]] = {}
    for record in contents.records(complete=True):
        ids.setdefault(record.defense, set()).add(record.sample)
    samples = max(map(len, ids.values()), default=0)
    return (written.get("missing"), written.get("samples")) != (contents.missing, samples)


def _saved(run: Run, store: Store, row: Row, cell: Cell) -> Iterator[Saved]:
    """The finished blocks of a row under an attack."""
    for block in range(run.blocks):
        for job, other, positions in jobs_of(run, row.name, block):
            if other.name == cell.name and store.has(job):
                data = run.images.read(positions)
                images, samples = store.saved_block(job)
                yield Saved(data, images.to(data.images), samples, store.get(job).records)


def _problem(run: Run, row: Row, cell: Cell, saved: Saved) -> str | None:
    """What of a block cannot be as its records say: its images, samples and labels, what the
    attacker knew, the draws, or the ball."""
    records, block, images = saved.records, saved.block, saved.images
    ids, threat = block.samples.tolist(), cell.attack.threat
    draws = run.config.protocol.reports(row.defense, cell.known)
    if len(records) != len(ids):
        return f"a block has records of {len(records)} images, and the data {len(ids)}"
    if [r.sample for r in records] != ids or saved.samples.tolist() != ids:
        return "its samples are not those of the data"
    if [r.label for r in records] != block.labels.tolist():
        return "its labels are not those of the data"
    if images.shape != block.images.shape:
        return f"its images are {tuple(images.shape)}, the data's {tuple(block.images.shape)}"
    if any(len(r.predictions) != draws for r in records):
        return f"its samples have not {draws} draws each, as the config says"
    about = (None if threat is None else threat.ball, list(cell.known))
    if any((r.threat, r.known) != about for r in records):
        return "its ball or its known noise is not that of the config"
    try:
        check_candidates(images[None], block.images, block.samples, threat)
    except AssertionError as error:
        return str(error)
    return None


@torch.no_grad()
def _again(run: Run, row: Row, cell: Cell, saved: Saved, seed: int) -> list[Record]:
    """The records of a block by fresh report draws, as many as it has, and by the run's selection
    draws."""
    images, block, known = saved.images, saved.block, cell.known
    mask = row.defense.mask(images, block.samples)

    def ask(stream: Stream, draws: range) -> Tensor:
        noises = noises_of(run.config.seed, stream, draws, known)
        return answers(row.defense, Query(images, block.samples, mask, noises))

    logits = ask(Stream.REPORT, fresh_draws(seed, run.config.protocol.reports(row.defense, known)))
    chosen = ask(Stream.SELECTION, range(run.config.protocol.selections(row.defense, known)))
    kept = (chosen.argmax(2) == block.labels).sum(0).tolist()
    predictions = logits.argmax(2).T.tolist()
    mean_logit, mean_probability = (classes.tolist() for classes in mean_predictions(logits))
    return [
        replace(
            record,
            predictions=predictions[i],
            selection=[kept[i]],
            chosen=0,
            mean_logit=mean_logit[i],
            mean_probability=mean_probability[i],
        )
        for i, record in enumerate(saved.records)
    ]


def fresh_draws(seed: int, count: int) -> range:
    """The report draws of a replay: no other seed's, and none that a run or its null attack has."""
    first = (seed + 1) * SPAN
    return range(first, first + count)


def noises_of(seed: int, stream: Stream, draws: range, known: tuple[Group, ...]) -> list[Noise]:
    """The noises of a run of this seed on draws of a stream; what the attacker knew is kept."""
    noise = Noise.of(seed, Stream.DW_BOX)
    return [noise.redraw(Draw(stream, draw), keep=known) for draw in draws]


def _unlike(pair: Pairs, selections: int) -> str | None:
    """Which answers that no fresh noise changes are not what the records say."""
    n = len(pair.claimed)
    if pair.fixed and pair.otherwise > rounded(n):
        return f"{pair.otherwise} of {n} images answer otherwise, and there is no noise to draw"
    pairs = zip(pair.claimed, pair.counted, strict=True)
    other = sum(abs(first.kept - second.kept) for first, second in pairs)
    if other > rounded(n * selections):
        return f"{other} of {n * selections} answers on its selection draws are others"
    return None


def rounded(answers: int) -> int:
    """How many of so many answers another machine's rounding may change."""
    return max(1, int(ROUNDING * answers))


def _robust(records: Sequence[Record], pairs: Sequence[Pairs]) -> Pairs:
    """The per-sample worst of one row, whose records choose it by their selection draws."""
    counted = {(record.attack, record.sample): record for pair in pairs for record in pair.counted}
    chosen = robust_records(records)
    again = [counted[record.attack, record.sample] for record in chosen]
    return Pairs(pairs[0].row, ROBUST, chosen, again, pairs[0].fixed)


def _claims(pairs: Sequence[Pairs]) -> list[Claim]:
    """Everything that is counted of the pairs. All intervals hold together."""
    counted = [(pair, counting) for pair in pairs for counting in pair.countings]
    level = 1 - (1 - CONFIDENCE) / max(len(counted), 1)
    return [_claim(pair, counting, level) for pair, counting in counted]


def _claim(pair: Pairs, counting: Counting, level: float) -> Claim:
    right, again = (_right(records, counting) for records in (pair.claimed, pair.counted))
    claimed, counted = mean_accuracy(right), mean_accuracy(again)
    low, high, otherwise = *exchangeable(right, again, level), None
    if pair.fixed:  # nothing was drawn: only rounding tells both apart
        otherwise = pair.otherwise
        share = otherwise / len(right)
        low, high = max(counted.accuracy - share, 0.0), min(counted.accuracy + share, 1.0)
    return Claim(pair.row, pair.attack, counting, claimed, counted, low, high, otherwise)


def _right(records: Sequence[Record], counting: Counting) -> NDArray[np.bool_]:
    """What is right (n, draws); of a counting that has one outcome a sample, (n, 1)."""
    return outcomes(records, counting).reshape(len(records), -1)
