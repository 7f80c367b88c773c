"""Exact gradients through a whole purification, and the certificate that they are exact."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hetpure.errors import InputError

Policy = Literal["tape", "checkpoint"]
S = TypeVar("S")


class GradientError(InputError):
    """A gradient that an attack cannot use: it would report robustness that is not there."""


def run_plan(
    plan: Iterable[S], advance: Callable[[S, Tensor], Tensor], state: Tensor, policy: Policy
) -> Tensor:
    """Takes every step of the plan. `tape` keeps all activations for the backward pass;
    `checkpoint` keeps the states only and calls each step once more. Noise is by address, so a
    step taken again sees the same noise and no generator state has to be kept."""
    for step in plan:
        if policy == "checkpoint" and torch.is_grad_enabled():
            state = checkpoint(advance, step, state, use_reentrant=False, preserve_rng_state=False)
        else:
            state = advance(step, state)
    return state


def input_gradient(loss: Tensor, images: Tensor) -> Tensor:
    """d loss / d images (B, ...); missing, not finite or zero for an image is an error: an attack
    would leave that image where it is, and it would count as robust."""
    if not loss.requires_grad:
        raise GradientError("the loss does not depend on the image: a step of it is detached")
    (gradient,) = torch.autograd.grad(loss, images, allow_unused=True)
    if gradient is None:
        raise GradientError("the loss does not depend on the image: a step of it is detached")
    if not gradient.isfinite().all():
        raise GradientError("the gradient holds NaN or infinite values: attack nothing with it")
    zero = ~gradient.flatten(1).any(1)
    if zero.any():
        count = f"{int(zero.sum())} of {len(zero)}"
        raise GradientError(f"the gradient is zero for {count} images: the defence hides it")
    return gradient


@dataclass(frozen=True)
class Certificate:
    """What was checked of a gradient, in float64 on the CPU on a slice of the run's images.

    `equal_to_tape`: all memory policies, the one in use among them, gave the same gradient bit for
    bit. `finite_difference_error` is the largest over directions of the smallest over step sizes of
    |difference - g.d| / max(|g.d|, |g| |d| / sqrt(n)): relative to the size that g.d has for a
    random direction d. Step sizes at which a ReLU changed its pattern or a clamp its side are
    discarded; `directions` counts those with a step size left.
    """

    policy: Policy
    equal_to_tape: bool
    finite_difference_error: float
    bound: float
    directions: int
    images: int

    @property
    def passed(self) -> bool:
        return (
            self.equal_to_tape
            and self.directions > 0
            and self.finite_difference_error <= self.bound
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def certify(
    module: nn.Module,
    loss: Callable[[nn.Module, Tensor, Policy], Tensor],
    images: Tensor,
    directions: Tensor,
    policy: Policy,
    *,
    bound: float = 1e-5,
    step_sizes: tuple[float, ...] = (1e-4, 1e-5, 1e-6, 1e-7),
) -> Certificate:
    """Checks all policies against one another bit for bit, and the one in use against central
    finite differences.

    `loss(module, images, policy)` is a scalar and must hold masks and noise fixed. `images` is an
    interior point (B, C, H, W) and `directions` (N, B, C, H, W).
    """
    double = copy.deepcopy(module).cpu().double().eval()
    point = images.detach().cpu().double()

    def gradient(how: Policy) -> Tensor:
        x = point.clone().requires_grad_()
        return input_gradient(loss(double, x, how), x)

    exact = gradient(policy)
    others = [gradient(other) for other in get_args(Policy) if other != policy]
    errors = [
        error
        for direction in directions.cpu().double()
        if (error := _difference_error(double, loss, point, exact, direction, step_sizes))
        is not None
    ]
    return Certificate(
        policy=policy,
        equal_to_tape=all(torch.equal(exact, other) for other in others),
        finite_difference_error=max(errors, default=float("inf")),
        bound=bound,
        directions=len(errors),
        images=len(images),
    )


def _difference_error(
    module: nn.Module,
    loss: Callable[[nn.Module, Tensor, Policy], Tensor],
    point: Tensor,
    gradient: Tensor,
    direction: Tensor,
    step_sizes: tuple[float, ...],
) -> float | None:
    slope = float((gradient * direction).sum())
    typical = float(gradient.norm() * direction.norm()) / point.numel() ** 0.5
    best: float | None = None
    for size in step_sizes:
        with torch.no_grad(), _Kinks() as above:
            high = float(loss(module, point + size * direction, "tape"))
        with torch.no_grad(), _Kinks() as below:
            low = float(loss(module, point - size * direction, "tape"))
        if above.seen != below.seen:
            continue
        error = abs((high - low) / (2 * size) - slope) / max(abs(slope), typical)
        best = error if best is None else min(best, error)
    return best


class _Kinks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps which elements every ReLU and clamp left as they were, one hash an operation."""

    NAMES = ("relu", "leaky_relu", "threshold", "hardtanh", "clamp", "clamp_min", "clamp_max")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        watched = name.rstrip("_") in self.NAMES
        before = args[0].clone() if watched else None  # an in-place operation changes it
        output = func(*args, **(kwargs or {}))
        if watched:
            self.seen.append(hash((output == before).numpy().tobytes()))
        return output
