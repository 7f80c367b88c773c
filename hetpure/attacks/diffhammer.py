"""DiffHammer (Wang et al., NeurIPS 2024): a selective attack. Noise draws that one perturbation can
break together are attacked, and the others do not pull it elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.attacks.attack import Attack, Cost
from hetpure.attacks.gradient import Ascent
from hetpure.attacks.pgd import PGD, steepest
from hetpure.defense import Defense, DefenseView
from hetpure.errors import FieldError, check_at_least, check_choice, check_positive
from hetpure.expectation import Answer, Criterion, Progress, Query, expected_gradient
from hetpure.geometry import Norm
from hetpure.gradients import Execution, Policy, require_gradient
from hetpure.noise import BatchNoise, Group, Noise
from hetpure.numbers import Number

SelectiveLoss = Literal["margin", "dlr"]
NOBODY = -1  # a label that no answer has


@dataclass(frozen=True, kw_only=True)
class DiffHammer(PGD):
    """PGD along a weighted mean of the draws' gradients. A draw's weight is the posterior that it
    can be attacked, found anew for every iterate by expectation-maximisation: see `posterior`.

    Its loss is above 0 where an answer is wrong, which a posterior needs. The best iterate goes by
    the objective whose gradient the weights make: the mean of softplus(lambda loss) / lambda over
    the draws. Where nothing unknown is drawn this is PGD. The published code keeps a mean of the
    steps' gradients, and takes the paper's posterior from the first of its rounds alone; here every
    round goes on from the round before.

    Args:
        loss: margin or dlr.
        rounds: of E and M step.
        sharpness: lambda, how sharply a posterior tells broken draws from others.
        grafted: differentiate the purifier once an iterate in place of once a draw (gradient
            grafting): the weighted mean of the classifier's gradients at the purified images goes
            back through the purification of one draw, the one with the largest posterior. The
            purifications of the other draws are queries.
    """

    loss: SelectiveLoss = "margin"
    rounds: int = 10
    sharpness: Number = Number(1)  # noqa: RUF009 (immutable)
    grafted: bool = False

    def __post_init__(self) -> None:
        check_choice(self, "loss", SelectiveLoss)
        super().__post_init__()
        check_at_least(self, 1, "rounds")
        check_positive(self, "sharpness")
        if self.eot_samples < 2:
            several = "draws are told apart by their losses: needed are >= 2, got"
            raise FieldError(self, "eot_samples", f"{several} {self.eot_samples}")
        if self.average != "gradients":
            weighted = "must be gradients, whose mean is weighted, got"
            raise FieldError(self, "average", f"{weighted} {self.average}")
        if self.grafted and self.approximation != "none":
            own = f"{self.grafted} goes with approximation none, got {self.approximation}"
            raise FieldError(self, "grafted", own)

    def transferred(self) -> Attack | None:
        return replace(self, approximation="classifier_only", resubmissions=0, grafted=False)

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        cost = super().cost(defense, known)
        if not self.grafted or cost.draws == 1:
            return cost
        return replace(
            cost,
            gradients=cost.gradients // cost.draws,
            queries=cost.queries + cost.gradients,
            draws=1,
        )

    def gradient_at(self, run: Ascent, adversarial: Tensor, noises: Sequence[Noise]) -> Answer:
        if len(noises) == 1:
            return super().gradient_at(run, adversarial, noises)
        target, draws, count = run.target, len(noises), len(adversarial)
        monitor, defense, execution = target.monitor, target.defense, self.execution(target.defense)
        every = Selection(
            adversarial.repeat(draws, 1, 1, 1),
            BatchNoise.stack(noises, target.samples),
            torch.arange(count, device=adversarial.device).repeat(draws),
        )
        progress = monitor.differentiated
        shared: Tensor | None = None
        if self.mask != "soft":  # one mask for all draws
            asked = Query(adversarial, target.samples, run.mask, noises)
            shared = self.query(defense, asked).mask
            run = replace(run, mask=shared)
        if self.grafted:
            execution = Execution("bpda", micro_batch=defense.execution.micro_batch)
            progress = monitor.answered
        answer = self._each(run, every, defense, run.criterion, progress, execution)
        gradients = answer.gradient.reshape(draws, *adversarial.shape)
        losses = answer.loss.reshape(draws, count)
        logits = answer.logits.reshape(draws, count, -1)

        reach, sharpness = float(self.epsilon), float(self.sharpness)
        weights = posterior(losses, gradients, reach, self.norm, sharpness, self.rounds)
        shares = weights.to(gradients)[..., None, None, None] * gradients
        first, second = shares[: draws // 2].sum(0), shares[draws // 2 :].sum(0)
        gradient = first + second
        if self.grafted:
            gradient = self._graft(run, every, weights.argmax(0), gradient)
        wrong = (logits.argmax(-1) != target.labels).any(0)
        return Answer(
            require_gradient(gradient, wrong),
            F.softplus(sharpness * losses).mean(0) / sharpness,
            logits,
            F.cosine_similarity(first.flatten(1).double(), second.flatten(1).double()),
            shared,
        )

    def _graft(self, run: Ascent, every: "Selection", chosen: Tensor, gradient: Tensor) -> Tensor:
        """J^T g (B, C, H, W) for a gradient g in the purified images and the Jacobian J of the
        purification of each image's chosen draw (B,)."""
        count = len(gradient)
        one = every.take(chosen * count + torch.arange(count, device=chosen.device))

        def along(purified: Tensor, index: Tensor) -> Tensor:
            return (purified * gradient.flatten(1)[index]).sum(-1)

        defense, progress = run.target.defense, run.target.monitor.differentiated
        execution = self.execution(defense)
        return self._each(run, one, Purified(defense), along, progress, execution).gradient

    def _each(
        self,
        run: Ascent,
        selection: "Selection",
        defense: Defense,
        criterion: Criterion,
        progress: Progress,
        execution: Execution | None,
    ) -> Answer:
        """The gradient of each pair of image and draw by itself; of a single one it may be zero."""
        positions, samples = selection.positions, run.target.samples
        mask = None if run.mask is None else run.mask[positions]
        once = [run.target.addresses.noise]  # each pair brings its own in place of it
        query = Query(selection.images, samples[positions], mask, once)
        if self.mask == "soft":  # every pair goes back through a mask of its own
            query = self.query(defense, query)
        return expected_gradient(
            defense,
            Pairs(**vars(query), noise=selection.noise),
            lambda answers, index: criterion(answers, positions[index]),
            progress,
            execution=execution,
            labels=torch.full_like(positions, NOBODY),
        )


