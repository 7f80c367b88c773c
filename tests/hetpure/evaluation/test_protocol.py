"""Counting: which draws choose, which report, and what becomes of a candidate."""

from collections.abc import Callable
from math import exp

import pytest
import torch
from torch import Tensor, nn

from hetpure.attacks import Attack, Threat
from hetpure.attacks.attack import Cost, Target
from hetpure.attacks.null import NullAttack
from hetpure.attention import AttentionMask
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.protocol import (
    CLEAN_CELL,
    Block,
    Cell,
    Protocol,
    evaluate_block,
    evaluate_cell,
    mean_predictions,
)
from hetpure.gradients import Execution
from hetpure.noise import BatchNoise, Group, Stream
from hetpure.purifiers import HeterogeneousPurifier


class Scripted(Defense):
    """Right or wrong as a table says, by stream and by the brightness of the image; keeps the
    streams and draws it was asked for."""

    def __init__(self, wrong: Callable[[int, int, Tensor], Tensor]) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        super().__init__(Classifier(network, num_classes=2, mean=[0.0], std=[1.0]))
        self.wrong = wrong
        self.asked: list[tuple[int, int]] = []
        self.pieces: list[int] = []  # images of each call

    @property
    def groups(self) -> frozenset[Group]:
        return frozenset(("forward", "reverse"))

    def forward(  # type: ignore[override]
        self, images: Tensor, noise: BatchNoise, mask: Tensor | None = None
    ) -> Tensor:
        stream, draw = int(noise.reverse[0, 0]), int(noise.reverse[0, 1])
        self.asked.append((stream, draw))
        self.pieces.append(len(images))
        wrong = self.wrong(stream, draw, images[:, 0, 0, 0])
        return torch.stack([(~wrong).float(), wrong.float()], dim=1)


class Brighten(Attack):
    """Two candidates: the image plus .1 and plus .2."""

    name = "brighten"

    def __init__(self, by: tuple[float, ...] = (0.1, 0.2), epsilon: float = 0.2) -> None:
        self.by = by
        self.epsilon = epsilon

    def describe(self) -> str:
        return "brighten"

    @property
    def threat(self) -> Threat:
        return Threat("linf", self.epsilon)

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        return Cost(candidates=len(self.by))

    def __call__(self, target: Target) -> Tensor:
        return torch.stack([target.images + by for by in self.by])


def block(count: int = 3) -> Block:
    images = torch.zeros(count, 1, 2, 2)
    return Block(images, torch.zeros(count, dtype=torch.long), torch.arange(count))


def test_selection_and_report_draws_are_disjoint_and_complete() -> None:
    defense = Scripted(lambda stream, draw, brightness: brightness < 0)
    evaluate_block("d", defense, Brighten(), block(), Protocol(4, 3), seed=0)
    selection = {(int(Stream.SELECTION), k) for k in range(3)}
    report = {(int(Stream.REPORT), k) for k in range(4)}
    assert set(defense.asked) == selection | report


def test_the_least_often_right_candidate_is_reported() -> None:
    """Candidate .2 fails on 2 of 3 selection draws, .1 on 1: .2 is chosen, though on the report
    draws it never fails: choosing must not look at them."""

    def wrong(stream: int, draw: int, brightness: Tensor) -> Tensor:
        if stream != Stream.SELECTION:
            return torch.zeros_like(brightness, dtype=torch.bool)
        return (brightness > 0.15) & (draw < 2) | (brightness > 0.05) & (draw < 1)

    outcome = evaluate_block("d", Scripted(wrong), Brighten(), block(), Protocol(4, 3), seed=0)
    robust = [record for record in outcome.records if record.attack == "brighten"]
    assert [record.chosen for record in robust] == [1, 1, 1]
    assert [record.selection for record in robust] == [[2, 1, 3]] * 3
    assert [record.predictions for record in robust] == [[0, 0, 0, 0]] * 3
    assert outcome.adversarial == pytest.approx(0.2)
    assert robust[0].linf == pytest.approx(0.2)
    assert robust[0].l2 == pytest.approx(0.4)


