"""Attacks average over noise in pieces that fit the memory: how the rows are cut must not change a
gradient or an answer, nor which image, noise and mask meet in a row."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.expectation import Average, Criterion, Query, answers, expected_gradient
from hetpure.gradients import Execution, GradientError
from hetpure.noise import Noise, Stream
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from hetpure.samplers import DDPM

LABELS = torch.tensor([0, 3, 1])
SAMPLES = torch.tensor([11, 3, 40])
NOISES = [Noise.of(7, Stream.PROBE, draw) for draw in (0, 5)]
ROWS = len(NOISES) * len(SAMPLES)
NOISY = DDPM(clip_x0=False)
every_size = pytest.mark.parametrize("size", [None, 1, 4, ROWS + 1])


def cross_entropy(logits: Tensor, index: Tensor) -> Tensor:
    """Each image counts differently: a row that lands on another image is seen."""
    weights = torch.tensor([1.0, 2.0, 5.0], dtype=logits.dtype)[index]
    return weights * F.cross_entropy(logits, LABELS[index], reduction="none")


@pytest.fixture
def query(images: Tensor) -> Query:
    """Three images with a mask each, under two draws."""
    masks = torch.zeros(3, 1, 8, 8, dtype=images.dtype)
    for number in range(3):
        masks[number, :, : 2 + 2 * number] = 1
    return Query(images[:3].clone(), SAMPLES, masks, NOISES)


@pytest.fixture
def defense(denoiser: Denoiser, classifier: Classifier) -> Defense:
    """One that uses noise of both groups, the mask, and ReLUs."""
    return Defense(
        classifier, HeterogeneousPurifier(steps=10, sampler=NOISY), denoiser, None, "tape"
    )


@pytest.fixture
def sizes(defense: Defense) -> list[int]:
    """The rows of each batch that the defence is given."""
    found: list[int] = []
    defense.register_forward_pre_hook(lambda _, args: found.append(len(args[0])))
    return found


def cut(defense: Defense, size: int | None) -> None:
    defense.execution = replace(defense.execution, micro_batch=size)


@pytest.fixture(params=[False, True], ids=["any shape", "one shape"])
def one_shape(request: pytest.FixtureRequest, denoiser: Denoiser) -> bool:
    """Whether the network says that it is compiled, so that all batches must have one size."""
    denoiser.network.compiled = request.param
    return bool(request.param)


@every_size
def test_gradient_is_that_of_a_loop_by_hand(
    size: int | None, defense: Defense, query: Query, sizes: list[int], one_shape: bool
) -> None:
    by_hand = torch.zeros_like(query.images)
    for noise in NOISES:
        for i in range(3):
            point = query.images[i : i + 1].clone().requires_grad_()
            logits = defense(point, noise.on(SAMPLES[i : i + 1]), query.mask[i : i + 1])
            loss = cross_entropy(logits, torch.tensor([i])).sum() / len(NOISES)
            by_hand[i] += torch.autograd.grad(loss, point)[0][0]
    sizes.clear()
    cut(defense, size)
    told: list[int] = []
    found = expected_gradient(defense, query, cross_entropy, told.append).gradient
    torch.testing.assert_close(found, by_hand, rtol=1e-10, atol=1e-12)
    assert sum(told) == ROWS and max(sizes) <= (size or ROWS)
    assert len(sizes) == -(-ROWS // (size or ROWS))
    assert sizes == [size or ROWS] * len(sizes) if one_shape else sizes == told


@every_size
def test_every_answer_is_that_of_its_image_noise_and_mask(
    size: int | None, defense: Defense, query: Query, sizes: list[int], one_shape: bool
) -> None:
    cut(defense, size)
    told: list[int] = []
    found = answers(defense, query, told.append)
    assert found.shape == (2, 3, 4)
    assert sum(told) == ROWS and max(sizes) <= (size or 3)
    assert sizes == [size or 3] * len(sizes) if one_shape else sizes == told
    for draw, noise in enumerate(NOISES):
        for i in range(3):
            row = slice(i, i + 1)
            alone = defense(query.images[row], noise.on(SAMPLES[row]), query.mask[row])
            torch.testing.assert_close(found[draw, row], alone, rtol=0, atol=1e-10)
    assert not torch.isclose(found[0], found[1]).all(1).any()


@pytest.mark.parametrize("size", [1, 4, None])
def test_without_masks(
    size: int | None, defense: Defense, query: Query, denoiser: Denoiser, classifier: Classifier
) -> None:
    """A purifier that wants one makes it of the image alone; one that does not is not given any."""
    bare = replace(query, mask=None)
    masked = replace(query, mask=defense.mask(query.images, SAMPLES))
    uniform = Defense(classifier, UniformPurifier(steps=20, sampler=NOISY), denoiser, None, "tape")
    for tried, other in ((defense, masked), (uniform, query)):
        cut(tried, size)
        torch.testing.assert_close(answers(tried, bare), answers(tried, other), rtol=0, atol=1e-12)
        torch.testing.assert_close(
            expected_gradient(tried, bare, cross_entropy).gradient,
            expected_gradient(tried, other, cross_entropy).gradient,
            rtol=1e-10,
            atol=1e-12,
        )


def test_answers_record_nothing(defense: Defense, query: Query) -> None:
    query.images.requires_grad_()
    seen: list[bool] = []
    defense.classifier.register_forward_hook(lambda _, __, out: seen.append(out.requires_grad))
    answers(defense, query)
    assert seen == [False, False]
    expected_gradient(defense, query, cross_entropy)
    assert seen[2:] == [True]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda logits, index: logits[:, 0] * (index != 1), "zero for 1 of 3 images.*Square"),
        (lambda logits, index: 0 * logits.sum(1), "zero for 3 of 3 images"),
        (lambda logits, index: logits.detach().sum(1), "detached"),
        (lambda logits, index: (logits / (index != 2)[:, None]).square().sum(1), "NaN.*bfloat16"),
    ],
    ids=["one image's", "all", "detached", "one is infinite"],
)
@pytest.mark.parametrize("size", [1, 4, None])
def test_a_useless_gradient_is_an_error(
    size: int | None, loss: Criterion, message: str, defense: Defense, query: Query
) -> None:
    cut(defense, size)
    with pytest.raises(GradientError, match=message):
        expected_gradient(defense, query, loss)


def test_a_gradient_that_one_draw_hides_is_none(defense: Defense, query: Query) -> None:
    """It is the mean over draws that an attack steps along: one of them may be zero."""
    cut(defense, 3)
    pieces: list[int] = []

    def second_only(logits: Tensor, index: Tensor) -> Tensor:
        pieces.append(len(pieces))
        return cross_entropy(logits, index) * pieces[-1]

    found = expected_gradient(defense, query, second_only).gradient
    only = expected_gradient(defense, replace(query, noises=NOISES[1:]), cross_entropy).gradient
    torch.testing.assert_close(2 * found, only, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize("size", [1, 2, None])
def test_logits_that_are_not_finite_are_an_error(size: int | None, bad: float) -> None:
    """One of one row is enough."""
    plain = Classifier(nn.Flatten(), num_classes=4, mean=[0.0], std=[1.0])
    defense = Defense(plain, policy=Execution("tape", micro_batch=size))
    images = torch.rand(3, 1, 2, 2)
    assert torch.equal(answers(defense, Query(images, SAMPLES, None, NOISES))[1], images.flatten(1))
    images[1, 0, 1, 0] = bad
    with pytest.raises(GradientError, match="answers holds NaN or infinite.*bfloat16"):
        answers(defense, Query(images, SAMPLES, None, NOISES))


@every_size
@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_batches_of_one_shape_change_no_gradient_of_a_mean(
    average: Average, size: int | None, defense: Defense, query: Query, denoiser: Denoiser
) -> None:
    """Nor does a mask through which the image is differentiated too."""
    images = query.images.requires_grad_()
    through = replace(query, mask=(images.mean(1, keepdim=True) - 0.4).sigmoid())
    cut(defense, size)
    ragged = expected_gradient(defense, through, cross_entropy, average=average)
    denoiser.network.compiled = True  # type: ignore[assignment]
    filled = expected_gradient(defense, through, cross_entropy, average=average)
    near = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(filled.gradient, ragged.gradient, **near)
    torch.testing.assert_close(filled.loss, ragged.loss, **near)
    torch.testing.assert_close(filled.logits, ragged.logits, **near)
