"""The perturbation's spectrum by scipy, attacks on a linear classifier in closed form."""

import numpy as np
import pytest
import scipy.fft
import torch
from scipy.optimize import linprog
from torch import Tensor

from hetpure.attacks.low_frequency import LowFrequency, ascent, dct_matrix, low_pass, within
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from tests.hetpure.attacks.defenses import Spy, size, target_of, uphill

norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def low_frequency(**settings: object) -> LowFrequency:
    given = {"epsilon": 0.1, "steps": 2, "step_size": 0.04, "eot_samples": 2, "ratio": 0.4}
    return LowFrequency(**{**given, **settings})


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def high_energy(images: Tensor, ratio: float) -> float:
    """Of all frequencies but the lowest, by scipy."""
    spectrum = torch.from_numpy(scipy.fft.dctn(images.numpy(), axes=(-2, -1), norm="ortho"))
    rows, columns = (round(ratio * n) for n in images.shape[-2:])
    spectrum[..., :rows, :columns] = 0
    return float(spectrum.square().sum())


@pytest.mark.parametrize("ratio", [0.125, 0.3, 1.0])
def test_low_pass_is_the_projection_onto_the_lowest_frequencies(ratio: float) -> None:
    """What it leaves holds nothing else, and what it takes away holds none of them."""
    images = drawn(2, 3, 8, 10)
    low = low_pass(images, ratio)
    spectrum = scipy.fft.dctn(images.numpy(), axes=(-2, -1), norm="ortho")
    kept = torch.zeros(8, 10, dtype=torch.float64)
    kept[: round(8 * ratio), : round(10 * ratio)] = 1
    expected = scipy.fft.idctn(spectrum * kept.numpy(), axes=(-2, -1), norm="ortho")
    torch.testing.assert_close(low, torch.from_numpy(expected), rtol=0, atol=1e-13)
    torch.testing.assert_close(low_pass(low, ratio), low, rtol=0, atol=1e-13)


@norms
@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_a_step_is_low_has_norm_1_and_gains(norm: str, ratio: float) -> None:
    gradient = drawn(4, 3, 8, 8)
    step = ascent(gradient, ratio, norm)
    assert high_energy(step, ratio) < 1e-25
    torch.testing.assert_close(size(step, norm), torch.ones(4).double(), rtol=0, atol=1e-12)
    gained = (gradient * step).sum((1, 2, 3))
    low = low_pass(gradient, ratio)
    if norm == "l2":  # the most that any low-frequency step of norm 1 can
        torch.testing.assert_close(gained, size(low, "l2"), rtol=1e-12, atol=0)
    else:
        by = size(low_pass(low.sign(), ratio), "linf")
        torch.testing.assert_close(gained, low.abs().sum((1, 2, 3)) / by, rtol=1e-12, atol=0)
    assert torch.equal(ascent(0 * gradient, ratio, norm), 0 * gradient)


@norms
def test_what_is_brought_into_the_ball_stays_low(norm: str) -> None:
    """What lies inside stays as it is; in l2 what lies outside keeps its direction."""
    offset = low_pass(drawn(2, 1, 8, 8), 0.4)
    offset *= (
        torch.tensor([2.0, 0.5])[:, None, None, None] / size(offset, norm)[:, None, None, None]
    )
    inside = within(offset, 1.0, norm, 0.4)
    assert high_energy(inside, 0.4) < 1e-25
    torch.testing.assert_close(inside[1], offset[1], rtol=0, atol=1e-14)
    assert 0.9 < size(inside, norm)[0] <= 1 + 1e-14
    if norm == "l2":
        torch.testing.assert_close(inside[0], offset[0] / 2, rtol=1e-14, atol=0)
    assert torch.equal(within(offset, 0.0, norm, 0.4), torch.zeros_like(offset))


@pytest.mark.parametrize("random_start", [False, True], ids=["from the image", "random start"])
def test_l2_against_a_linear_classifier_in_closed_form(
    random_start: bool, linear_classifier: Classifier, images: Tensor
) -> None:
    """It ends at the rim of the ball along P g: no other low-frequency perturbation gains more."""
    away = low_pass(uphill(linear_classifier), 0.4)
    attack = low_frequency(norm="l2", steps=60, step_size=0.1, random_start=random_start)
    last, best = attack(target_of(Defense(linear_classifier), images))
    expected = images + 0.1 * away / size(away, "l2")[:, None, None, None]
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(best, last, rtol=0, atol=1e-6)


@pytest.mark.parametrize("random_start", [False, True], ids=["from the image", "random start"])
def test_linf_against_a_linear_classifier_is_near_the_linear_programs_optimum(
    random_start: bool, linear_classifier: Classifier, images: Tensor
) -> None:
    """Of all coefficients whose image lies in the ball, the best by scipy."""
    away, count = uphill(linear_classifier), round(0.4 * 8)
    cosines = dct_matrix(8)[:count]
    basis = torch.einsum("kh,lw->hwkl", cosines, cosines).reshape(64, count**2).numpy()
    attack = low_frequency(steps=20, step_size=0.04, random_start=random_start)
    candidates = attack(target_of(Defense(linear_classifier), images))
    gained = ((candidates - images) * away).sum((2, 3, 4))
    for gradient, ours in zip(away, gained.amax(0), strict=True):
        both, rim = np.concatenate([basis, -basis]), np.full(128, 0.1)
        gain = -basis.T @ gradient.flatten().numpy()
        optimum = -linprog(gain, A_ub=both, b_ub=rim, bounds=(None, None)).fun
        assert 0.9 * optimum < ours < optimum + 1e-9


@norms
def test_every_iterate_is_low_and_in_the_ball(
    norm: str, smooth_classifier: Classifier, images: Tensor
) -> None:
    """Images well inside [0, 1] are never cut, so their offsets are seen whole; the random start's
    too. Their high-frequency energy is 0 to the last bits."""
    defense = Spy(smooth_classifier)
    attack = low_frequency(norm=norm, steps=3, step_size=0.06, restarts=2)
    candidates = attack(target_of(defense, images))
    offsets = torch.stack([*candidates, *(call.images for call in defense.calls)]) - images
    assert len(offsets) == 4 + 2 * 3 and high_energy(offsets, 0.4) < 1e-25
    assert (size(offsets, norm) <= 0.1 + 1e-12).all()
    starts = offsets[4], offsets[4 + 3]
    assert size(starts[0], norm).min() > 0 and not torch.isclose(*starts).all((1, 2, 3)).any()


@norms
def test_pixels_that_are_cut_have_no_say(
    norm: str, linear_classifier: Classifier, images: Tensor
) -> None:
    """Two steps by hand: white pixels that the first pushes up take no part in the second."""
    images = images.clone()
    images[..., :4] = 1
    away = uphill(linear_classifier)
    first = 0.04 * ascent(away, 0.4, norm)
    free = (images + first) <= 1
    assert 0 < free.double().mean() < 1
    expected = (images + first + 0.04 * ascent(away * free, 0.4, norm)).clamp(0, 1)
    attack = low_frequency(norm=norm, epsilon=0.5, random_start=False, loss="margin")
    last = attack(target_of(Defense(linear_classifier), images))[0]
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-12)