def test_the_clean_image_is_a_candidate() -> None:
    """A defence that only fails on the unperturbed image is reported on it."""
    defense = Scripted(lambda stream, draw, brightness: brightness == 0)
    outcome = evaluate_block("d", defense, Brighten(), block(), Protocol(2, 2), seed=0)
    robust = [record for record in outcome.records if record.attack == "brighten"]
    assert [record.chosen for record in robust] == [2, 2, 2]
    assert all(record.linf == 0 for record in robust)


def test_no_sample_is_dropped_for_being_wrong() -> None:
    defense = Scripted(lambda stream, draw, brightness: torch.ones_like(brightness).bool())
    outcome = evaluate_block("d", defense, Brighten(), block(5), Protocol(2, 2), seed=0)
    for attack in ("clean", "brighten"):
        assert [r.sample for r in outcome.records if r.attack == attack] == list(range(5))


def test_a_deterministic_defence_is_asked_once_a_candidate() -> None:
    classifier = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), num_classes=2, mean=[0.0], std=[1.0]
    )
    outcome = evaluate_block(
        "plain", Defense(classifier), Brighten(), block(), Protocol(20, 10), seed=0
    )
    assert {len(record.predictions) for record in outcome.records} == {1}


def test_weaker_than_full_names_what_is_less() -> None:
    assert Protocol(20, 10).weaker_than_full() == []
    assert len(Protocol(5, 3).weaker_than_full()) == 2


@pytest.mark.parametrize("arguments", [(0, 1), (1, 0)])
def test_draws_must_be_positive(arguments: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="Protocol\\.(report|selection)_draws must be >= 1"):
        Protocol(*arguments)


# Predictions from all draws at once

# Four draws whose majority, mean logit and mean probability are three classes. Class 1 has nearly
# all the probability of one draw and none of the others; class 2 is never far behind.
APART = torch.tensor([[0.2, -40, 0.1, 0.1], [0.2, -40, 0.1, 0.1], [-20, 30, 8, 0]])


def test_means_by_hand() -> None:
    logits = torch.stack([APART, APART.flip(1)], dim=1)
    probabilities = torch.tensor(
        [[exp(x) / sum(map(exp, row)) for x in row] for row in APART.tolist()]
    )
    sums = [column.sum().item() for column in APART.T]
    assert sums.index(max(sums)) == 2 and int(probabilities.sum(0).argmax()) == 1
    assert APART.argmax(1).tolist() == [0, 0, 1], "the majority is another class"
    mean_logit, mean_probability = mean_predictions(logits)
    assert mean_logit.tolist() == [2, 1] and mean_probability.tolist() == [1, 2]


def test_means_are_taken_in_float64() -> None:
    """The first class has the mean 1/3. In float32 its 1 is lost beside 1e8, and the other wins."""
    logits = torch.tensor([[[1e8, 0.0]], [[1.0, 0.5]], [[-1e8, 0.0]]])
    assert mean_predictions(logits)[0].tolist() == [0]


def test_one_draw_is_its_own_mean() -> None:
    for row in APART:
        assert [int(c) for c in mean_predictions(row[None, None])] == [int(row.argmax())] * 2


def test_means_are_over_the_report_draws_alone() -> None:
    """The selection draws, which favour another class by far, are no part of them."""

    class Spread(Scripted):
        def forward(  # type: ignore[override]
            self, images: Tensor, noise: BatchNoise, mask: Tensor | None = None
        ) -> Tensor:
            stream, draw = int(noise.reverse[0, 0]), int(noise.reverse[0, 1])
            away = torch.tensor([0.0, 0.0, 0.0, 999.0])
            answer = APART[draw] if stream == Stream.REPORT else away
            return answer.expand(len(images), -1)

    defense = Spread(lambda stream, draw, brightness: brightness < 0)
    for cell in (CLEAN_CELL, Cell("brighten", Brighten())):
        for record in evaluate_cell("d", defense, cell, block(), Protocol(3, 2), seed=0).records:
            assert record.predictions == [0, 0, 1]
            assert (record.mean_logit, record.mean_probability) == (2, 1)


def drawn(defense: Scripted, stream: Stream) -> list[int]:
    return sorted({draw for other, draw in defense.asked if other == stream})


