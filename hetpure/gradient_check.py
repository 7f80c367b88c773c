"""The gradient check: whether an attack's gradient is the gradient of what the defence computes."""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hetpure.gradients import Execution, input_gradient
from hetpure.memory import trim_heap

M = TypeVar("M", bound=nn.Module)
Loss = Callable[[nn.Module, Tensor, Execution], Tensor]
STEP_SIZES = (1e-5, 1e-6, 1e-4, 1e-7)  # tried in this order
SHORT, LONG = min(STEP_SIZES), max(STEP_SIZES)
# A continuous function is about as steep over LONG as over SHORT; a jump is LONG / SHORT = 1000
# times as steep. The bound lies halfway, in decades.
STEEPER = (LONG / SHORT) ** 0.5
Kind = Literal["straight through", "jumps", "detached", "kinks"]
WITHOUT_ITS_GRADIENT = (
    "attack it with hetpure.attacks.BPDA, which takes such a gradient on purpose, or without"
    " gradients (hetpure.attacks.Square)"
)
ADVICE: Mapping[Kind, str] = {
    "straight through": (
        "finite differences are zero and the gradient is not: a quantised step hands its gradient"
        " straight through, and accuracy under an attack that follows this gradient says nothing:"
        f" {WITHOUT_ITS_GRADIENT}"
    ),
    "jumps": (
        "the answer jumps however short the step of a finite difference is: a step's noise is a"
        " function of the image (a hash of its bits?). No seed helps: draw noise by address"
        " (hetpure.noise), or attack it without gradients (hetpure.attacks.Square)"
    ),
    "detached": (
        "finite differences agree with one another and not with the gradient: a step is detached,"
        " or is quantised and hands its gradient straight through. Differentiate that step, or"
        f" {WITHOUT_ITS_GRADIENT}"
    ),
}


@dataclass(frozen=True)
class GradientCheck:
    """What was checked of a gradient, in float64 on a slice of the run's images.

    Checked were `images` and, of a purifier's `of_steps` steps, `steps`: fewer where all of them
    would cost too much. None, as older results have it, are all steps. `device` computed float64.

    `policies_equal`: the policies named in `compared` gave the same gradient bit for bit.
    `finite_difference_error` is the largest over directions of the smallest over step sizes of
    |difference - g.d| / max(|g.d|, |g| |d| / sqrt(n)): relative to the size that g.d has for a
    random direction d. Step sizes at which a ReLU changed its pattern or a clamp its side are
    discarded; `directions` counts those with a step size left. Both are of the exact gradient.
    `kind` says how finite differences disagree with it: see `_Line.kind`. None where they agree,
    and in older results.

    `cosine_to_exact` is that of the gradient as an attack computes it (on the run's device, in its
    precision and micro-batches, under its policy) to the exact one, both of the steps checked, mean
    over the slice. Below `cosine_bound` the check fails. For a named `approximation` the cosine is
    reported and not judged, and it is always of all steps: with fewer the approximation would look
    better than it is. Where not all steps were checked, the exact gradient beside it is in the
    run's precision.
    `substitute_cosines` are those of what some of the run's attacks follow in its place (a soft
    mask, BPDA, the classifier alone) to the attack's gradient with the mask held fixed, by name,
    mean over a block; reported and not judged.
    `cosine_to_float32` is that of an accelerated network call (low precision, compiled) to the
    plain call on the run's device, mean over a block, judged by the same bound; the lowest cosine
    of an image is reported.
    """

    policy: str
    compared: tuple[str, ...]
    policies_equal: bool
    finite_difference_error: float
    bound: float
    directions: int
    images: int
    cosine_to_exact: float = 1.0
    approximation: bool = False
    cosine_to_float32: float | None = None
    lowest_cosine_to_float32: float | None = None
    cosine_bound: float = 0.99
    substitute_cosines: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    of_steps: int | None = None
    device: str = "cpu"
    kind: Kind | None = None

    @property
    def failure(self) -> str | None:
        """What failed and what to do, in one line; None where nothing did."""
        if not self.policies_equal:
            elsewhere = (
                ""
                if self.device == "cpu"
                else f", or an operation of it does not repeat its bits on {self.device}: a CPU"
                " tells them apart"
            )
            return (
                f"the policies {', '.join(self.compared)} disagree, so a step does something else"
                f" when it is called again (noise that is not by address?){elsewhere}"
            )
        # Before the cosines, which such a step spoils too.
        if self.kind is not None and self.kind in ADVICE:
            return ADVICE[self.kind]
        bound, cosine = self.cosine_bound, self.cosine_to_float32
        if cosine is not None and not cosine >= bound:
            return (
                f"the accelerated gradient's cosine to float32 is {cosine:.4f}, below {bound}: use"
                " another acceleration, or allow it with cosine_bound"
            )
        if not self.approximation and not self.cosine_to_exact >= bound:
            return (
                "as the attack's gradient is computed on this device, its cosine to the exact one"
                f" is {self.cosine_to_exact:.4f}, below {bound}: allow it with cosine_bound"
            )
        if not self.directions:
            return (
                "it could not be checked: nothing jumps, but in every direction each step of a"
                " finite difference crossed a kink of a network (a ReLU or a clamp): another seed"
                " takes other directions"
            )
        if not self.finite_difference_error <= self.bound:
            return (
                "its error against finite differences is"
                f" {self.finite_difference_error:.1e}, above {self.bound:.0e}, on"
                f" {self.directions} directions: raise gradient_bound if kinks of the network other"
                " than ReLUs and clamps explain it"
            )
        return None

    @property
    def passed(self) -> bool:
        return self.failure is None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed, "failure": self.failure}


