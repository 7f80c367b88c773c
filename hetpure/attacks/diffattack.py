"""DiffAttack (Kang, Song & Li, NeurIPS 2023, arXiv 2311.16124): deviated reconstruction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hetpure.attacks.gradient import Ascent
from hetpure.attacks.pgd import PGD
from hetpure.defense import DefenseView, resized
from hetpure.denoiser import to_model
from hetpure.errors import FieldError, InputError, check_at_least
from hetpure.expectation import Answer, expected_loss
from hetpure.gradients import EXACT, Execution, Policy
from hetpure.noise import BatchNoise, Noise, unsigned
from hetpure.numbers import Number
from hetpure.purifiers import Step
from hetpure.purifiers.purifier import diffuse
from hetpure.schedule import NO_NOISE


class Deviated(DefenseView):
    """A defence whose answers (B, num_classes + 1) end in one number more, L_dev of the draw: how
    far the reverse process strays from the forward one. It is the sum over the plan's steps of
    alpha(t) d(x_t, x'_t) (eq. 8). As published (appendix D.2), alpha(t) is one over their number.

    x'_t is the state after the step, which stands at index t; x_t is the image diffused to that
    index with the known noise of the index, and the image itself where the step ends there; d is
    the mean squared difference in model units [-1, 1]. Both depend on the image and the gradient
    is exact.
    """

    def forward(
        self,
        images: Tensor,
        noise: BatchNoise,
        mask: Tensor | None = None,
        policy: Policy | Execution | None = None,
    ) -> Tensor:
        """Logits, and the deviation in the last column."""
        purifier, denoiser = self.purifier, self.denoiser
        assert purifier is not None and denoiser is not None
        execution = self.execution if policy is None else Execution.of(policy)
        if execution.policy not in ("auto", *EXACT):
            raise InputError(
                f"DiffAttack differentiates every step: the gradient {execution.policy} does not;"
                f" make it auto, {', '.join(EXACT)}"
            )
        if self.masked and mask is None:
            mask = self.mask(images, noise.samples)
        alpha, numbers = 1 / len(self.plan), unsigned(noise)

        def advance(step: Step, state: Tensor, known: Tensor, mask: Tensor | None) -> Tensor:
            before, deviation = state[:, :-1].reshape(known.shape), state[:, -1:]
            after = purifier.advance(denoiser, step, before, known, mask, numbers)
            diffused = (
                to_model(known)
                if step.to == NO_NOISE
                else diffuse(denoiser, known, numbers, step.to)
            )
            distance = (after - diffused).square().flatten(1).mean(1, keepdim=True)
            return torch.cat([after.flatten(1), deviation + alpha * distance], 1)

        known = self.resized(images)
        state = purifier.start(denoiser, known, numbers).flatten(1)
        state = torch.cat([state, state.new_zeros(len(state), 1)], 1)
        execution = self.resolved(execution, images)
        state = self.run_steps(advance, state, known, mask, execution)
        purified = resized(purifier.finish(state[:, :-1].reshape(known.shape)), images.shape[-2:])
        return torch.cat([self.classifier(purified), state[:, -1:]], 1)


@dataclass(frozen=True, kw_only=True)
class DiffAttack(PGD):
    """PGD on L = L_cls + lambda L_dev (eq. 11) with the exact gradient of the whole defence, every
    purification of an EOT average with a deviation of its own.

    The best iterate is the one with the largest L_cls: what strays and is classified right is no
    adversarial example. Against a plain classifier, and with the approximation `classifier_only`,
    L_dev is 0 and this is PGD.

    Args:
        deviation_weight: lambda; the paper: 1.
    """

    deviation_weight: Number = Number(1)  # noqa: RUF009 (immutable)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "deviation_weight")
        if self.average == "probabilities":
            raise FieldError(self, "average", "must be gradients or logits, got probabilities")
        if self.approximation == "bpda":
            raise FieldError(self, "approximation", "must be none or classifier_only, got bpda")

    def gradient_at(self, run: Ascent, adversarial: Tensor, noises: Sequence[Noise]) -> Answer:
        defense, losses = run.target.defense, run.criterion

        def both(answers: Tensor, index: Tensor) -> Tensor:
            """L_cls + lambda L_dev of answers that end in the deviation."""
            deviation = answers[..., -1].double()
            return losses(answers[..., :-1], index) + self.deviation_weight * deviation

        if defense.purifier is not None and self.approximation != "classifier_only":
            target = replace(run.target, defense=Deviated(defense))
            run = replace(run, target=target, criterion=both)
        answer = super().gradient_at(run, adversarial, noises)
        logits = answer.logits[..., : defense.classifier.num_classes]
        return replace(answer, logits=logits, loss=expected_loss(logits, losses, self.average))
