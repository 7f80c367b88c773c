"""A defence: a purifier in front of a classifier. Image and noise in, logits out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetpure import adjoint
from hetpure.attention import AttentionMask, Mask
from hetpure.classifiers import Classifier
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.gradients import Advance, Execution, Policy, check_finite, run_plan
from hetpure.memory import Footprint, budget_bytes, saved_bytes
from hetpure.noise import BatchNoise, Group, noise_for, unsigned
from hetpure.purifiers import Plan, Purifier, Step


class Defense(nn.Module):
    """Purifier and classifier as one differentiable function of the image, given the noise.

    Without a purifier it is the plain classifier. Images are pixel [0, 1] (B, C, H, W). Where
    `purified_size` is given they are resized to that height and width, purified, and resized back,
    bilinearly and within the gradient. How it is differentiated (`execution`) can be set at any
    time; it changes no answer that is not differentiated.
    """

    def __init__(
        self,
        classifier: Classifier,
        purifier: Purifier | None = None,
        denoiser: Denoiser | None = None,
        mask: Mask | None = None,
        policy: Policy | Execution = "auto",
        purified_size: int | None = None,
    ) -> None:
        super().__init__()
        if (purifier is None) != (denoiser is None):
            raise InputError("a purifier needs a denoiser, and a denoiser a purifier")
        if purified_size is not None and (purifier is None or purified_size < 1):
            raise InputError(f"purified_size {purified_size}: a purifier takes 1 pixel or more")
        self.classifier = classifier
        self.denoiser = denoiser
        self.purifier = purifier
        self.attention_mask: Mask = mask or AttentionMask()
        self.plan: Plan = purifier.plan(denoiser.schedule) if purifier and denoiser else ()
        self.execution = Execution.of(policy)
        self.purified_size = purified_size
        self._chosen: dict[object, Execution] = {}
        self.eval().requires_grad_(False)

    def copy(
        self, denoiser: Denoiser | None = None, classifier: Classifier | None = None
    ) -> "Defense":
        """Another defence of the same class, networks, plan and execution; of another denoiser or
        classifier where one is given."""
        other = copy(self)
        other._modules, other._chosen = dict(self._modules), {}
        other.denoiser = denoiser or self.denoiser
        other.classifier = classifier or self.classifier
        return other

    @property
    def execution(self) -> Execution:
        """How the defence is differentiated."""
        return self._execution

    @execution.setter
    def execution(self, execution: Execution) -> None:
        self._execution = _checked(execution, self.purifier)

    @property
    def groups(self) -> frozenset[Group]:
        """The groups of noise that the answer depends on; none of a deterministic defence."""
        return self.purifier.groups(self.plan) if self.purifier else frozenset()

    @property
    def stochastic(self) -> bool:
        """Whether the answer depends on the noise."""
        return bool(self.groups)

    @property
    def compiled(self) -> bool:
        """Whether the diffusion network is code that was compiled for one shape: batches are filled
        up to it."""
        return getattr(self.denoiser and self.denoiser.network, "compiled", False)

    @property
    def masked(self) -> bool:
        """Whether the purifier looks at an attention mask."""
        return self.purifier is not None and self.purifier.needs_mask

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the diffusion network was made for."""
        config = getattr(self.denoiser and self.denoiser.network, "config", {})
        size = config.get("sample_size")
        if size is None:
            raise InputError("this defence's diffusion network names no sample_size")
        height, width = (size, size) if isinstance(size, int) else size
        return self.classifier.channels, height, width

    @property
    def network_calls(self) -> int:
        """Network calls of one purification."""
        return sum(step.network_calls for step in self.plan)

    def gradient_calls(self, execution: Execution | None = None) -> tuple[int, int]:
        """Network calls of one gradient of one image: forward ones, recomputed ones included, and
        those that are differentiated."""
        execution = execution or self.execution
        if execution.policy == "classifier_only":
            return 0, 0
        if execution.policy == "bpda":
            return self.network_calls, 0
        again = self.plan[: execution.recomputed(len(self.plan))]
        if execution.policy == "adjoint":
            again = adjoint.solved(self.plan)
        return self.network_calls + sum(step.network_calls for step in again), self.network_calls

    def mask(
        self, images: Tensor, samples: Tensor | None = None, *, soft: bool = False
    ) -> Tensor | None:
        """(B, 1, H, W) attended pixels at the purifier's size, where it asks for them. Depends on
        the image and, for random control masks, its sample id only: compute it once for all noise
        draws. A `soft` mask is the same with a gradient, see `Mask`."""
        if not self.masked:
            return None
        size = None if self.purified_size is None else (self.purified_size, self.purified_size)
        return self.attention_mask(self.classifier, images, samples, size, soft=soft)

    def resized(self, images: Tensor) -> Tensor:
        """The images (B, C, H, W) at the size at which they are purified."""
        size = self.purified_size
        return images if size is None else resized(images, (size, size))

    def purify(
        self,
        images: Tensor,
        noise: BatchNoise,
        mask: Tensor | None = None,
        policy: Policy | Execution | None = None,
    ) -> Tensor:
        """The purified images, pixel [0, 1]; differentiable in `images` and `mask`, by `policy`
        where it is given and else as `execution` says."""
        purifier, denoiser = self.purifier, self.denoiser
        execution = self.execution if policy is None else _checked(policy, purifier)
        if purifier is None or denoiser is None:
            return images
        if not _differentiated(images, mask):
            execution = Execution("tape")  # keeps nothing where nothing is differentiated
        if execution.policy == "classifier_only":
            return images
        if self.masked and mask is None:
            mask = self.mask(images, noise.samples)

        numbers = unsigned(noise)

        def advance(step: Step, state: Tensor, known: Tensor, mask: Tensor | None) -> Tensor:
            return purifier.advance(denoiser, step, state, known, mask, numbers)

        if execution.policy == "bpda":
            with torch.no_grad():
                purified = self.purify(images, noise, mask)
            return purified + (images - images.detach())  # the identity's derivative, and plus 0
        known = self.resized(images)
        state = purifier.start(denoiser, known, numbers)
        if execution.policy == "adjoint":
            equation = adjoint.equation(purifier)
            state = adjoint.solve(equation, denoiser, self.plan, state, numbers)
            state = check_finite(state, "the purifier's result")
        else:
            execution = self.resolved(execution, images)
            state = self.run_steps(advance, state, known, mask, execution)
        return resized(purifier.finish(state), images.shape[-2:])

    def run_steps(
        self,
        advance: Advance,
        state: Tensor,
        images: Tensor,
        mask: Tensor | None,
        execution: Execution,
    ) -> Tensor:
        """The state (B, ...) after all steps of the plan, advance(step, state, images, mask) each;
        differentiable in all three by an exact policy that is `resolved`. The images are at the
        size at which they are purified."""

        def advance_views(step: Step, state: Tensor, *inputs: Tensor | None) -> Tensor:
            # A step gets views of its inputs. Autograd then adds up an input's gradient within the
            # step first: in the same order, to the bit, as where the step is recomputed.
            return advance(step, state, *(None if x is None else x.view_as(x) for x in inputs))

        recomputed = execution.recomputed(len(self.plan))
        state = run_plan(self.plan, advance_views, state, (images, mask), recomputed)
        return check_finite(state, "the purifier's result")  # the clamp of the end would hide it

    def footprint(self, images: Tensor) -> Footprint:
        """Bytes that gradients of such images (B, C, H, W) take, measured on two of the first."""
        images = images[:1].expand(2, -1, -1, -1).clone()
        purifier, denoiser = self.purifier, self.denoiser
        classifier = saved_bytes(
            lambda: self.classifier(images.requires_grad_()), [self.classifier]
        )
        if purifier is None or denoiser is None:
            return Footprint(step=0, classifier=classifier // 2, state=0)
        noise = noise_for(images)
        with torch.no_grad():
            known, mask = self.resized(images), self.mask(images, noise.samples)
            state = purifier.start(denoiser, known, noise)
        step = max(self.plan, key=lambda step: step.network_calls)
        taped = saved_bytes(
            lambda: purifier.advance(denoiser, step, state.requires_grad_(), known, mask, noise),
            [denoiser],
        )
        return Footprint(taped // 2, classifier // 2, state[0].nbytes)

    def resolved(self, execution: Execution, images: Tensor) -> Execution:
        """The execution with as many steps of this batch taped as fit, chosen once for a shape."""
        if execution.resolved:
            return execution
        key = execution, images.shape, images.dtype, images.device
        if key not in self._chosen:
            fitting = self.footprint(images.detach()).fitting(
                len(images), len(self.plan), budget_bytes(images.device)
            )
            self._chosen[key] = (
                Execution("checkpoint") if fitting is None else Execution("hybrid", fitting)
            )
        return self._chosen[key]

    def forward(
        self,
        images: Tensor,
        noise: BatchNoise,
        mask: Tensor | None = None,
        policy: Policy | Execution | None = None,
    ) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.classifier(self.purify(images, noise, mask, policy))
        return logits


class DefenseView(Defense):
    """A defence that gives other answers by the same networks, plan and chosen execution."""

    def __init__(self, defense: Defense) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(defense))


def _checked(policy: Policy | Execution, purifier: Purifier | None) -> Execution:
    """The execution; InputError where the purifier cannot be differentiated so."""
    execution = Execution.of(policy)
    if execution.policy == "adjoint":
        adjoint.equation(purifier)
    return execution


def resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned: as the published evaluations on ImageNet resize."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, tuple(size), mode="bilinear", align_corners=False)


def _differentiated(*tensors: Tensor | None) -> bool:
    """Whether a gradient in any of them is wanted."""
    wanted = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return wanted and torch.is_grad_enabled()


@contextmanager
def count_network_calls(defense: Defense) -> Iterator[list[int]]:
    """The number of images in each call of the diffusion network inside the block, recomputed calls
    too."""
    calls: list[int] = []
    # Before the call: a recomputation ends as soon as it has what the backward pass needs, which
    # can be inside the network.
    denoiser = defense.denoiser or nn.Identity()  # never called
    with denoiser.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0]))):
        yield calls
