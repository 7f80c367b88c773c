"""Settings that cannot be used are refused where an object is built, or where its plan is made: in
one line, which names the field and what is allowed."""

from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
import torch

from hetpure.acceleration import Acceleration
from hetpure.addt import RankGaussian
from hetpure.addt_variants import Ball, RandomOrder
from hetpure.adversarial_training import AdversarialTraining
from hetpure.attacks import APGD, PGD, AutoEOT, Square
from hetpure.attention import AttentionMask
from hetpure.classifiers import (
    DeepMindWideResNet,
    MeliketoyWideResNet,
    ResNet,
    VisionTransformer,
    WideResNet,
)
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.gradients import Execution
from hetpure.levels import ContinuousLevels, DiscreteLevels, LogNormalLevels
from hetpure.numbers import Number
from hetpure.purifiers import EDMPurifier, GuidedPurifier, HeterogeneousPurifier, UniformPurifier
from hetpure.samplers import DDIM, VPSDE
from hetpure.schedule import linear_schedule

SCHEDULE = linear_schedule()
A: Any = AttentionMask
E: Any = EDMPurifier
G: Any = GuidedPurifier
H: Any = HeterogeneousPurifier
U: Any = UniformPurifier
X: Any = Execution
RANK: Any = RankGaussian
TRAINING: Any = AdversarialTraining
VIT = VisionTransformer(32, 4, 3, 5, width=24, heads=3, depth=1)