def check_gradient(
    module: nn.Module,
    loss: Loss,
    images: Tensor,
    directions: Iterable[Tensor],
    compared: Sequence[Execution],
    *,
    bound: float = 1e-5,
    wanted: int | None = None,
) -> GradientCheck:
    """Checks exact policies against one another bit for bit, and the first of them against central
    finite differences.

    `loss(module, images, execution)` is a scalar and must hold masks and noise fixed. `images` is
    an interior point (B, C, H, W), and so is the shape of each of the `directions`. They are taken
    in order until `wanted` of them, by default all, have a step size left, or one disagrees. Step
    sizes are tried until one is ten times better than the bound asks for. Computed on the images'
    device, or on the CPU where that has no float64.
    """
    device = float64_device(images.device)
    double = in_float64(module).eval()
    point = images.detach().to(device).double()
    gradients = []
    with repeatable(device):
        for execution in compared:
            x = point.clone().requires_grad_()
            gradients.append(input_gradient(loss(double, x, execution), x))
            trim_heap()
    exact = gradients[0]
    equal = [torch.equal(exact, other) for other in gradients[1:]]
    errors: list[float] = []
    kind: Kind | None = "kinks"
    for direction in directions:
        line = _Line.of(double, loss, point, exact, direction.to(device).double())
        error, wildest = line.errors(bound)
        agrees = error <= bound
        found = None if agrees and wildest < STEEPER else line.kind()
        if agrees and found != "jumps":  # noise of few values agrees by chance at some step size
            found = None
        if found == "kinks" and error == math.inf:
            continue  # every step size crossed one: only another direction tells more
        errors.append(error)
        kind = found
        if found is not None or len(errors) == wanted:
            break
    return GradientCheck(
        policy=compared[0].policy,
        compared=tuple(execution.policy for execution in compared),
        policies_equal=all(equal),
        finite_difference_error=max(errors, default=math.inf),
        bound=bound,
        directions=sum(error < math.inf for error in errors),
        images=len(images),
        device=device.type,
        kind=kind,
    )


def float64_device(device: torch.device) -> torch.device:
    """Where float64 is computed for a run on `device`."""
    return torch.device("cpu") if device.type == "mps" else device


