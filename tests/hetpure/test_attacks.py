"""PGD against answers in closed form, and the rules that make its results reproducible."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from torch import Tensor, nn

from hetpure.attacks import PGD, Addresses, Monitor
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.gradients import Execution
from hetpure.noise import BatchNoise, Noise, Stream, attack_draw
from hetpure.purifiers import HeterogeneousPurifier, Purifier, UniformPurifier
from hetpure.samplers import DDPM

SAMPLES, LABELS = torch.tensor([31, 7, 100, 5]), torch.tensor([0, 1, 1, 0])
NOISE = Noise.of(7, Stream.REPORT)
ADDRESSES = Addresses(SAMPLES, NOISE)
HETEROGENEOUS = HeterogeneousPurifier(steps=20)
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


class Spy(Defense):
    """Remembers what an attack asks of it."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.queries: list[tuple[Tensor, BatchNoise, Tensor | None]] = []

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Tensor:
        self.queries.append((images.detach().clone(), noise, mask))
        return super().forward(images, noise, mask, policy)


class Listener(Monitor):
    """Keeps what an attack tells."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.numbers: list[int] = []
        self.values: list[dict[str, float]] = []

    def rows(self, count: int) -> None:
        self.told.append(count)

    def iteration(self, number: int, **values: float) -> None:
        self.numbers.append(number)
        self.values.append(values)


def pgd(**settings: Any) -> PGD:
    return PGD(
        **{"epsilon": 0.1, "steps": 2, "step_size": 0.04, "eot_samples": 2, "mask": "recomputed"}
        | settings
    )


def size(offsets: Tensor, norm: str) -> Tensor:
    """The norm of each (..., C, H, W) offset."""
    return offsets.flatten(-3).norm(dim=-1, p=float("inf") if norm == "linf" else 2)


def direction_away(classifier: Classifier, labels: Tensor) -> Tensor:
    """The gradient of the loss of a linear classifier, up to a positive factor an image."""
    weight = classifier.network[1].weight
    return (weight[1 - labels] - weight[labels]).reshape(-1, 1, 8, 8)


def unit(offsets: Tensor) -> Tensor:
    """Each image's offset over its L2 norm."""
    return offsets / offsets.flatten(1).norm(dim=1)[:, None, None, None]


@pytest.mark.parametrize("scale", [1.0, 1e-14, 1e-200], ids="slope {:g}".format)
@pytest.mark.parametrize("random_start", [False, True], ids=["from the image", "random start"])
@norms
def test_linear_classifier_in_closed_form(
    norm: str, random_start: bool, scale: float, linear_classifier: Classifier, images: Tensor
) -> None:
    """Linf ends in the corner of the ball, L2 at its rim in the direction of the gradient; a
    small slope must not slow it down, or a flat defence would look robust."""
    linear_classifier.network[1].weight.mul_(scale)
    away = direction_away(linear_classifier, LABELS) / scale
    attack = pgd(norm=norm, steps=60, step_size=0.1, random_start=random_start)
    found, _ = attack(Defense(linear_classifier), images, LABELS, ADDRESSES)
    edge = away.sign() if norm == "linf" else unit(away)
    torch.testing.assert_close(found, images + 0.1 * edge, rtol=0, atol=1e-12)


def test_confident_float32_classifier_in_closed_form(
    linear_classifier: Classifier, images: Tensor
) -> None:
    """Where logits are up to 25 apart, p - 1 is 0 in float32: the true class would drop out of the
    gradient, and the attack would pull towards the other class alone."""
    linear = linear_classifier.network[1]
    linear.bias.zero_()
    logits = linear_classifier(images)
    linear.weight.mul_(25 / (logits[:, 0] - logits[:, 1]).abs().max())
    labels = logits.argmax(1)
    defense = Defense(linear_classifier.float())
    found, _ = pgd(steps=3, random_start=False)(defense, images.float(), labels, ADDRESSES)
    expected = images + 0.1 * direction_away(linear_classifier, labels).sign()
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-6)


@norms
@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_candidates_are_inside_the_ball_and_the_box(
    norm: str, epsilon: float, dtype: torch.dtype, linear_classifier: Classifier
) -> None:
    """Also for images with pixels at 0 and 1; and a null attack changes nothing at all."""
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    images[:, :, :2], images[:, :, 6:] = 0, 1
    defense = Defense(linear_classifier.to(dtype))
    attack = pgd(norm=norm, epsilon=epsilon, step_size=0.3, restarts=3)
    found = attack(defense, images, LABELS, ADDRESSES)
    assert found.shape == (attack.candidates(defense), *images.shape)
    assert found.dtype == dtype
    assert 0 <= found.min() <= found.max() <= 1
    assert (size(found - images, norm) <= epsilon + 1e-6).all()
    assert torch.equal(found, images.expand_as(found)) == (epsilon == 0)