REFUSED: list[tuple[Callable[[], object], str]] = [
    # Purifiers. NO_NOISE is -1: as a timestep it would be a level that no network was trained on.
    (lambda: H(t_small=0.3), "HeterogeneousPurifier.t_small 0.3 is above t_large 0.2"),
    (lambda: H(t_large=1.2), "t_large must be in (0, 1], got 1.2"),
    (lambda: H(t_small=0.0), "t_small must be in (0, 1], got 0.0"),
    (lambda: H(resample_jump=0), "resample_jump must be >= 1, got 0"),
    (lambda: H(resampling="single"), "resampling is 'single', allowed are none, single_step"),
    (lambda: H(resampling="fused", recombine=True), "recombine belongs to resampling single_step"),
    (lambda: U(strength=nan), "strength must be in (0, 1], got nan"),
    (lambda: U(strength=1e-4).plan(SCHEDULE), "0.0001 is below the first of 1000 indices"),
    (lambda: U(output="x1"), "output is 'x1', allowed are x0, state"),
    (lambda: U(steps=0).plan(SCHEDULE), "steps must be in [1, 1000], got 0"),
    (lambda: U(steps=1001).plan(SCHEDULE), "steps must be in [1, 1000], got 1001"),
    (lambda: U(stride=0).plan(SCHEDULE), "stride must be in [1, 999], got 0"),
    (lambda: U(stride=1000).plan(SCHEDULE), "stride must be in [1, 999], got 1000"),
    (lambda: H(timesteps=()).plan(SCHEDULE), "timesteps must be in [0, 999]"),
    (lambda: G(timesteps=(20, -1)).plan(SCHEDULE), "timesteps must be in [0, 999], got (20, -1)"),
    (lambda: U(timesteps=(1000,)).plan(SCHEDULE), "timesteps must be in [0, 999], got (1000,)"),
    (lambda: H(steps=50, stride=20), "steps and stride contradict"),
    (lambda: G(steps=50, stride=20, timesteps=(0,)), "steps and stride and timesteps contradict"),
    (lambda: E(levels=0), "EDMPurifier.levels must be >= 1, got 0"),
    (lambda: E(rho=0.0), "rho must be > 0, got 0.0"),
    (lambda: E(sigma_min=inf), "sigma_min must be > 0, got inf"),
    (lambda: E(churn=nan), "churn must be >= 0, got nan"),
    (lambda: E(churn_min=0.5, churn_max=0.4), "churn_max must be >= churn_min 0.5, got 0.4"),
    (lambda: E(churn_min=nan), "churn_max must be >= churn_min nan"),
    (lambda: E(strength=0.0), "strength must be in (0, 1], got 0.0"),
    (lambda: G(guidance=-1.0), "GuidedPurifier.guidance must be >= 0, got -1.0"),
    (lambda: G(rounds=0), "rounds must be >= 1, got 0"),
    (lambda: G(rounds=2**16), "rounds must be <= 65535, got 65536"),
    (lambda: H(resample_jump=2**16), "resample_jump must be <= 65535, got 65536"),
    (lambda: G(sampler=DDIM(eta=1.0)), "sampler must be DDPM"),
    (lambda: G(sampler=VPSDE()), "sampler must be DDPM"),
    # Masks, gradients, network calls.
    (lambda: A(threshold=0.0), "AttentionMask.threshold must be in (0, 1], got 0.0"),
    (lambda: A(threshold=nan), "threshold must be in (0, 1], got nan"),
    (lambda: A(power=0.0), "power must be > 0, got 0.0"),
    (lambda: A(normalisation="min-max"), "normalisation is 'min-max', allowed are minmax, softmax"),
    (lambda: A(selection="top"), "selection is 'top', allowed are value, area"),
    (lambda: A(placement="centre"), "placement is 'centre', allowed are attended, inverted"),
    (lambda: X("reverse"), "policy is 'reverse', allowed are auto, tape, checkpoint, hybrid"),
    (lambda: X("hybrid", -1), "Execution.taped_steps must be >= 0, got -1"),
    (lambda: X("tape", 3), "taped_steps belongs to policy hybrid, not to tape"),
    (lambda: X(micro_batch=0), "micro_batch must be >= 1, got 0"),
    (lambda: Acceleration("half"), "Acceleration.precision is 'half', allowed are float32"),  # type: ignore[arg-type]
    (lambda: Acceleration(compile="on"), "compile is 'on', allowed are off, default"),  # type: ignore[arg-type]
    (lambda: Denoiser(VIT, SCHEDULE, "eps"), "prediction_type is 'eps', allowed are epsilon"),  # type: ignore[arg-type]
    # Trainings.
    (lambda: RANK(scale=-1), "RankGaussian.scale must be >= 0, got -1"),
    (lambda: RANK(scale=inf), "scale must be >= 0, got inf"),
    (lambda: RANK(ranks="row"), "ranks is 'row', allowed are channel, image"),
    (lambda: RANK(steps=0), "steps must be >= 1, got 0"),
    (lambda: RANK(steps=256, eot_samples=256), "steps x eot_samples must be < 65536, got 256 x 2"),
    (lambda: Ball(steps=2**16), "Ball.steps x eot_samples must be < 65536, got 65536 x 1"),
    (lambda: RANK(skip_below=0.31), "skip_below must be in [0, cap = 0.3], got 0.31"),
    (lambda: RandomOrder(cap=2), "RandomOrder.cap must be in [0, 1], got 2"),
    (lambda: Ball(eot_samples=0), "Ball.eot_samples must be >= 1, got 0"),
    (lambda: Ball(epsilon=Number(0)), "Ball.epsilon must be > 0, got 0"),
    (lambda: Ball(objective="x"), "objective is 'x', allowed are classification, denoising"),  # type: ignore[arg-type]
    (lambda: ContinuousLevels(beta_min=0), "ContinuousLevels.beta_min must be positive"),
    (lambda: ContinuousLevels(t_min=1), "t_min must be in (0, 1), got 1"),
    (lambda: LogNormalLevels(std=0), "LogNormalLevels.std must be > 0, got 0"),
    (lambda: LogNormalLevels(mean=nan), "mean must be finite, got nan"),
    (lambda: DiscreteLevels(highest=1000).check(SCHEDULE, ""), "the schedule has 0 to 999"),
    (lambda: DiscreteLevels(lowest=-1).check(SCHEDULE, ""), "the schedule has 0 to 999"),
    (lambda: DiscreteLevels(lowest=5, highest=4).check(SCHEDULE, ""), "the schedule has 0 to 999"),
    (lambda: TRAINING(epsilon=nan), "AdversarialTraining.epsilon must be >= 0, got nan"),
    (lambda: TRAINING(step_size=0.0), "step_size must be > 0, got 0.0"),
    (lambda: TRAINING(steps=0), "steps must be >= 1, got 0"),
    (lambda: TRAINING("fgsm"), "method is 'fgsm', allowed are pgd, trades"),
    (lambda: replace(TRAINING(), norm="l1"), "norm is 'l1', allowed are linf, l2"),
    (lambda: TRAINING("trades", beta=-1.0), "beta must be >= 0, got -1.0"),
    (lambda: TRAINING("trades"), "beta is None: method trades needs it"),
    (lambda: TRAINING("pgd", beta=6.0), "pgd has none"),
    # Attacks: what an address of noise has room for.
    (lambda: PGD(steps=2**16), "PGD.steps must be <= 65534, got 65536"),
    (lambda: APGD(eot_samples=2**17), "APGD.eot_samples must be <= 65536, got 131072"),
    (lambda: PGD(restarts=3, targets=99), "PGD.restarts x targets must be <= 256, got 3 x 99"),
    (lambda: Square(steps=2**16), "Square.steps must be <= 65534, got 65536"),
    (lambda: AutoEOT(square_steps=2**16), "AutoEOT.square_steps must be <= 65534, got 65536"),
    (lambda: AutoEOT(targets=300), "AutoEOT.targets must be <= 256, got 300"),
    # Classifiers.
    (lambda: ResNet(20), "ResNet.depth must be one of (18, 34, 50, 101, 152), got 20"),
    (lambda: ResNet(50, stem="svhn"), "stem is 'svhn', allowed are imagenet, cifar"),  # type: ignore[arg-type]
    (lambda: ResNet(18, inner_width=128), "inner_width belongs to depth 50 and more, not to 18"),
    (lambda: WideResNet(4, 1), "6n + 4 with n >= 1 (10, 16, 28), got 4"),
    (lambda: DeepMindWideResNet(27, 1), "6n + 4 with n >= 1 (10, 16, 28), got 27"),
    (lambda: MeliketoyWideResNet(10, 0), "widen_factor of a WRN must be at least 1, got 0"),
    (lambda: DeepMindWideResNet(10, 1, activation="swish"), "is 'swish', allowed are relu, silu"),  # type: ignore[arg-type]
    (lambda: VisionTransformer(30, 4), "image_size 30 is no multiple of patch_size 4"),
    (lambda: VisionTransformer(width=100, heads=12), "width 100 of a ViT cannot be shared"),
    (lambda: VisionTransformer(depth=0), "must all be positive"),
    (lambda: VIT(torch.zeros(1, 3, 28, 28)), "takes images of 32x32 pixels, got 28x28"),
]


@pytest.mark.parametrize(
    ("build", "message"),
    REFUSED,
    ids=[f"{k} {message[:60]}" for k, (_, message) in enumerate(REFUSED)],
)
def test_a_setting_that_cannot_be_used_is_one_line(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(InputError) as error:
        build()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
