"""A surrogate is what the attack differentiates, and nothing else."""

import pytest
import torch
from torch import Tensor, nn

from hetpure.attacks import PGD, Addresses, Square
from hetpure.attacks.attack import Target
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.evaluation.cost import cell_cost
from hetpure.evaluation.protocol import Block, Cell, Protocol, evaluate_block
from hetpure.evaluation.rows import Row
from hetpure.expectation import Query, answers
from hetpure.noise import Noise, Stream
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier

ATTACK = PGD(epsilon=0.1, steps=2, step_size=0.05, eot_samples=2, restarts=2, mask="recomputed")
PROTOCOL = Protocol(report_draws=4, selection_draws=3)


@pytest.fixture
def defense(classifier: Classifier, denoiser: Denoiser) -> Defense:
    return Defense(classifier, HeterogeneousPurifier(steps=20), denoiser, policy="tape")


@pytest.fixture
def surrogate(classifier: Classifier, denoiser: Denoiser) -> Defense:
    return Defense(classifier, UniformPurifier(strength=0.1, steps=20), denoiser, policy="tape")


@pytest.fixture
def block(images: Tensor) -> Block:
    return Block(images[:2], torch.tensor([0, 1]), torch.tensor([5, 3]))


def test_gradients_go_through_the_surrogate_and_answers_through_the_defence(
    defense: Defense, surrogate: Defense, block: Block
) -> None:
    assert (defense.network_calls, surrogate.network_calls) == (6, 2)
    seen = {True: 0, False: 0}

    def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen[arguments[0].requires_grad] += len(arguments[0])

    assert defense.denoiser is not None
    handle = defense.denoiser.register_forward_pre_hook(hook)
    outcome = evaluate_block("d", defense, ATTACK, block, PROTOCOL, seed=0, attacked=surrogate)
    handle.remove()
    differentiated = 2 * 2 * 2 * 2  # images, restarts, steps, EOT draws
    answered = 2 * (2 * 4 + 5 * 3)  # two reports of 4 draws, 4 candidates and the image on 3
    assert seen == {True: 2 * differentiated, False: 6 * answered}
    assert sum(record.network_calls for record in outcome.records) == sum(seen.values())


def test_an_attack_without_gradients_asks_the_defence(defense: Defense, surrogate: Defense) -> None:
    """What is to expose a surrogate's gradient must not look at the surrogate."""
    row, protocol = Row("d", defense, surrogate), PROTOCOL
    square = Cell("square", Square(epsilon=0.1, steps=5, eot_samples=1))
    followed, asked = row.asked_by(Cell("pgd", ATTACK)), row.asked_by(square)
    assert followed is surrogate and asked is defense
    assert cell_cost(row, square, protocol).calls_of_query == defense.network_calls


def test_records_equal_a_run_by_hand(defense: Defense, surrogate: Defense, block: Block) -> None:
    outcome = evaluate_block("d", defense, ATTACK, block, PROTOCOL, seed=0, attacked=surrogate)
    report = [Noise.of(0, Stream.REPORT, k) for k in range(4)]
    select = [Noise.of(0, Stream.SELECTION, k) for k in range(3)]
    addresses = Addresses(block.samples, Noise.of(0, Stream.DW_BOX))
    candidates = ATTACK(Target(surrogate, block.images, block.labels, addresses))
    candidates = torch.stack([*candidates, block.images])
    direct = ATTACK(Target(defense, block.images, block.labels, addresses))
    assert not torch.equal(candidates[:4], direct), "the surrogate leads elsewhere"
    robust = [record for record in outcome.records if record.attack == ATTACK.name]
    for i, record in enumerate(robust):
        right = [
            int((predicted(defense, each, block, select)[i] == record.label).sum())
            for each in candidates
        ]
        assert record.selection == right
        assert record.chosen == right.index(min(right))
        assert torch.equal(outcome.adversarial[i], candidates[record.chosen, i])
    predictions = predicted(defense, outcome.adversarial, block, report)
    assert [record.predictions for record in robust] == predictions.tolist()
    mask = defense.mask(outcome.adversarial, block.samples)
    assert mask is not None
    assert [record.coverage for record in robust] == mask.flatten(1).mean(1).tolist()


def predicted(defense: Defense, images: Tensor, block: Block, noises: list[Noise]) -> Tensor:
    """(B, draws) classes."""
    query = Query(images, block.samples, defense.mask(images, block.samples), noises)
    return answers(defense, query).argmax(2).T


def test_a_surrogate_that_leads_away_finds_nothing(linear_classifier: Classifier) -> None:
    """A linear classifier right on every image by a margin that a ball of .3 crosses: its own
    gradient flips every answer; the negated one's only makes it surer. The robust accuracies are 0
    and 1: a weaker attack flatters, so the results must name it."""
    opposite = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    opposite[1].weight.data = -linear_classifier.network[1].weight.data
    opposite[1].bias.data = -linear_classifier.network[1].bias.data
    wrong = Classifier(opposite, num_classes=2, mean=[0.5], std=[0.5]).double()
    images = torch.full((4, 1, 8, 8), 0.5, dtype=torch.float64)
    labels = linear_classifier(images).argmax(1)
    block = Block(images, labels, torch.arange(4))
    attack = PGD(epsilon=0.3, steps=5, step_size=0.3, eot_samples=1, random_start=False)
    defense = Defense(linear_classifier)

    def robust(attacked: Defense | None) -> float:
        outcome = evaluate_block(
            "d", defense, attack, block, Protocol(1, 1), seed=0, attacked=attacked
        )
        right = [r.predictions == [r.label] for r in outcome.records if r.attack != "clean"]
        return sum(right) / len(right)

    assert robust(None) == robust(defense) == 0
    assert robust(Defense(wrong)) == 1