@dataclass(frozen=True)
class Selection:
    """Pairs of image and draw: the images (R, C, H, W), their noise, and where the images stand in
    the block (R,)."""

    images: Tensor
    noise: BatchNoise
    positions: Tensor

    def take(self, index: Tensor) -> "Selection":
        """Some of the pairs, (R,) int64."""
        return Selection(self.images[index], self.noise.take(index), self.positions[index])


@dataclass(frozen=True)
class Pairs(Query):
    """A query in which each image has one draw, its own."""

    noise: BatchNoise

    def entries(self) -> BatchNoise:
        return self.noise


class Purified(DefenseView):
    """A defence whose answers are the purified pixels (B, C H W)."""

    def forward(
        self,
        images: Tensor,
        noise: BatchNoise,
        mask: Tensor | None = None,
        policy: Policy | Execution | None = None,
    ) -> Tensor:
        return self.purify(images, noise, mask, policy).flatten(1)


def posterior(
    losses: Tensor, gradients: Tensor, reach: float, norm: Norm, sharpness: float, rounds: int
) -> Tensor:
    """Weights (N, B) of the draws, which sum to 1 over the N draws of each image.

    A perturbation of size `reach` along r changes the loss l_j of draw j to l_j + reach <u(r), g_j>
    in first order, where u(r) has norm 1 and rises most along r. The E step gives each draw the
    posterior sigmoid(lambda (l_j + reach <u(r), g_j>)) that it is one of those that r attacks. The
    M step takes the mean of the gradients with these weights as the next r. The first r is the
    gradient of the draw whose direction does most for all: the largest sum over draws of
    elu(l_j + reach <u(g_i), g_j>), in which no draw that is lost counts for less than -1.

    Args:
        losses: l (N, B), above 0 where the answer is wrong.
        gradients: g (N, B, C, H, W) of these losses.
        reach: the radius of the ball.
        norm: of the ball.
        sharpness: lambda.
        rounds: of E and M step.
    """
    losses, gradients = losses.double(), gradients.double()
    count = losses.shape[1]

    def gain(towards: Tensor) -> Tensor:
        """(N, B) for a direction (B, C, H, W)."""
        return reach * (steepest(towards, norm) * gradients).sum((2, 3, 4))

    gains = torch.stack([gain(towards) for towards in gradients])  # by the draw that is followed
    first = F.elu(losses + gains).sum(1).argmax(0)
    gained = gains[first, :, torch.arange(count, device=first.device)].T
    weights = torch.full_like(losses, 1 / len(losses))
    for _ in range(rounds):
        weights = F.logsigmoid(sharpness * (losses + gained)).softmax(0)
        gained = gain((weights[..., None, None, None] * gradients).sum(0))
    return weights
