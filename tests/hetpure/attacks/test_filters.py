"""The filter attack: its filters by their definition, its distance by hooks, its bound."""

import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.attacks import FilterAttack
from hetpure.attacks.filters import (
    LPIPS,
    feature_distance,
    filtered,
    fitting,
    likeness,
    lpips_network,
    rendered,
    scaled,
    simplex,
    windows,
)
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import FieldError, InputError
from hetpure.numbers import Number
from hetpure.purifiers import UniformPurifier
from hetpure.samplers import DDPM
from tests.hetpure.attacks.defenses import (
    LABELS,
    SAMPLES,
    Counter,
    linear,
    root_mean_square,
    target_of,
)

HERE = "tests.hetpure.attacks.test_filters"
RMS = "tests.hetpure.attacks.defenses.root_mean_square"
SIZES = (3, 5)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def kernels(images: Tensor, scale: float) -> list[Tensor]:
    """Allowed weights of every size, which sum to about `scale` and at most 1 at a pixel."""
    count, _, height, width = images.shape
    return [
        simplex(
            2 * scale / size**2 * drawn(count, size**2 - 1, height, width, seed=size).to(images)
        )
        for size in SIZES
    ]


def attack_of(**settings: Any) -> FilterAttack:
    given = {"steps": 4, "eot_samples": 2, "distance": RMS, "bound": 0.1, "mask": "recomputed"}
    return FilterAttack(**given | settings)


def triple(images: Tensor, originals: Tensor) -> Tensor:
    return 3 * root_mean_square(images, originals)


def shapeless(images: Tensor, originals: Tensor) -> Tensor:
    return root_mean_square(images, originals).mean()


def undefined(images: Tensor, originals: Tensor) -> Tensor:
    return root_mean_square(images, originals) * torch.nan


def flat(images: Tensor, originals: Tensor) -> Tensor:
    return root_mean_square(images, originals).detach()


@pytest.mark.parametrize("size", SIZES)
def test_windows_pixel_by_pixel(size: int) -> None:
    images, reach = drawn(2, 3, 6, 7), size // 2
    found = windows(images, size)
    assert found.shape == (2, 3, size**2 - 1, 6, 7)
    offsets = [o for o in product(range(-reach, reach + 1), repeat=2) if o != (0, 0)]
    for place, (down, right) in enumerate(offsets):
        for y, x in product(range(6), range(7)):
            other = images[:, :, min(max(y + down, 0), 5), min(max(x + right, 0), 6)]
            assert torch.equal(found[:, :, place, y, x], other)


