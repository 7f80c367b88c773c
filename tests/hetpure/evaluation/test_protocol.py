"""Counting: which draws choose, which report, and what becomes of a candidate."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hetpure.attacks import Attack
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Block, Protocol, evaluate_block
from hetpure.noise import Noise, RowNoise, Stream


class Scripted(Defense):
    """Right or wrong as a table says, by stream and by the brightness of the image; keeps the
    streams and draws it was asked for."""

    def __init__(self, wrong: Callable[[int, int, Tensor], Tensor]) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        super().__init__(Classifier(network, num_classes=2, mean=[0.0], std=[1.0]))
        self.wrong = wrong
        self.asked: list[tuple[int, int]] = []

    @property
    def stochastic(self) -> bool:
        return True

    def forward(  # type: ignore[override]
        self, images: Tensor, noise: RowNoise, mask: Tensor | None = None
    ) -> Tensor:
        stream, draw = int(noise.reverse_stream[0]), int(noise.reverse_draw[0])
        self.asked.append((stream, draw))
        wrong = self.wrong(stream, draw, images[:, 0, 0, 0])
        return torch.stack([(~wrong).float(), wrong.float()], dim=1)


class Brighten(Attack):
    """Two candidates: the image plus .1 and plus .2."""

    name = "brighten"
    candidates = 2

    def describe(self) -> str:
        return "brighten"

    def weaker_than_full(self) -> list[str]:
        return []

    def purifications(self, defense: Defense) -> int:
        return 0

    def draws(self, defense: Defense) -> int:
        return 1

    def __call__(
        self,
        defense: Defense,
        images: Tensor,
        labels: Tensor,
        samples: Tensor,
        noise: Noise,
        *,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> Tensor:
        return torch.stack([images + 0.1, images + 0.2])


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
    with pytest.raises(InputError, match="--model.protocol"):
        Protocol(*arguments)
