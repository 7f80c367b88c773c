"""Auto-PGD against its paper's step rule by hand, and against answers in closed form."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hetpure.attacks import apgd
from hetpure.attacks.apgd import APGD, checkpoints, condition_1, condition_2
from hetpure.attacks.attack import Addresses, Monitor, check_candidates
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.expectation import Answer
from hetpure.noise import BatchNoise, Group, Noise, Purpose, Stream
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier

SAMPLES, LABELS = torch.tensor([31, 7, 100, 5]), torch.tensor([0, 1, 1, 0])
NOISE = Noise.of(7, Stream.REPORT)
ADDRESSES = Addresses(SAMPLES, NOISE)
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def auto(**settings: Any) -> APGD:
    return APGD(**{"epsilon": 0.1, "steps": 10, "eot_samples": 2, "mask": "recomputed"} | settings)


def linear_network(weight: Tensor, bias: Tensor) -> Classifier:
    linear = nn.Linear(weight.shape[1], len(weight), dtype=weight.dtype)
    linear.load_state_dict({"weight": weight, "bias": bias})
    network = nn.Sequential(nn.Flatten(), linear)
    whole = Classifier(network, num_classes=len(weight), mean=[0.0], std=[1.0])
    return whole.to(weight.dtype).requires_grad_(False)


class Noisy(Defense):
    """Answers images with noise in every pixel: randomised, and with a known law."""

    groups = frozenset[Group]({"reverse"})

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Tensor:
        return super().forward(images + 0.3 * noise.normal(Purpose.REVERSE, images), noise)


class Scripted(APGD):
    """Is told the loss (steps + 1) of each iterate and the sign of its gradient; keeps iterates."""

    loss_of = (0.0,)
    slope_of = (1.0,)
    wrong_at: frozenset[int] = frozenset()

    def ask(self, defense: Defense, adversarial: Tensor, *_: Any, **given: Any) -> Answer:  # type: ignore[override]
        k = given["iteration"]
        visited.append(adversarial.clone())
        wrong = torch.tensor([[[0.0, 1.0]]] if k in self.wrong_at else [[[1.0, 0.0]]])
        gradient = torch.full_like(adversarial, self.slope_of[k])
        return Answer(gradient, torch.tensor([self.loss_of[k]]), wrong, None)


visited: list[Tensor] = []


@pytest.fixture
def follow(
    monkeypatch: pytest.MonkeyPatch, linear_classifier: Classifier
) -> Callable[..., tuple[list[float], float]]:
    """The iterates' offsets from an image of one pixel, and the candidate's, of a script."""

    def run(**script: Any) -> tuple[list[float], float]:
        visited.clear()
        monkeypatch.setattr(apgd, "uniform_in_ball", lambda rows, images, *_: images)
        kind = type("Given", (Scripted,), script)
        attack = kind(epsilon=0.1, steps=len(script["loss_of"]) - 1, mask="recomputed")
        image = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
        one = Addresses(torch.tensor([3]), NOISE)
        (found,) = attack(Defense(linear_classifier), image, torch.tensor([0]), one)
        return [round(float(x) - 0.5, 9) for x in visited], round(float(found) - 0.5, 9)

    return run


def test_checkpoints_of_the_paper_and_of_the_published_rounding() -> None:
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(50) == [0, 11, 21, 30, 38, 45]
    assert checkpoints(10) == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert checkpoints(30) == [0, 6, 11, 15, 18, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30]
    assert checkpoints(1) == [0, 1]


def test_condition_1_by_hand() -> None:
    """Three of four steps up are enough, two and no change are not."""
    f = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 1.0, 0.0], [3.0, 2.0, 1.0]])
    f = torch.cat([f, torch.tensor([[2.0, 2.0, 2.0]])])
    assert condition_1(f).tolist() == [False, True, False]


def test_condition_2_by_hand() -> None:
    """Only where the step was not halved last time and the best loss stayed what it was."""
    halved = torch.tensor([True, True, False, False])
    then, now = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 2.0, 1.0, 2.0])
    assert condition_2(halved, then, now).tolist() == [False, False, True, False]


def test_momentum_by_hand(follow: Callable[..., Any]) -> None:
    """x1 = P(0 + 0.2); x2 = x1 + 3/4 (P(x1 - 0.2) - x1) + 1/4 (x1 - x0); the loss grows."""
    offsets, _ = follow(loss_of=(0.0, 1.0, 2.0), slope_of=(1.0, -1.0, 1.0))
    assert offsets == [0.0, 0.1, pytest.approx(0.1 - 0.75 * 0.2 + 0.25 * 0.1)]


def test_halved_step_starts_again_from_the_best_point_and_its_gradient(
    follow: Callable[..., Any],
) -> None:
    """The loss falls from the start on: at the first checkpoint, 3 of 16, the search is back at the
    start, whose gradient was positive, with a step of 0.1 and the momentum of where it came from.
    """
    offsets, _ = follow(loss_of=tuple(-float(k) for k in range(17)), slope_of=(0.5, *[-0.5] * 16))
    second = 0.1 - 0.75 * 0.2 + 0.25 * 0.1
    third = -0.1  # projected
    assert offsets[:4] == [0.0, 0.1, pytest.approx(second), third]
    assert offsets[4] == pytest.approx(0.75 * 0.1 + 0.25 * (0.0 - second))


def test_steps_are_halved_at_each_checkpoint_that_finds_no_growth(
    follow: Callable[..., Any],
) -> None:
    """Back at the start each time with half the step: 0.1 after checkpoint 6 of 30, 0.05 after 11;
    from 20 on every iterate is a checkpoint, and the momentum is of a start that does not move."""
    offsets, _ = follow(loss_of=tuple(-float(k) for k in range(31)), slope_of=(1.0,) * 31)
    for k, eta, before in (
        (6, 0.1, offsets[5]),
        (11, 0.05, offsets[10]),
        (15, 0.025, offsets[14]),
        (20, 0.00625, offsets[19]),
        (21, 0.003125, 0.0),
    ):
        assert offsets[k + 1] == pytest.approx(0.75 * eta + 0.25 * (0.0 - before), abs=1e-8)


def test_steps_stay_where_the_loss_grows(follow: Callable[..., Any]) -> None:
    """A full step of 0.2 reaches the far side of the ball from wherever it begins, so under a slope
    that turns each time x -> -x = x + 3/4 (-0.1 - x) + 1/4 (x + x) until the end."""
    slopes = tuple((-1.0) ** k for k in range(31))
    offsets, _ = follow(loss_of=tuple(float(k) for k in range(31)), slope_of=slopes)
    assert [abs(x) for x in offsets[-6:]] == pytest.approx([0.075 / 1.75] * 6, abs=1e-6)


def test_first_checkpoint_knows_condition_2(follow: Callable[..., Any]) -> None:
    """The loss falls once and then grows, but not to where it began: no best iterate since."""
    loss = (9.0, *[float(k) for k in range(30)])
    offsets, found = follow(loss_of=loss, slope_of=(1.0, *[-1.0] * 30))
    assert checkpoints(30)[1] == 6
    assert offsets[6] < 0 < offsets[7]  # back at the start, whose slope was positive
    assert found == offsets[loss.index(29.0)]


def test_a_wrong_answer_beats_a_higher_loss(follow: Callable[..., Any]) -> None:
    script = {"loss_of": (0.0, 1.0, 0.5, 3.0), "slope_of": (1.0, -1.0, -1.0, -1.0)}
    offsets, found = follow(**script, wrong_at=frozenset({1, 2}))
    assert found == offsets[1]
    offsets, found = follow(**script)
    assert found == offsets[3]


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@norms
def test_linear_classifier_in_closed_form(
    norm: str, loss: str, linear_classifier: Classifier, images: Tensor
) -> None:
    """Linf ends in the corner of the ball, L2 at its rim in the direction of the gradient."""
    weight = linear_classifier.network[1].weight
    away = (weight[1 - LABELS] - weight[LABELS]).reshape(-1, 1, 8, 8)
    attack = auto(norm=norm, loss=loss, steps=100)
    (found,) = attack(Defense(linear_classifier), images, LABELS, ADDRESSES)
    length = away.flatten(1).norm(dim=1)[:, None, None, None]
    edge = away.sign() if norm == "linf" else away / length
    # A loss cannot tell points closer to an L2 optimum than the root of its rounding.
    tolerance = 1e-12 if norm == "linf" else 1e-7
    torch.testing.assert_close(found, images + 0.1 * edge, rtol=0, atol=tolerance)


@norms
def test_targets_in_closed_form(norm: str, images: Tensor) -> None:
    """Each run ends where z_t - z_y is largest, for the most likely wrong classes in turn."""
    torch.manual_seed(0)
    weight = torch.randn(5, 64, dtype=torch.float64)
    classifier = linear_network(weight, torch.zeros(5, dtype=torch.float64))
    labels = torch.tensor([0, 1, 2, 4])
    attack = auto(norm=norm, loss="margin", targets=3, steps=60)
    found = attack(Defense(classifier), images, labels, ADDRESSES)
    logits = classifier(images)
    logits[torch.arange(4), labels] = -torch.inf
    targets = logits.argsort(1, descending=True)[:, :3].T
    assert len(found) == 3 == attack.candidates(Defense(classifier))
    for candidate, target in zip(found, targets, strict=True):
        away = (weight[target] - weight[labels]).reshape(images.shape)
        length = away.flatten(1).norm(dim=1)[:, None, None, None]
        edge = images + 0.1 * (away.sign() if norm == "linf" else away / length)
        right = classifier(edge).argmax(1) == labels  # where none is wrong the loss decides
        torch.testing.assert_close(candidate[right], edge[right], rtol=0, atol=1e-7)
        assert (classifier(candidate).argmax(1) != labels)[~right].all()
        gained = (away * (candidate - images)).sum((1, 2, 3))
        assert (gained > 0).all()


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@norms
def test_candidates_are_inside_the_ball_and_the_box(
    norm: str, epsilon: float, dtype: torch.dtype, linear_classifier: Classifier
) -> None:
    """Also for images with pixels at 0 and 1; without a radius nothing changes at all."""
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    images[:, :, :2], images[:, :, 6:] = 0, 1
    attack = auto(norm=norm, epsilon=epsilon, restarts=2)
    found = attack(Defense(linear_classifier.to(dtype)), images, LABELS, ADDRESSES)
    check_candidates(found, images, SAMPLES, attack.threat)
    assert found.shape == (2, *images.shape) and found.dtype == dtype
    assert torch.equal(found, images.expand_as(found)) == (epsilon == 0)


@pytest.mark.parametrize("targets", [0, 2])
@norms
def test_attack_on_a_batch_is_the_attack_on_its_parts(
    norm: str, targets: int, smooth_classifier: Classifier, images: Tensor
) -> None:
    """Step sizes, restarts and targets are each image's own, and follow its sample id."""
    attack, defense = auto(norm=norm, targets=targets, steps=20), Defense(smooth_classifier)
    whole = attack(defense, images, LABELS, ADDRESSES)
    for part in ([0, 1], [3], [2, 1]):
        index = torch.tensor(part)
        alone = attack(defense, images[index], LABELS[index], ADDRESSES.take(index))
        torch.testing.assert_close(alone, whole[:, index], rtol=0, atol=1e-9)
    assert not torch.equal(attack(defense, images, LABELS, replace(ADDRESSES, member=1)), whole)