def test_a_filter_is_the_weighted_mean_of_its_window() -> None:
    """With weights that are not negative and sum to 1: those of the definition, normalised."""
    images = drawn(2, 3, 6, 7)
    for kernel, size in zip(kernels(images, 0.6), SIZES, strict=True):
        guide = likeness(images, size, 0.3)
        expected_guide = (windows(images, size) - images[:, :, None]).square().sum(1)
        torch.testing.assert_close(guide, (-expected_guide / 0.18).exp(), rtol=1e-12, atol=0)
        weights = torch.cat([kernel * guide, 1 - kernel.sum(1, keepdim=True)], 1)
        assert weights.min() >= 0
        weights = weights / weights.sum(1, keepdim=True)
        values = torch.cat([windows(images, size), images[:, :, None]], 2)
        expected = (weights[:, None] * values).sum(2)
        torch.testing.assert_close(filtered(images, kernel, guide), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_without_weights_no_bit_changes(dtype: torch.dtype) -> None:
    """Also of black and white pixels; and the derivative in the weights is there."""
    images = drawn(2, 3, 6, 7, dtype=dtype)
    images[:, :, :2], images[:, :, 4:] = 0, 1
    guides = [likeness(images, size, 0.1) for size in SIZES]
    nothing = [torch.zeros_like(kernel) for kernel in kernels(images, 1)]
    assert torch.equal(rendered(images, guides, (0 * images, *nothing)), images)
    images = drawn(2, 3, 6, 7, dtype=dtype)
    points = [torch.zeros_like(kernel).requires_grad_() for kernel in nothing]
    guides = [likeness(images, size, 0.5) for size in SIZES]
    moved = rendered(images, guides, (0 * images, *points))
    for slope in torch.autograd.grad(moved.square().sum(), points):
        assert (slope != 0).double().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
def test_a_constant_image_stays_constant(scale: float, dtype: torch.dtype) -> None:
    """Bit for bit, and no image leaves the values of its window."""
    images = drawn(3, 1, 1, 1, dtype=dtype).expand(3, 3, 6, 7).contiguous()
    weights = kernels(images, scale)
    guides = [likeness(images, size, 0.1) for size in SIZES]
    assert all((kernel >= 0).all() and kernel.sum(1).max() < 1 + 1e-6 for kernel in weights)
    assert torch.equal(rendered(images, guides, (0 * images, *weights)), images)
    images = (drawn(3, 3, 6, 7) > 0.5).to(dtype)
    kernel, guide = kernels(images, scale)[0], likeness(images, 3, 0.5)
    moved, around = filtered(images, kernel, guide), windows(images, 3)
    assert (moved <= torch.maximum(around.amax(2), images) + 1e-6).all()
    assert (moved >= torch.minimum(around.amin(2), images) - 1e-6).all()
    assert (moved - images).abs().max() > 0.02


def test_the_derivative_of_the_filters() -> None:
    """Against finite differences, in the offset and in all weights, inside the image's range."""
    images = 0.3 + 0.4 * drawn(1, 2, 4, 4)
    guides = [likeness(images, size, 0.3) for size in SIZES]
    points = [0.05 * drawn(*images.shape, seed=3), *(0.8 * part for part in kernels(images, 0.5))]
    assert torch.autograd.gradcheck(
        lambda *parameters: rendered(images, guides, parameters),
        [point.requires_grad_() for point in points],
    )


def test_weights_are_brought_into_the_simplex() -> None:
    weights = torch.tensor([[0.5, -1.0, 0.25], [3.0, 1.0, -2.0]]).reshape(2, 3, 1, 1)
    expected = torch.tensor([[0.5, 0.0, 0.25], [0.75, 0.25, 0.0]]).reshape(2, 3, 1, 1)
    assert torch.equal(simplex(weights), expected)


def test_a_step_is_taken_back_as_far_as_the_bound_asks() -> None:
    """Image by image: inside it stays, outside it ends at the bound, by halving; where nothing but
    the image itself is allowed, there."""
    parameters = (torch.full((4, 1, 2, 2), 2.0), torch.full((4, 3, 2, 2), 1.0))
    most = torch.tensor([5.0, 1.0, 0.7, 0.0])
    left = fitting(parameters, lambda found: found[0].amax((1, 2, 3)) <= most)
    offset, weights = scaled(parameters, left)
    sizes = offset.amax((1, 2, 3))
    assert sizes[0] == 2 and sizes[3] == 0
    assert (sizes[1:3] <= most[1:3]).all() and (sizes[1:3] > most[1:3] - 2 / 2**5).all()
    assert torch.equal(weights.amax((1, 2, 3)), sizes / 2)
    assert fitting(parameters, lambda found: torch.ones(4) > 0).tolist() == [1] * 4


def test_distance_in_features_by_hooks(classifier: Classifier, images: Tensor) -> None:
    """The mean over blocks and places of the squared difference of unit vectors; 0 for an image
    itself, with a derivative everywhere."""
    other = drawn(4, 1, 8, 8, seed=9)
    modules, found = dict(classifier.network.named_modules()), []
    assert len(classifier.attention_blocks) == 4
    for x in (images, other):
        outputs: list[Tensor] = []
        handles = [
            modules[name].register_forward_hook(lambda *given, keep=outputs: keep.append(given[2]))
            for name in classifier.attention_blocks
        ]
        classifier(x)
        found.append(outputs)
        for handle in handles:
            handle.remove()
    parts = []
    for f, g in zip(*found, strict=True):
        cosine = F.cosine_similarity(f, g, dim=1)
        alive = (f.norm(dim=1) > 0).double() + (g.norm(dim=1) > 0).double()
        parts.append((alive - 2 * cosine).mean((1, 2)))
    expected = torch.stack(parts).mean(0)
    assert (expected > 0.01).all()
    torch.testing.assert_close(
        feature_distance(classifier, images, other), expected, rtol=1e-6, atol=1e-9
    )
    point = images.clone().requires_grad_()
    itself = feature_distance(classifier, point, images)
    assert not itself.any()
    assert torch.autograd.grad(itself.sum(), point)[0].isfinite().all()


@pytest.mark.parametrize("distance", ["features", RMS])
@pytest.mark.parametrize("purified", [False, True])
def test_every_candidate_is_within_the_bound(
    distance: str, purified: bool, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """With steps that leave it at once. A larger bound moves further; with none nothing moves."""
    purifier = UniformPurifier(steps=2, sampler=DDPM()) if purified else None
    defense = Defense(classifier, purifier, denoiser if purified else None)
    moved = []
    for bound in (0.0, 0.01, 0.05):
        attack = attack_of(
            distance=distance, bound=bound, step_size=0.5, offset_step_size=0.3, restarts=2
        )
        candidates = attack(target_of(defense, images))
        assert len(candidates) == attack.cost(defense).candidates
        assert candidates.min() >= 0 and candidates.max() <= 1
        far = [*map(attack.distance_to(classifier, images), candidates)]
        assert (torch.stack(far) <= bound).all()
        moved.append((candidates - images).abs().mean())
    assert moved[0] == 0 and 0 < moved[1] < moved[2]


def test_filters_alone_take_away_what_a_classifier_looks_for() -> None:
    """A checkerboard's contrast decides: smoothing takes it away, and the label turns. No value
    leaves the window's range, and pixels of the image's own kind are mixed in only: where the guide
    sees two colours far apart and weights are small, little moves."""
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2 - 1.0
    contrast = board.double().flatten() / 64
    classifier = linear(torch.stack([contrast, -contrast]), torch.tensor([-0.1, 0.1]).double())
    images = 0.5 + 0.2 * board.double().expand(4, 1, 8, 8)
    labels = classifier(images).argmax(1)
    assert not labels.any()
    settings: Any = {"offset_step_size": 0.0, "bound": 1.0, "penalty": 0.0, "sizes": (3,)}
    last, _ = attack_of(**settings, steps=20)(target_of(Defense(classifier), images, labels))
    assert (classifier(last).argmax(1) == 1).all()
    assert last.min() >= 0.3 and last.max() <= 0.7
    first, _ = attack_of(**settings, steps=1)(target_of(Defense(classifier), images, labels))
    loose = attack_of(**settings, steps=1, colour=10.0)
    wide, _ = loose(target_of(Defense(classifier), images, labels))
    assert (first - images).abs().mean() < 0.2 * (wide - images).abs().mean()


def test_a_penalty_keeps_nearer(classifier: Classifier, images: Tensor) -> None:
    far = []
    for penalty in (0.0, 100.0):
        attack = attack_of(bound=1.0, penalty=penalty, steps=10)
        last, _ = attack(target_of(Defense(classifier), images))
        far.append(root_mean_square(last, images))
    assert (far[1] < 0.7 * far[0]).all()


def test_a_distance_is_named_by_its_path(classifier: Classifier, images: Tensor) -> None:
    attack = attack_of(distance=f"{HERE}.triple")
    torch.testing.assert_close(
        attack.distance_to(classifier, images)(images + 0.1),
        3 * root_mean_square(images + 0.1, images),
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("shapeless", "gives () for 4 images: give one number each"),
        ("undefined", "gives NaN or infinite numbers"),
        ("flat", "has no gradient: make penalty 0"),
        ("absent", "cannot be imported"),
        ("SIZES", "is no function"),
    ],
)
def test_a_distance_that_is_none_is_one_line(
    name: str, problem: str, classifier: Classifier, images: Tensor
) -> None:
    with pytest.raises(FieldError) as raised:
        attack_of(distance=f"{HERE}.{name}")(target_of(Defense(classifier), images))
    assert problem in str(raised.value) and "\n" not in str(raised.value)
    assert raised.value.field == "distance"


def test_features_need_modules_with_names() -> None:
    attack = attack_of(distance="features")
    defense = Defense(linear(torch.eye(2, 64)))
    with pytest.raises(FieldError, match="distance is in the features of a classifier that names"):
        attack.check(defense, SAMPLES)


class Package:
    """A stand-in for the package lpips: its network is the mean difference, model units."""

    class LPIPS(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            if net != "alex":
                raise RuntimeError("no weights")

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            assert first.shape[1] == 3 and first.dtype == torch.float32
            assert -1 <= first.min() < 0 < first.max() <= 1
            return (first - second).mean((1, 2, 3), keepdim=True).abs()


@pytest.fixture
def afresh() -> Iterator[None]:
    """Nothing that was loaded is kept."""
    lpips_network.cache_clear()
    yield
    lpips_network.cache_clear()


@pytest.mark.usefixtures("afresh")
def test_lpips_is_one_line_where_it_is_not_there(
    classifier: Classifier, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, defense = attack_of(distance=LPIPS), Defense(classifier)
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match="LPIPS cannot be loaded .* install lpips") as raised:
        attack.check(defense, SAMPLES)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="LPIPS cannot be loaded"):
        attack(target_of(defense, images))


@pytest.mark.usefixtures("afresh")
def test_lpips_gets_three_channels_in_model_units(
    classifier: Classifier, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", Package)
    attack = attack_of(distance=LPIPS)
    attack.check(Defense(classifier), SAMPLES)
    far = attack.distance_to(classifier, images)(images + 0.1)
    torch.testing.assert_close(far, torch.full((4,), 0.2).double(), rtol=0, atol=1e-6)


def test_it_names_its_distance_and_bound() -> None:
    attack = FilterAttack(steps=5, bound=Number("0.02"))
    assert attack.threat is None
    assert attack.describe() == (
        "no ball, FilterAttack, steps 5, eot_samples 10, distance features, bound 0.02"
    )
    (note,) = attack.notes(10)
    assert note == "filter: no ball, but a distance of at most 0.02 in the classifier's features"


def test_an_iterate_is_asked_once(classifier: Classifier, images: Tensor) -> None:
    counter = Counter()
    attack_of(steps=3)(target_of(Defense(classifier), images, LABELS, monitor=counter))
    assert counter.gradients == [4, 4, 4] and not counter.queries
