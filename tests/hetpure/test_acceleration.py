"""A faster network call must be the same network: what differs is told, what overflows is an error,
and the plain network, against which it is held, stays as it was."""

import copy
import time
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from hetpure.acceleration import Acceleration, FastNetwork, Precision, accelerate, best_precision
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser, to_model
from hetpure.expectation import Query, answers, expected_gradient
from hetpure.gradients import GradientError, Policy, input_gradient
from hetpure.noise import Noise, Stream, noise_for
from hetpure.purifiers import UniformPurifier
from hetpure.schedule import linear_schedule

LOW: list[Precision] = ["bfloat16", "float16"]
STEPS = linear_schedule().level(torch.tensor([3, 150, 40, 999]), torch.empty(4, 1, 8, 8))
SAMPLES = torch.arange(4)
every_low = pytest.mark.parametrize("precision", LOW)


class Tiny(nn.Module):
    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        first, last = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(4, channels, 1)
        self.layers = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        out: Tensor = self.layers(x) * (1 + timesteps / 1000).reshape(-1, 1, 1, 1)
        return out


@pytest.fixture
def plain(denoiser: Denoiser) -> Denoiser:
    return copy.deepcopy(denoiser).float()


@pytest.fixture
def x(images: Tensor) -> Tensor:
    return to_model(images.float())


def defend(classifier: Classifier, denoiser: Denoiser, policy: Policy = "tape") -> Defense:
    purifier = UniformPurifier(steps=20, strength=0.2)
    return Defense(copy.deepcopy(classifier).float(), purifier, denoiser, policy=policy)


def gradient(defense: Defense, images: Tensor) -> Tensor:
    point = images.float().requires_grad_()
    logits = defense(point, noise_for(point))
    return input_gradient(logits[:, 0].sum() - logits[:, 1].sum(), point)


@pytest.mark.parametrize("precision", get_args(Precision))
def test_the_original_stays_as_it_is(precision: Precision, plain: Denoiser, x: Tensor) -> None:
    """Values, number format, memory format, what is trained and in which mode."""
    plain.train().requires_grad_().prediction_type = "sample"
    before = copy.deepcopy(plain)
    fast = accelerate(plain, Acceleration(precision, channels_last=True))
    fast(x, STEPS)
    ours = fast.network.network  # beside it is the original
    assert isinstance(ours, nn.Module) and fast.network.plain is plain.network
    storages = {t.untyped_storage().data_ptr() for t in ours.parameters()}
    for old, now in zip(before.parameters(), plain.parameters(), strict=True):
        assert torch.equal(old, now) and old.dtype == now.dtype and now.requires_grad
        assert old.stride() == now.stride() and now.untyped_storage().data_ptr() not in storages
    assert all(module.training for module in plain.modules())
    assert not any(module.training for module in ours.modules())
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert (fast.schedule, fast.prediction_type) == (plain.schedule, plain.prediction_type)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_channels_last_agrees(dtype: torch.dtype, denoiser: Denoiser, x: Tensor) -> None:
    same = copy.deepcopy(denoiser).to(dtype)
    fast = accelerate(same, Acceleration(channels_last=True))
    convolution = fast.network.network.conv_out.weight  # type: ignore[union-attr]
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    point = x.to(dtype).requires_grad_()
    ours, exact = fast(point, STEPS), same(point, STEPS)
    assert ours.dtype == dtype
    near = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-12}
    torch.testing.assert_close(ours, exact, **near)
    pulls = [torch.autograd.grad(out.square().sum(), point)[0] for out in (ours, exact)]
    torch.testing.assert_close(*pulls, **near)


@every_low
def test_weights_cast_once_are_autocasts_own(
    precision: Precision, plain: Denoiser, x: Tensor
) -> None:
    """Bit for bit, the gradient too, but for float16's scaling of it; and it is not the float32
    network's output."""
    point = x.requires_grad_()
    ours = accelerate(plain, Acceleration(precision))(point, STEPS)
    with torch.autocast("cpu", getattr(torch, precision)):
        known = plain(point, STEPS)
    assert known.dtype == getattr(torch, precision) and ours.dtype == torch.float32
    assert torch.equal(ours, known.float())
    pulls = [torch.autograd.grad(out.float().square().sum(), point)[0] for out in (ours, known)]
    if precision == "float16":
        torch.testing.assert_close(*pulls, rtol=0.02, atol=1e-3 * float(pulls[1].abs().max()))
    else:
        assert torch.equal(*pulls)
    assert not torch.equal(ours, plain(point, STEPS))


