"""The denoiser's one contract: whatever a network predicts, (x0, noise) explain its input."""

import pytest
import torch
from torch import Tensor, nn

from hetpure.denoiser import Denoiser, PredictionType, to_model, to_pixels
from hetpure.noise import Noise, Purpose, Stream
from hetpure.schedule import linear_schedule

SCHEDULE = linear_schedule()
PREDICTIONS: tuple[PredictionType, ...] = ("epsilon", "sample", "v_prediction", "edm")
TIMESTEPS = torch.tensor([0, 1, 100, 500, 999])


class Network(nn.Module):
    """A nonlinear function of image and time."""

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return torch.tanh(x + timesteps.to(x.dtype).reshape(-1, 1, 1, 1).cos())


class Answer(nn.Module):
    """A network that gives one answer to everything."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return self.answer


def draws(count: int) -> tuple[Tensor, Tensor]:
    """(x0, noise) in float64, one row for each timestep."""
    noise = Noise.of(0, Stream.PROBE).on(torch.arange(count))
    like = torch.empty(count, 3, 4, 4, dtype=torch.float64)
    return noise.normal(Purpose.FORWARD, like), noise.normal(Purpose.REVERSE, like)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_explain_the_noisy_image(prediction: PredictionType) -> None:
    """x = sqrt(abar) x0 + sqrt(1-abar) noise, at both ends of the schedule and between."""
    x, _ = draws(5)
    denoiser = Denoiser(Network(), SCHEDULE, prediction)
    level = SCHEDULE.level(TIMESTEPS, x)
    x0, noise = denoiser.predict(x, level)
    explained = level.diffuse(x0, noise)
    torch.testing.assert_close(explained, x, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(x0, x, atol=1e-2)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_hits_its_target_recovers_image_and_noise(
    prediction: PredictionType,
) -> None:
    """`target` and `predict` are inverse: training one and sampling the other must be the same."""
    x0, noise = draws(5)
    level = SCHEDULE.level(TIMESTEPS, x0)
    x = level.diffuse(x0, noise)
    untrained = Denoiser(Network(), SCHEDULE, prediction)
    trained = Denoiser(Answer(untrained.target(x0, noise, level)), SCHEDULE, prediction)
    predicted_x0, predicted_noise = trained.predict(x, level)
    torch.testing.assert_close(predicted_x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(predicted_noise, noise, rtol=1e-9, atol=1e-9)


def test_each_prediction_type_has_its_own_target() -> None:
    """v = sqrt(abar) noise - sqrt(1-abar) x0 (Salimans & Ho 2022), by its numbers: at abar = .64
    it is .8 noise - .6 x0. EDM's (Karras et al. 2022, table 1 and eq. 8) with sigma = .75, data of
    deviation .5 and y = 2 + .75 * 5: c_skip = .25 / .8125 and c_out = .375 / sqrt(.8125)."""
    schedule = linear_schedule(1, 0.36, 0.36)
    x0, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 5.0)
    level = schedule.level(TIMESTEPS[:1], x0)
    targets = {
        prediction: float(Denoiser(Network(), schedule, prediction).target(x0, noise, level))
        for prediction in PREDICTIONS
    }
    edm = (2.0 - 0.25 / 0.8125 * 5.75) / (0.375 / 0.8125**0.5)
    assert targets == pytest.approx(
        {"epsilon": 5.0, "sample": 2.0, "v_prediction": 2.8, "edm": edm}, rel=1e-5
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_per_sample_indices_equal_calls_at_one_index(
    dtype: torch.dtype, prediction: PredictionType
) -> None:
    x = draws(5)[0].to(dtype)
    denoiser = Denoiser(Network(), SCHEDULE, prediction)
    x0, noise = denoiser.predict(x, SCHEDULE.level(TIMESTEPS, x))
    assert x0.dtype == noise.dtype == dtype
    for row, t in enumerate(TIMESTEPS.tolist()):
        single_x0, single_noise = denoiser.predict(x[row : row + 1], t)
        assert single_x0.dtype == single_noise.dtype == dtype
        torch.testing.assert_close(single_x0, x0[row : row + 1])
        torch.testing.assert_close(single_noise, noise[row : row + 1])


@pytest.mark.parametrize("per_image", [False, True], ids=["index", "level"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_can_be_differentiated(prediction: PredictionType, per_image: bool) -> None:
    """Attacks need the gradient of both predictions, by finite differences in float64."""
    x = draws(2)[0][:, :1, :2, :2].clone().requires_grad_()
    denoiser = Denoiser(Network(), SCHEDULE, prediction)
    at = SCHEDULE.level(torch.tensor([200, 3]), x) if per_image else 200
    assert torch.autograd.gradcheck(lambda x: denoiser.predict(x, at), x)


def test_units_of_pixels_and_model() -> None:
    pixels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert to_model(pixels).tolist() == [-1.0, -0.5, 0.0, 1.0]
    assert torch.equal(to_pixels(to_model(pixels)), pixels)
    assert to_pixels(torch.tensor([-2.0, 3.0])).tolist() == [-0.5, 2.0]  # the caller clamps
