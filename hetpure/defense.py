"""A defence: a purifier in front of a classifier. Image and noise in, logits out."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from hetpure.attention import AttentionMask
from hetpure.classifiers import Classifier
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.gradients import Policy, run_plan
from hetpure.noise import RowNoise
from hetpure.purifiers import Plan, Purifier, Step


class Defense(nn.Module):
    """Purifier and classifier as one differentiable function of the image, given the noise.

    Without a purifier it is the plain classifier. Images are pixel [0, 1] (B, C, H, W).
    """

    def __init__(
        self,
        classifier: Classifier,
        purifier: Purifier | None = None,
        denoiser: Denoiser | None = None,
        mask: AttentionMask | None = None,
        policy: Policy = "checkpoint",
    ) -> None:
        super().__init__()
        if (purifier is None) != (denoiser is None):
            raise InputError("a purifier needs a denoiser, and a denoiser a purifier")
        self.classifier = classifier
        self.denoiser = denoiser
        self.purifier = purifier
        self.attention_mask = mask or AttentionMask()
        self.policy: Policy = policy
        self.plan: Plan = purifier.plan(denoiser.schedule) if purifier and denoiser else ()
        self.eval().requires_grad_(False)

    @property
    def stochastic(self) -> bool:
        """Whether the answer depends on the noise."""
        return bool(self.plan)

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

    def mask(self, images: Tensor, samples: Tensor | None = None) -> Tensor | None:
        """(B, 1, H, W) attended pixels, where the purifier asks for them. Depends on the image
        and, for random control masks, its sample id only: compute it once for all noise draws."""
        if self.purifier is None or not self.purifier.needs_mask:
            return None
        return self.attention_mask(self.classifier, images, samples)

    def purify(
        self,
        images: Tensor,
        noise: RowNoise,
        mask: Tensor | None = None,
        policy: Policy | None = None,
    ) -> Tensor:
        """The purified images, pixel [0, 1]; differentiable in `images`, `mask` held fixed."""
        purifier, denoiser = self.purifier, self.denoiser
        if purifier is None or denoiser is None:
            return images
        if purifier.needs_mask and mask is None:
            mask = self.mask(images, noise.samples)

        def advance(step: Step, state: Tensor) -> Tensor:
            return purifier.advance(denoiser, step, state, images, mask, noise)

        state = purifier.start(denoiser, images, noise)
        return purifier.finish(run_plan(self.plan, advance, state, policy or self.policy))

    def forward(
        self,
        images: Tensor,
        noise: RowNoise,
        mask: Tensor | None = None,
        policy: Policy | None = None,
    ) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.classifier(self.purify(images, noise, mask, policy))
        return logits


class CallCounter:
    """Network calls seen: `batches` forward calls with `rows` images in all."""

    def __init__(self) -> None:
        self.batches = 0
        self.rows = 0


@contextmanager
def count_network_calls(defense: Defense) -> Iterator[CallCounter]:
    """Counts the diffusion network's forward calls inside the block, recomputed ones too."""
    counter = CallCounter()

    def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        counter.batches += 1
        counter.rows += len(arguments[0])

    if defense.denoiser is None:
        yield counter
        return
    # Before the call: a recomputation ends as soon as it has what the backward pass needs, which
    # can be inside the network.
    handle = defense.denoiser.register_forward_pre_hook(hook)
    try:
        yield counter
    finally:
        handle.remove()
