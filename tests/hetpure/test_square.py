"""Square Attack against its paper's formulas, and the rules of its random search."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hetpure.attacks.attack import Addresses, Monitor, check_candidates
from hetpure.attacks.square import (
    Square,
    bump,
    eta,
    places,
    propose_l2,
    propose_linf,
    share_of_pixels,
    signs,
    stripes,
    tiles,
    window,
)
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.noise import BatchNoise, Group, Noise, Purpose, Stream
from hetpure.purifiers import HeterogeneousPurifier

SAMPLES, LABELS = torch.tensor([31, 7, 100, 5]), torch.tensor([0, 1, 1, 0])
NOISE = Noise.of(7, Stream.REPORT)
ADDRESSES = Addresses(SAMPLES, NOISE)
MANY = torch.arange(4000)
norms = pytest.mark.parametrize("norm", ["linf", "l2"])
FLAT = torch.zeros(1, dtype=torch.float64)


def square(**settings: Any) -> Square:
    return Square(**{"epsilon": 0.1, "steps": 60, "eot_samples": 2} | settings)


class Rounded(nn.Module):
    """Nearest of four templates, of an image in thirty-two shades: no gradient at all."""

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.means = means

    def forward(self, images: Tensor) -> Tensor:
        shades = (32 * images.flatten(1)).round() / 32
        return 20 * shades @ self.means.T - 10 * self.means.square().sum(1)


class Spy(Defense):
    """Remembers what it is asked."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.asked: list[tuple[Tensor, BatchNoise, Tensor | None]] = []

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Tensor:
        self.asked.append((images, noise, mask))
        return super().forward(images, noise, mask, policy)


class Noisy(Spy):
    """Answers images with noise in every pixel: randomised, and with a known law."""

    groups = frozenset[Group]({"reverse"})
    spread = 0.3

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Tensor:
        self.asked.append((images, noise, mask))
        normal = noise.normal(Purpose.REVERSE, images)
        return self.classifier(images + self.spread * normal)