def test_a_step_has_its_size_and_goes_along_the_gradient(
    smooth_classifier: Classifier, images: Tensor
) -> None:
    """L2 PGD of the published code stepped along the sign."""
    point = images.clone().requires_grad_()
    loss = F.cross_entropy(smooth_classifier(point), LABELS, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, point)
    for norm, moved in (("linf", gradient.sign()), ("l2", unit(gradient))):
        attack = pgd(norm=norm, steps=1, epsilon=0.2, step_size=0.05, random_start=False)
        found, _ = attack(Defense(smooth_classifier), images, LABELS, ADDRESSES)
        torch.testing.assert_close(found - images, 0.05 * moved, rtol=0, atol=1e-12)


@norms
def test_random_start_is_uniform_in_the_ball(norm: str, linear_classifier: Classifier) -> None:
    """Kolmogorov-Smirnov: of every pixel for Linf, of the radius to the 64th power for L2."""
    defense = Spy(linear_classifier)
    images = torch.full((512, 1, 8, 8), 0.5, dtype=torch.float64)
    samples, labels = torch.arange(512), torch.zeros(512, dtype=torch.int64)
    pgd(norm=norm, steps=1, restarts=2)(defense, images, labels, Addresses(samples, NOISE))
    starts = [(query[0] - images) / 0.1 for query in defense.queries]
    for start in starts:
        uniform = (start.flatten() + 1) / 2 if norm == "linf" else size(start, norm) ** 64
        assert kstest(uniform.numpy(), "uniform").pvalue > 1e-3
        assert abs(start.mean()) < 5 * start.std() / start.numel() ** 0.5
    assert not torch.isclose(*starts).all((1, 2, 3)).any()  # restarts differ, sample by sample