def test_the_null_attack_is_reported_on_draws_of_its_own() -> None:
    """On the clean images' draws it would equal them, whatever the counting does wrong."""
    defense = Scripted(lambda stream, draw, brightness: brightness < 0)
    evaluate_cell("d", defense, CLEAN_CELL, block(), Protocol(4, 3), seed=0)
    assert drawn(defense, Stream.REPORT) == [0, 1, 2, 3]
    defense.asked.clear()
    cell = Cell("null", NullAttack(), report_from=4)
    outcome = evaluate_cell("d", defense, cell, block(), Protocol(4, 3), seed=0)
    assert drawn(defense, Stream.REPORT) == [4, 5, 6, 7]
    assert torch.equal(outcome.adversarial, block().images)


def test_an_unlucky_draw_of_the_selection_does_not_make_a_null_attack_succeed() -> None:
    """A defence that errs on half of all draws at random, whatever the image."""

    def wrong(stream: int, draw: int, brightness: Tensor) -> Tensor:
        return torch.full_like(brightness, (draw * 2654435761 + stream) % 97 < 48).bool()

    defense = Scripted(wrong)
    cell = Cell("null", NullAttack(), report_from=400)
    clean = evaluate_cell("d", defense, CLEAN_CELL, block(), Protocol(400, 10), seed=0)
    null = evaluate_cell("d", defense, cell, block(), Protocol(400, 10), seed=0)
    rates = [sum(record.predictions) / 400 for record in (clean.records[0], null.records[0])]
    assert rates == pytest.approx([0.5, 0.5], abs=0.05)


def test_clean_selection_is_asked_once_for_all_attacks() -> None:
    defense = Scripted(lambda stream, draw, brightness: (brightness < 0.15) & (draw == 1))
    clean = evaluate_cell("d", defense, CLEAN_CELL, block(), Protocol(4, 3), seed=0)
    kept = torch.tensor([record.kept for record in clean.records])
    assert kept.tolist() == [2, 2, 2]
    cell = Cell("brighten", Brighten())
    alone = evaluate_cell("d", defense, cell, block(), Protocol(4, 3), seed=0)
    assert selected(defense) == 3 * 3 * (1 + 3), "the clean image, then it and two candidates"
    defense.asked.clear()
    defense.pieces.clear()
    given = evaluate_cell("d", defense, cell, block(), Protocol(4, 3), seed=0, clean=kept)
    assert given.records == alone.records
    assert selected(defense) == 3 * 3 * 2


def selected(defense: Scripted) -> int:
    """How many images it was asked about on selection draws."""
    asked = zip(defense.asked, defense.pieces, strict=True)
    return sum(count for (stream, _), count in asked if stream == Stream.SELECTION)