def templates() -> tuple[Classifier, Tensor, Tensor]:
    """Nearest of four templates, and forty images near theirs."""
    generator = torch.Generator().manual_seed(0)
    means = 0.3 + 0.4 * torch.rand(4, 64, generator=generator)
    labels = torch.arange(40) % 4
    images = means[labels] + 0.05 * torch.randn(40, 64, generator=generator)
    classifier = linear_network(20 * means, -10 * means.square().sum(1))
    return classifier, images.clamp(0, 1).reshape(-1, 1, 8, 8), labels


@pytest.mark.parametrize(
    "attack",
    [
        auto(epsilon=0.15),
        auto(epsilon=0.15, loss="margin"),
        auto(epsilon=0.15, loss="dlr", targets=3),
        auto(norm="l2", epsilon=1.0),
        auto(norm="l2", epsilon=1.0, loss="dlr", targets=3),
    ],
    ids=lambda attack: attack.name,
)
@pytest.mark.parametrize("kind", [Defense, Noisy])
def test_accuracy_falls(kind: type[Defense], attack: APGD) -> None:
    """Of the randomised defence on draws that the attack has not seen."""
    classifier, images, labels = templates()
    defense, ids = kind(classifier), torch.arange(40)
    draws = [Noise.of(7, Stream.REPORT, k).on(ids) for k in range(10)]

    def accuracy(of: Tensor) -> float:
        right = [defense(of, draw).argmax(1) == labels for draw in draws]
        return float(torch.stack(right).float().mean())

    found = attack(defense, images, labels, Addresses(ids, Noise.of(7, Stream.DW_BOX)))
    assert accuracy(images) > 0.9
    assert min(accuracy(candidate) for candidate in found) < 0.4