@norms
@pytest.mark.parametrize("parts", [[[0, 1], [2, 3]], [[3], [1, 0, 2]]], ids=["halves", "shuffled"])
def test_attack_on_a_batch_is_the_attack_on_its_parts(
    norm: str, parts: list[list[int]], denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """Start, draws, mask and gradient follow the sample id. Bit for bit for sign steps; an L2
    step keeps the last bits of a gradient, which depend on the rows of a matrix product."""
    defense = Defense(classifier, HETEROGENEOUS, denoiser)
    whole = pgd(norm=norm)(defense, images, LABELS, ADDRESSES)
    for part in parts:
        alone = pgd(norm=norm)(
            defense, images[part], LABELS[part], ADDRESSES.take(torch.tensor(part))
        )
        if norm == "linf":
            assert torch.equal(alone, whole[:, part])
        else:
            torch.testing.assert_close(alone, whole[:, part], rtol=0, atol=1e-12)


def test_every_query_has_its_own_draws(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """Never the same numbers in two iterations, EOT samples or restarts, nor the report's."""
    defense = Spy(classifier, UniformPurifier(steps=20), denoiser)
    attack = pgd(steps=3, eot_samples=2, restarts=2)
    attack(defense, images, LABELS, ADDRESSES)
    draws = []
    for rows, noise, _ in defense.queries:
        assert len(rows) == len(noise) == 8
        assert noise.samples.tolist() == SAMPLES.tolist() * 2
        assert set(noise.forward_stream.tolist()) == {Stream.ATTACK}
        assert torch.equal(noise.forward_stream, noise.reverse_stream)
        assert torch.equal(noise.forward_draw, noise.reverse_draw)
        assert len(noise.forward_draw[::4].unique()) == 2  # noise-major: four rows a draw
        draws += noise.forward_draw[::4].tolist()
    assert sorted(draws) == sorted(
        attack_draw(0, restart, iteration, k).index
        for restart, iteration, k in product(range(2), range(3), range(2))
    )
    assert len(set(draws)) == 12


def test_mask_is_that_of_each_iterate(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    defense = Spy(classifier, HETEROGENEOUS, denoiser)
    pgd(steps=3, epsilon=0.3, step_size=0.2)(defense, images, LABELS, ADDRESSES)
    masks = []
    for iterates, _, mask in defense.queries:
        assert torch.equal(iterates[:4], iterates[4:])
        assert torch.equal(mask, defense.mask(iterates))
        masks.append(mask)
    assert not torch.equal(masks[0], masks[1])


def test_eot_gradient_is_the_mean_of_single_draws(
    denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """In one batch or one by one: seen in the direction of an L2 step."""
    defense = Defense(smooth_classifier, HETEROGENEOUS, denoiser)
    mask = defense.mask(images)
    singles = []
    for k in range(3):
        point = images.clone().requires_grad_()
        noise = NOISE.redraw(attack_draw(0, 0, 0, k)).on(SAMPLES)
        loss = F.cross_entropy(defense(point, noise, mask), LABELS, reduction="sum")
        singles.append(torch.autograd.grad(loss, point)[0])
    mean = torch.stack(singles).mean(0)
    attack = pgd(norm="l2", steps=1, eot_samples=3, step_size=0.05, random_start=False)
    found, _ = attack(defense, images, LABELS, ADDRESSES)
    torch.testing.assert_close((found - images) / 0.05, unit(mean), rtol=0, atol=1e-10)
    cosine = F.cosine_similarity(singles[0].flatten(1), mean.flatten(1))
    assert (cosine < 0.999).all()  # the draws differ enough to tell a mean from one of them


@pytest.mark.parametrize(
    "attack",
    [
        pgd(epsilon=0.15, steps=10),
        pgd(epsilon=0.15, steps=10, random_start=False),
        pgd(norm="l2", epsilon=1.0, steps=10, step_size=0.2),
    ],
    ids=repr,
)
def test_accuracy_falls(attack: PGD) -> None:
    """Nearest of four templates, images near theirs: right without an attack, wrong with it."""
    generator = torch.Generator().manual_seed(0)
    templates = 0.3 + 0.4 * torch.rand(4, 64, generator=generator)
    labels = torch.arange(40) % 4
    spread = 0.05 * torch.randn(40, 64, generator=generator)
    images = (templates[labels] + spread).clamp(0, 1).reshape(-1, 1, 8, 8)
    nearest = nn.Linear(64, 4)
    nearest.load_state_dict({"weight": templates, "bias": -templates.square().sum(1) / 2})
    network = nn.Sequential(nn.Flatten(), nearest)
    defense = Defense(Classifier(network, num_classes=4, mean=[0.0], std=[1.0]))

    def accuracy(of: Tensor) -> float:
        right = defense(of, NOISE.on(torch.arange(40))).argmax(1) == labels
        return float(right.float().mean())

    found, _ = attack(defense, images, labels, Addresses(torch.arange(40), NOISE))
    assert accuracy(images) > 0.95
    assert accuracy(found) < 0.3


@pytest.mark.parametrize(
    "policy", ["tape", "checkpoint", Execution("hybrid", 1), "bpda", "classifier_only"]
)
@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize(
    "purifier",
    [UniformPurifier(steps=20), HETEROGENEOUS, UniformPurifier(steps=20, sampler=DDPM()), None],
    ids=["uniform", "heterogeneous", "ddpm", "no purifier"],
)
def test_cost_is_what_it_says(
    purifier: Purifier | None,
    policy: Any,
    micro_batch: int | None,
    denoiser: Denoiser,
    classifier: Classifier,
    images: Tensor,
) -> None:
    defense = Spy(classifier, purifier, denoiser if purifier else None, policy=policy)
    defense.execution = replace(defense.execution, micro_batch=micro_batch)
    attack, monitor = pgd(steps=3, restarts=2), Listener()
    with count_network_calls(defense) as counter:
        attack(defense, images, LABELS, ADDRESSES, monitor=monitor)
    assert counter.rows == 4 * attack.purifications(defense) * defense.gradient_calls()[0]
    assert sum(len(query[0]) for query in defense.queries) == 4 * attack.purifications(defense)
    rows = 4 * (2 if purifier else 1)
    pieces = [rows] if micro_batch is None else [3, 3, 2] if purifier else [3, 1]
    assert monitor.told == pieces * 6
    assert monitor.numbers == [0, 1, 2] * 2


def test_arguments_are_left_as_they_were(linear_classifier: Classifier, images: Tensor) -> None:
    before = images.clone()
    found, _ = pgd(random_start=False)(Defense(linear_classifier), images, LABELS, ADDRESSES)
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", -0.1),
        ("epsilon", float("nan")),
        ("step_size", 0.0),
        ("step_size", -0.01),
        ("steps", 0),
        ("eot_samples", 0),
        ("restarts", -1),
        ("norm", "Linf"),
    ],
)
def test_unusable_parameter_names_its_flag(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"--model\.attack\.{field} .*{value}"):
        pgd(**{field: value})