class Count(Monitor):
    """Adds up the answers."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def answered(self, count: int) -> None:
        self.asked.append(count)


def templates() -> tuple[Classifier, Tensor, Tensor]:
    """The classifier, and forty images near its templates."""
    generator = torch.Generator().manual_seed(0)
    means = 0.3 + 0.4 * torch.rand(4, 64, generator=generator)
    labels = torch.arange(40) % 4
    images = means[labels] + 0.05 * torch.randn(40, 64, generator=generator)
    classifier = Classifier(Rounded(means), num_classes=4, mean=[0.0], std=[1.0])
    return classifier, images.clamp(0, 1).reshape(-1, 1, 8, 8), labels


def test_share_of_pixels_by_hand() -> None:
    """Halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 steps."""
    shares = [share_of_pixels(0.8, step, 10_000) for step in range(1, 10_001)]
    assert shares == sorted(shares, reverse=True)
    changes = [step for step in range(1, 10_000) if shares[step] < shares[step - 1]]
    assert changes == [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    assert shares[0] == 0.8 and shares[-1] == 0.8 / 512
    assert [share_of_pixels(0.8, step, 100) for step in (1, 2, 4, 100)] == [
        0.8, 0.2, 0.1, 0.8 / 512
    ]  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (2, 5), (5, 5), (6, 13)])
def test_bump_is_the_sum_of_the_paper(height: int, width: int) -> None:
    """Squares around the centre, the k-th 2k + 1 wide and 1 / (k + 1)^2 high, cut at the sides."""
    expected = torch.zeros(height, width, dtype=torch.float64)
    for k in range(max(height, width) // 2 + 1):
        for r in range(height):
            for c in range(width):
                if max(abs(r - height // 2), abs(c - width // 2)) <= k:
                    expected[r, c] += 1 / (k + 1) ** 2
    torch.testing.assert_close(bump(height, width, FLAT), expected / expected.norm())


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_eta_is_two_opposite_bumps(size: int) -> None:
    pattern = eta(size, FLAT)
    assert float(pattern.norm()) == pytest.approx(1)
    assert (pattern[: size // 2] > 0).all() and (pattern[size // 2 :] < 0).all()
    if size % 2 == 0:
        assert torch.equal(pattern[: size // 2], -pattern[size // 2 :])


def test_squares_lie_anywhere_inside() -> None:
    """All four by three places, alike often: within five standard deviations."""
    images, rows = torch.zeros(4000, 1, 8, 7), NOISE.on(MANY)
    place = places(rows, images, 5, step=0)
    counts = torch.bincount(place[:, 0] * 3 + place[:, 1], minlength=12)
    assert len(counts) == 12
    assert ((counts - 4000 / 12).abs() < 5 * math.sqrt(4000 / 12)).all()
    assert not torch.equal(place, places(rows, images, 5, step=1))
    inside = window(place, 5, images)
    assert (inside.sum((1, 2, 3)) == 25).all()
    for row in range(20):
        (top, left) = place[row].tolist()
        assert inside[row, 0, top : top + 5, left : left + 5].all()


def test_start_is_stripes_or_tiles() -> None:
    images, rows = torch.zeros(4000, 2, 11, 10), NOISE.on(MANY)
    striped = stripes(rows, images)
    assert (striped == striped[:, :, :1]).all() and (striped.abs() == 1).all()
    share = (striped[:, :, 0] > 0).double().mean(0)
    assert ((share - 0.5).abs() < 5 * 0.5 / math.sqrt(4000)).all()
    tiled = tiles(rows, images)
    assert not tiled[:, :, 10:].any()  # five tiles of two rows, the rest below
    torch.testing.assert_close(tiled.square().sum((2, 3)), torch.full((4000, 2), 25.0))
    corner, pattern = tiled[:, 0, :2, :2], eta(2, images)
    kinds = torch.stack([pattern, -pattern, pattern.T, -pattern.T])
    counts = torch.stack([(corner == kind).all((1, 2)).sum() for kind in kinds])
    assert int(counts.sum()) == 4000 and ((counts - 1000).abs() < 5 * math.sqrt(1000)).all()


def test_a_step_in_linf_moves_one_square_to_the_side_of_the_ball() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(50, 3, 8, 8, generator=generator, dtype=torch.float64)
    x = (images + 0.2 * torch.rand(images.shape, generator=generator) - 0.1).clamp(0, 1)
    rows = NOISE.on(MANY[:50])
    moved = propose_linf(x, images, 0.1, 3, rows)
    inside = window(places(rows, images, 3, step=0), 3, images).expand_as(images)
    assert torch.equal(moved[~inside], x[~inside])
    up, down = (images + 0.1).clamp(0, 1), (images - 0.1).clamp(0, 1)
    is_up = torch.isclose(moved, up).flatten(2) | ~inside.flatten(2)
    is_down = torch.isclose(moved, down).flatten(2) | ~inside.flatten(2)
    assert (is_up.all(2) | is_down.all(2)).all()  # one side in each channel
    assert (signs(rows, Purpose.PERTURBATION, images[:, :, :1, :1], step=1) > 0)[:, :, 0, 0].equal(
        is_up.all(2)
    )


def test_a_step_in_l2_spends_two_windows_in_one() -> None:
    """The norm of the offset stays the radius, that of each channel what it was; the second window
    goes back to the image; elsewhere nothing changes."""
    images = torch.full((50, 3, 9, 9), 0.5, dtype=torch.float64)
    offset = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).double()
    offset *= 0.4 / offset.flatten(1).norm(dim=1)[:, None, None, None]
    rows = NOISE.on(MANY[:50])
    moved = propose_l2(images + offset, images, 0.4, 3, rows) - images
    first, second = (
        window(places(rows, images, 3, step=step), 3, images).expand_as(images) for step in (0, 1)
    )
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((50,), 0.4).double())
    torch.testing.assert_close(moved.flatten(2).norm(dim=2), offset.flatten(2).norm(dim=2))
    torch.testing.assert_close(moved[~first & ~second], offset[~first & ~second])
    assert (moved[second & ~first].abs() < 1e-12).all()
    assert not torch.isclose(moved[first], offset[first]).any()
    # What is not yet spent of the ball, 0.3 of 0.5, is spent too.
    moved = propose_l2(images + 0.75 * offset, images, 0.5, 3, rows) - images
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((50,), 0.5).double())


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [Defense, Noisy])
@norms
def test_candidates_are_inside_the_ball_and_the_box(
    norm: str,
    kind: type[Defense],
    dtype: torch.dtype,
    epsilon: float,
    linear_classifier: Classifier,
) -> None:
    """Also for images with pixels at 0 and 1; without a radius nothing changes at all."""
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    images[:, :, :2], images[:, :, 6:] = 0, 1
    before, attack = images.clone(), square(norm=norm, epsilon=epsilon)
    found = attack(kind(linear_classifier.to(dtype)), images, LABELS, ADDRESSES)
    check_candidates(found, images, SAMPLES, attack.threat)
    assert found.shape == (attack.candidates(Defense(linear_classifier)), *images.shape)
    assert found.dtype == dtype and torch.equal(images, before)
    assert torch.equal(found[0], images) == (epsilon == 0)


@pytest.mark.parametrize(
    "attack", [square(epsilon=0.2), square(norm="l2", epsilon=1.6)], ids=lambda attack: attack.name
)
@pytest.mark.parametrize("kind", [Defense, Noisy])
def test_accuracy_falls_without_a_gradient(kind: type[Defense], attack: Square) -> None:
    """Of the randomised defence on draws that the attack has not seen."""
    classifier, images, labels = templates()
    defense, ids = kind(classifier), torch.arange(40)
    point = images.clone().requires_grad_()
    assert not torch.autograd.grad(classifier(point).sum(), point)[0].any()
    draws = [Noise.of(7, Stream.REPORT, k).on(ids) for k in range(10)]

    def accuracy(of: Tensor) -> float:
        right = [defense(of, draw).argmax(1) == labels for draw in draws]
        return float(torch.stack(right).float().mean())

    with torch.no_grad():
        (found,) = attack(defense, images, labels, Addresses(ids, Noise.of(7, Stream.DW_BOX)))
    assert accuracy(images) > 0.9
    assert accuracy(found) < 0.5


@norms
def test_nothing_finished_is_asked_again(norm: str) -> None:
    """An answer that is certain and wrong ends the search for its image, which stays as it is."""
    classifier, images, labels = templates()
    defense, count, ids = Spy(classifier), Count(), torch.arange(40)
    attack = square(norm=norm, epsilon=0.15 if norm == "linf" else 1.2)
    (found,) = attack(defense, images, labels, Addresses(ids, NOISE), monitor=count)
    assert count.asked == [len(images) for images, _, _ in defense.asked]
    assert count.asked[0] == 40 and len(count.asked) <= attack.queries(defense) == 61
    assert count.asked == sorted(count.asked, reverse=True)
    wrong = torch.zeros(40, dtype=torch.bool)
    for asked, noise, _ in defense.asked:
        assert not wrong[noise.samples].any()
        now = classifier(asked).argmax(1) != labels[noise.samples]
        wrong[noise.samples] |= now
        assert torch.equal(asked[now], found[noise.samples[now]])
    assert torch.equal(classifier(found).argmax(1) != labels, wrong)
    assert 0 < int(wrong.sum()) < 40


def test_a_lucky_draw_is_not_kept() -> None:
    """An image and its proposal are compared on the same fresh draws, all told and counted."""
    classifier, images, labels = templates()
    defense, count, ids = Noisy(classifier), Count(), torch.arange(40)
    attack = square(steps=5, eot_samples=3)
    attack(defense, images, labels, Addresses(ids, NOISE), monitor=count)
    assert sum(count.asked) == 40 * attack.queries(defense) == 40 * 5 * 2 * 3
    seen = set()
    for asked, noise, _ in defense.asked:
        assert torch.equal(noise.samples, ids.repeat(2))
        assert len(noise.reverse_draw.unique()) == 1 and not torch.equal(asked[:40], asked[40:])
        assert set(noise.reverse_stream.tolist()) == {Stream.ATTACK}
        seen.add(int(noise.reverse_draw[0]))
    assert len(seen) == 5 * 3  # no two steps and no two draws share numbers


def test_known_noise_makes_a_defence_certain() -> None:
    classifier, images, labels = templates()
    defense, count, ids = Noisy(classifier), Count(), torch.arange(40)
    attack, known = square(epsilon=0.2), Addresses(ids, NOISE, known=("reverse",))
    (found,) = attack(defense, images, labels, known, monitor=count)
    assert attack.queries(defense, ("reverse",)) == 61 and attack.draws(defense, ("reverse",)) == 1
    assert sum(count.asked) < 40 * 61
    assert all(set(n.reverse_draw.tolist()) == {NOISE.reverse.index} for _, n, _ in defense.asked)
    locked = NOISE.on(ids)
    wrong = [(defense(x, locked).argmax(1) != labels).sum() for x in (images, found)]
    assert wrong[0] < 10 and wrong[1] > 20


@norms
def test_attack_on_a_batch_is_the_attack_on_its_parts(
    norm: str, smooth_classifier: Classifier, images: Tensor
) -> None:
    """Squares are each image's own and follow its sample id."""
    attack, defense = square(norm=norm), Defense(smooth_classifier)
    labels = smooth_classifier(images).argmax(1)
    whole = attack(defense, images, labels, ADDRESSES)
    for part in ([0, 1], [3], [2, 1]):
        index = torch.tensor(part)
        alone = attack(defense, images[index], labels[index], ADDRESSES.take(index))
        torch.testing.assert_close(alone, whole[:, index], rtol=0, atol=1e-9)
    assert torch.equal(attack(defense, images, labels, ADDRESSES), whole)
    assert not torch.equal(attack(defense, images, labels, replace(ADDRESSES, member=1)), whole)


def test_mask_is_that_of_each_proposal(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    defense = Spy(classifier, HeterogeneousPurifier(steps=10), denoiser)
    square(epsilon=0.3, steps=2)(defense, images, LABELS, ADDRESSES)
    for asked, noise, mask in defense.asked:
        assert torch.equal(mask, defense.mask(asked, noise.samples))


def test_it_says_what_it_is(linear_classifier: Classifier) -> None:
    defense = Defense(linear_classifier)
    assert Square().name == "square_linf" and square(norm="l2").name == "square_l2"
    assert "Square 5000 steps" in Square().describe() and Square().weaker_than_full() == []
    assert "4999 queries" in Square(steps=4999).weaker_than_full()[0]
    assert Square().purifications(defense) == 0 and Square().queries(defense) == 5001
    assert Square().draws(defense) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", -0.1),
        ("epsilon", float("nan")),
        ("norm", "Linf"),
        ("steps", 0),
        ("steps", 65536),
        ("p_init", 0.0),
        ("p_init", 1.5),
        ("eot_samples", 0),
    ],
)
def test_unusable_parameter_names_its_flag(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"--model\.attack\.{field} .*{value}"):
        square(**{field: value})