def test_more_draws_are_no_weaker_on_a_purifier(
    denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """The expected margin of a purified image grows, on fresh draws."""
    defense = Defense(smooth_classifier, UniformPurifier(steps=20), denoiser)
    draws = [Noise.of(7, Stream.SELECTION, k).on(SAMPLES) for k in range(10)]

    def right(of: Tensor) -> Tensor:
        return torch.stack([defense(of, draw) for draw in draws]).mean(0).softmax(1)

    labels = right(images).argmax(1)
    (found,) = auto(epsilon=0.5, eot_samples=4, steps=6)(defense, images, labels, ADDRESSES)
    rows = torch.arange(4)
    assert (right(found)[rows, labels] < right(images)[rows, labels]).all()


class Count(Monitor):
    """Adds up what an attack asks."""

    def __init__(self) -> None:
        self.differentiated = self.asked = 0

    def rows(self, count: int) -> None:
        self.differentiated += count

    def answered(self, count: int) -> None:
        self.asked += count


class Spy(Defense):
    """Counts the rows that it answers."""

    answered = 0

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Tensor:
        self.answered += len(images)
        return super().forward(images, noise, mask, policy)


@pytest.mark.parametrize("targets", [0, 2])
@pytest.mark.parametrize("purifier", [UniformPurifier(steps=10), HeterogeneousPurifier(steps=10)])
def test_each_iterate_is_asked_once(
    purifier: Any, targets: int, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """And the three mask policies are attacks of their own."""
    defense = Spy(classifier, purifier, denoiser)
    attack, count = auto(steps=2, targets=targets, mask="all"), Count()
    found = attack(defense, images, LABELS, ADDRESSES, monitor=count)
    masks = 3 if defense.masked else 1
    assert len(found) == attack.candidates(defense) == masks * max(targets, 1)
    assert count.differentiated == 4 * attack.purifications(defense)
    assert attack.purifications(defense) == masks * max(targets, 1) * 3 * 2
    assert count.asked == 4 * attack.queries(defense)
    assert defense.answered == count.differentiated + count.asked


def test_two_classes_have_no_dlr(linear_classifier: Classifier, images: Tensor) -> None:
    defense = Defense(linear_classifier)
    dlr, margin = (
        auto(loss=loss)(defense, images, LABELS, ADDRESSES) for loss in ("dlr", "margin")
    )
    assert torch.equal(dlr, margin)
    (note,) = auto(loss="dlr").notes(2)
    assert "apgd_dlr_linf" in note and "margin" in note
    assert not auto(loss="dlr").notes(3)


def test_it_says_what_it_is() -> None:
    assert APGD().name == "apgd_ce_linf"
    assert APGD(loss="dlr", norm="l2", targets=9).name == "apgd_dlr_l2_targeted"
    assert APGD(loss="margin").name == "apgd_margin_linf"
    assert "APGD-DLR 100 steps, EOT 20, 9 targets" in APGD(loss="dlr", targets=9).describe()
    assert APGD().weaker_than_full() == []
    (steps,) = APGD(steps=99).weaker_than_full()
    assert "99 iterations" in steps
    (draws,) = APGD(eot_samples=19).weaker_than_full()
    assert "19 EOT draws" in draws
    with pytest.raises(InputError, match=r"--model\.attack\.steps must be >= 1"):
        APGD(steps=0)