@pytest.mark.parametrize("micro_batch", [4, 7, 64])
def test_candidates_share_full_pieces(
    micro_batch: int, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """All candidates' selection draws are one question, cut by the micro-batch alone; records are
    those of candidates that are asked one by one."""
    purifier = HeterogeneousPurifier(steps=20, t_large=0.1, t_small=0.05)
    defense = Defense(classifier, purifier, denoiser, AttentionMask(threshold=0.5))
    defense.execution = Execution("tape", micro_batch=micro_batch)
    some = Block(images, classifier(images).argmax(1), torch.tensor([5, 0, 9, 2]))
    protocol, cell = Protocol(2, 3), Cell("brighten", Brighten((0.05, 0.02, -0.1)))
    calls: list[int] = []
    with defense.classifier.register_forward_hook(lambda _, x, logits: calls.append(len(logits))):
        together = evaluate_cell("d", defense, cell, some, protocol, seed=0)
    full, rest = divmod(4 * 3 * 4, micro_batch)
    report = [min(micro_batch, 8 - k) for k in range(0, 8, micro_batch)]
    masks = [4] * 4  # of each candidate once; those reported are not looked at again
    assert calls == masks + [micro_batch] * full + [rest] * (rest > 0) + report
    for i, by in enumerate((0.05, 0.02, -0.1)):
        single = Cell("brighten", Brighten((by,)))
        alone = evaluate_cell("d", defense, single, some, protocol, seed=0)
        ours, theirs = together.records, alone.records
        assert [r.selection[i] for r in ours] == [r.selection[0] for r in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            if mine.chosen == i and other.chosen == 0:
                assert mine.predictions == other.predictions and mine.coverage == other.coverage
    assert {record.chosen for record in together.records} != {3}, "something was compared"


@pytest.mark.parametrize(
    ("known", "streams"),
    [
        ((), (Stream.REPORT, Stream.REPORT)),
        (("forward",), (Stream.DW_BOX, Stream.REPORT)),
        (("reverse",), (Stream.REPORT, Stream.DW_BOX)),
        (("forward", "reverse"), (Stream.DW_BOX, Stream.DW_BOX)),
    ],
    ids=lambda value: "+".join(map(str, value)) or "white-box",
)
def test_what_the_attacker_knows_is_what_the_defence_runs_with(
    known: tuple[Group, ...], streams: tuple[Stream, Stream]
) -> None:
    seen: list[tuple[int, int, int, int]] = []

    class Watched(Scripted):
        def forward(  # type: ignore[override]
            self, images: Tensor, noise: BatchNoise, mask: Tensor | None = None
        ) -> Tensor:
            seen.append(
                (
                    int(noise.forward[0, 0]),
                    int(noise.forward[0, 1]),
                    int(noise.reverse[0, 0]),
                    int(noise.reverse[0, 1]),
                )
            )
            return super().forward(images, noise, mask)

    defense = Watched(lambda stream, draw, brightness: brightness < 0)
    cell = Cell("brighten", Brighten(), known)
    outcome = evaluate_cell("d", defense, cell, block(), Protocol(4, 3), seed=0)
    reports = 1 if len(known) == 2 else 4
    assert {len(record.predictions) for record in outcome.records} == {reports}
    assert all(record.known == list(known) for record in outcome.records)
    for k, (forward, first, reverse, second) in enumerate(seen[-reports:]):
        assert (forward, reverse) == streams
        assert first == (0 if "forward" in known else k)
        assert second == (0 if "reverse" in known else k)
    anew = [s for s in seen if s[0] != Stream.DW_BOX and "forward" in known]
    assert not anew, "a group that is known is never drawn anew"


def test_a_defence_that_no_noise_makes_deterministic_is_refused() -> None:
    """Randomness from outside its noise: two runs under the same noise differ."""
    generator = torch.Generator().manual_seed(0)

    class Loose(Scripted):
        def forward(  # type: ignore[override]
            self, images: Tensor, noise: BatchNoise, mask: Tensor | None = None
        ) -> Tensor:
            return super().forward(images, noise, mask) + torch.rand(1, generator=generator)

    defense = Loose(lambda stream, draw, brightness: brightness < 0)
    cell = Cell("brighten", Brighten(), ("forward", "reverse"))
    with pytest.raises(InputError, match="differently when the same images and noise"):
        evaluate_cell("d", defense, cell, block(), Protocol(4, 3), seed=0)
    evaluate_cell("d", defense, Cell("b", Brighten()), block(), Protocol(4, 3), seed=0)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (Brighten((0.1, 0.3)), "candidate 1 of sample 0 lies outside the ball Linf 0.2"),
        (Brighten((-0.1,)), r"candidate 0 of sample 0 has pixels outside \[0, 1\]"),
        (Brighten((float("nan"),)), "candidate 0 of sample 0 holds NaN"),
    ],
)
def test_an_attack_that_leaves_its_ball_is_named(attack: Brighten, message: str) -> None:
    defense = Scripted(lambda stream, draw, brightness: brightness < 0)
    with pytest.raises(AssertionError, match=message):
        evaluate_cell("d", defense, Cell("b", attack), block(), Protocol(1, 1), seed=0)


def test_a_label_that_is_no_class_is_named() -> None:
    defense = Scripted(lambda stream, draw, brightness: brightness < 0)
    odd = Block(torch.zeros(2, 1, 2, 2), torch.tensor([0, 2]), torch.tensor([4, 9]))
    for evaluate in (
        lambda: evaluate_cell("d", defense, CLEAN_CELL, odd, Protocol(1, 1), seed=0),
        lambda: evaluate_cell("d", defense, Cell("b", Brighten()), odd, Protocol(1, 1), seed=0),
    ):
        with pytest.raises(InputError, match="sample 9 has the label 2.*classes 0 to 1"):
            evaluate()