def in_float64(module: M) -> M:
    """A copy of a module that is on its run's device, in float64 where that is computed."""
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    double = copy.deepcopy(module).to(float64_device(device)).double()
    trim_heap()  # the copy in float32 that it was for a moment
    return double


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Inside, an accelerator computes the same bits each time, wherever its libraries can. A CPU
    does anyway."""
    if device.type == "cpu":
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what cannot makes policies differ, which is said
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warned)


def cosines(ours: Tensor, exact: Tensor) -> Tensor:
    """(B,) cosines between two gradients (B, ...), by image, so that a large gradient hides no
    small one."""
    ours, exact = (gradient.cpu().double().flatten(1) for gradient in (ours, exact))
    # Scaled first: the squares of small gradients may be no numbers.
    ours, exact = (gradient / gradient.abs().amax(1, keepdim=True) for gradient in (ours, exact))
    return torch.cosine_similarity(ours, exact)


@dataclass(frozen=True)
class _Line:
    """The loss along a direction, in float64.

    Args:
        value: the loss a distance from the point, and what its ReLUs and clamps did there.
        slope: g.d, what the gradient says of the loss at the point.
        scale: what errors are relative to.
    """

    value: Callable[[float], tuple[float, list[int]]]
    slope: float
    scale: float

    @classmethod
    def of(
        cls, module: nn.Module, loss: Loss, point: Tensor, gradient: Tensor, direction: Tensor
    ) -> "_Line":
        """Through a point (B, C, H, W), along a direction of its shape."""

        def value(distance: float) -> tuple[float, list[int]]:
            with torch.no_grad(), _Kinks() as kinks:
                loss_there = loss(module, point + distance * direction, Execution("tape"))
            return float(loss_there), kinks.seen

        slope = float((gradient * direction).sum())
        typical = float(gradient.norm() * direction.norm()) / point.numel() ** 0.5
        return cls(value, slope, max(abs(slope), typical))

    def errors(self, bound: float) -> tuple[float, float]:
        """Of central differences: the smallest over step sizes that cross no kink, infinite where
        all cross one; and the largest over all that were tried."""
        best, wildest = math.inf, 0.0
        for size in STEP_SIZES:
            (high, above), (low, below) = self.value(size), self.value(-size)
            error = abs((high - low) / (2 * size) - self.slope) / self.scale
            wildest = max(wildest, error)
            if above == below:
                best = min(best, error)
            if best <= bound / 10:
                break
        return best, wildest

    def kind(self) -> Kind:
        """Why central differences disagree with the slope, by differences between places on one
        side of the point, where a kink or a jump at the point itself plays no part.

        - `straight through`: they are zero and the slope is not.
        - `jumps`: they grow as places come closer. So does the difference across the point where
          the loss jumps only there.
        - `detached`: they agree with one another, and not with the slope.
        - `kinks`: none of these.
        """
        short, across = self._differences(SHORT)
        long, _ = self._differences(LONG)
        steepest, mean = max(map(abs, short)), sum(short) / len(short)
        if steepest < 1e-4 * self.scale:
            return "straight through"
        if steepest > STEEPER * max(map(abs, long)):
            return "jumps"
        if max(short) - min(short) < 0.1 * abs(mean - self.slope):
            return "detached"
        return "jumps" if abs(across) > STEEPER * steepest else "kinks"

    def _differences(self, size: float) -> tuple[list[float], float]:
        """Difference quotients between neighbours, on both sides `size` to twice the size from the
        point, in order; and the one across the point. The lowest and the highest are left out: a
        quantised step may happen to jump between two of the places."""
        gaps = 8
        width = size / gaps
        sides = [
            [self.value(side * (size + k * width))[0] for k in range(gaps + 1)] for side in (1, -1)
        ]
        quotients = [
            side * (far - near) / width
            for side, values in zip((1, -1), sides, strict=True)
            for near, far in pairwise(values)
        ]
        return sorted(quotients)[1:-1], (sides[0][0] - sides[1][0]) / (2 * size)


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
            self.seen.append(hash((output == before).cpu().numpy().tobytes()))
        return output