@every_low
def test_checkpoint_is_tape_bit_for_bit(
    precision: Precision, plain: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """A step that is called again must meet the same precision."""
    fast = accelerate(plain, Acceleration(precision, channels_last=True))
    tape, again = (
        gradient(defend(smooth_classifier, fast, how), images) for how in ("tape", "checkpoint")
    )
    assert torch.equal(tape, again)


@pytest.mark.parametrize("layer", ["conv_in", "conv_out"])
@pytest.mark.parametrize("ask", ["gradient", "answers"])
def test_float16_that_overflows_is_an_error(
    ask: str, layer: str, plain: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """It names the format that would not."""
    weight = plain.network.get_submodule(layer).weight.data.mul_(1e5)
    assert weight.half().isfinite().all()  # what overflows is what they are multiplied with
    query = Query(images.float(), SAMPLES, None, [Noise.of(0, Stream.PROBE)])

    def run(precision: Precision) -> Tensor:
        defense = defend(smooth_classifier, accelerate(plain, Acceleration(precision)))
        if ask == "answers":
            return answers(defense, query)
        return expected_gradient(defense, query, lambda logits, index: logits[:, 0]).gradient

    assert layer == "conv_out" or run("bfloat16").isfinite().all()
    with pytest.raises(GradientError, match="NaN or infinite.*float16 overflows.*bfloat16"):
        run("float16")


def test_the_networks_config_is_its_own(plain: Denoiser, smooth_classifier: Classifier) -> None:
    fast = accelerate(plain, Acceleration("bfloat16"))
    assert dict(fast.network.config) == dict(plain.network.config)
    assert defend(smooth_classifier, fast).image_shape == (1, 8, 8)
    assert FastNetwork(Tiny(), Acceleration("bfloat16")).config == {}


@pytest.mark.slow
def test_compiled_agrees_with_eager(smooth_classifier: Classifier, images: Tensor) -> None:
    """Through a defence that calls its steps again."""
    torch.manual_seed(0)
    plain = Denoiser(Tiny(), linear_schedule()).eval().requires_grad_(False)
    fast = accelerate(plain, Acceleration(compile="default"))
    ours, eager = (defend(smooth_classifier, each, "checkpoint") for each in (fast, plain))
    near = {"rtol": 0, "atol": 1e-5}
    for few in (images.float(), images[:3].float()):
        torch.testing.assert_close(ours(few, noise_for(few)), eager(few, noise_for(few)), **near)
        torch.testing.assert_close(gradient(ours, few), gradient(eager, few), **near)


@pytest.mark.parametrize("small", [2.0**-14, 2.0**-30, 2.0**-66])
def test_float16_holds_the_small_gradients_of_a_sure_classifier(
    small: float, plain: Denoiser, x: Tensor
) -> None:
    """Autocast alone rounds them to zero: the network would drop out of the gradient, and what is
    left of it, the purifier's own derivative, is neither zero nor not finite."""
    fast = accelerate(plain, Acceleration("float16"))
    point = x.requires_grad_()
    rows = torch.tensor([1.0, 1e-3, 10.0, 0.1])[: len(x), None, None, None]
    unit, ours = (
        torch.autograd.grad((size * rows * fast(point, STEPS)).sum(), point)[0]
        for size in (1.0, small)
    )
    assert torch.equal(ours / small, unit)
    with torch.autocast("cpu", torch.float16):
        lost = plain(point, STEPS)
    if small < 1e-8:
        assert not torch.autograd.grad((small * lost.float()).sum(), point)[0].any()
    flat = torch.autograd.grad((0 * fast(point, STEPS)).sum(), point)[0]
    assert not flat.any() and flat.isfinite().all()


class Sleepy(Tiny):
    """Slow in one precision, by far."""

    def __init__(self, slow: bool) -> None:
        super().__init__()
        self.config = {"sample_size": [8, 6], "in_channels": 1}
        self.slow = slow  # in bfloat16, else in float32

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu") == self.slow:
            time.sleep(0.05)
        return super().forward(x, timesteps)


def test_auto_is_bfloat16_where_it_is_faster_and_as_good() -> None:
    auto, schedule = Acceleration(precision="auto", channels_last=True), linear_schedule()
    quick, slow = (Denoiser(Sleepy(slow), schedule) for slow in (False, True))
    cpu = torch.device("cpu")
    assert best_precision(auto, [quick], cpu, 0.9) == "bfloat16"
    assert best_precision(auto, [quick, slow], cpu, 0.9) == "float32"
    assert best_precision(auto, [quick], cpu, 1.01) == "float32", "no cosine is so good"
    assert best_precision(auto, [quick], torch.device("cuda"), 0.9) == "float32", "it is for CPUs"
