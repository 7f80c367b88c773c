"""Gradients through a whole purification: exact ones in the memory there is, and approximations
that go by their names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hetpure.errors import FieldError, InputError, check_at_least, check_choice

Policy = Literal["auto", "tape", "checkpoint", "hybrid", "adjoint", "bpda", "classifier_only"]
EXACT = ("tape", "checkpoint", "hybrid")
APPROXIMATIONS = ("adjoint", "bpda", "classifier_only")
ADVICE = (
    "look for a detach, a rounding or a clamp in it, try the loss margin, or attack it without"
    " gradients (hetpure.attacks.Square) or past what hides them (hetpure.attacks.BPDA)"
)
S = TypeVar("S")
Advance = Callable[..., Tensor]


class GradientError(InputError):
    """A gradient that an attack cannot use: it would report robustness that is not there."""


@dataclass(frozen=True)
class Execution:
    """How a defence is differentiated.

    Args:
        policy: the exact ones are `tape` (keeps all activations), `checkpoint` (keeps the states
            only and calls each step once more) and `hybrid` (tapes the last steps, recomputes the
            others); `auto` takes the one that is fastest in the memory there is. Approximations:
            `adjoint` (the SDE's continuous adjoint), `bpda` (the purifier's derivative taken for
            the identity) and `classifier_only` (no purifier).
        taped_steps: how many of the last steps `hybrid` tapes; by default as many as fit.
        micro_batch: pairs (image, draw) that are computed at once; by default all.
    """

    policy: Policy = "auto"
    taped_steps: int | None = None
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        check_choice(self, "policy", Policy)
        check_at_least(self, 0, "taped_steps")
        check_at_least(self, 1, "micro_batch")
        if self.taped_steps is not None and self.policy != "hybrid":
            raise FieldError(self, "taped_steps", f"belongs to policy hybrid, not to {self.policy}")

    @classmethod
    def of(cls, policy: "Policy | Execution") -> "Execution":
        """A policy's name as an execution with its defaults."""
        return policy if isinstance(policy, Execution) else cls(policy)

    @property
    def resolved(self) -> bool:
        """Whether nothing is left to be chosen by memory."""
        return self.policy not in ("auto", "hybrid") or self.taped_steps is not None

    def describe(self, steps: int) -> str:
        """The policy in a few words, for a plan of so many steps."""
        if self.taped_steps is None:
            return self.policy
        return f"{self.policy}, {min(self.taped_steps, steps)} of {steps} steps taped"

    def recomputed(self, steps: int) -> int:
        """How many of a plan's steps, the first ones, are called once more going back."""
        if self.policy in ("checkpoint", "adjoint"):
            return steps
        return max(steps - (self.taped_steps or 0), 0) if self.policy == "hybrid" else 0


def run_plan(
    plan: Sequence[S],
    advance: Advance,
    state: Tensor,
    inputs: tuple[Tensor | None, ...] = (),
    recomputed: int = 0,
) -> Tensor:
    """Takes every step of the plan: state = advance(step, state, *inputs).

    `inputs` are what the steps may be differentiated in beside the state. Of the first
    `recomputed` steps only the state is kept, and going back each is called once more. Noise is by
    address, so a step taken again sees the same noise, and no generator's state has to be kept.
    """
    if recomputed and torch.is_grad_enabled():
        first, plan = plan[:recomputed], plan[recomputed:]
        state, *inputs = _Recomputed.apply(advance, first, state, *inputs)  # type: ignore[no-untyped-call]
    for step in plan:
        state = advance(step, state, *inputs)
    return state


class _Recomputed(torch.autograd.Function):
    """Steps whose insides are not kept; the inputs come out again for the steps that follow.

    So the gradients that later steps give an input arrive here first and those of these steps are
    added to them one by one, in the order in which a tape adds them: both agree bit for bit. The
    states lie in one piece of memory and there is one node for all steps: what is small and stays,
    allocated between the large tensors of each step, would cut the memory that these leave into
    pieces that fit no more (seen: 1 MB an image and step where a state has 3 KB).
    """

    @staticmethod
    def forward(
        ctx: Any, advance: Advance, plan: Sequence[Any], state: Tensor, *inputs: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        kept = torch.empty((len(plan), *state.shape), dtype=state.dtype, device=state.device)
        for slot, step in zip(kept, plan, strict=True):
            slot.copy_(state)
            state = advance(step, state, *inputs)
        ctx.advance, ctx.plan = advance, plan
        ctx.save_for_backward(kept, *inputs)
        ctx.set_materialize_grads(False)
        passed = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        wanted = ctx.needs_input_grad[3:]
        ctx.mark_non_differentiable(
            *(
                tensor
                for tensor, want in zip(passed, wanted, strict=True)
                if tensor is not None and not want
            )
        )
        return state, *passed

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor | None, *later: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        kept, *inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        totals = list(later)
        for before, step in reversed(list(zip(kept, ctx.plan, strict=True))):
            state = before.detach().requires_grad_()
            points = [
                tensor if tensor is None else tensor.detach().requires_grad_(wanted)
                for tensor, wanted in zip(inputs, needed, strict=True)
            ]
            with torch.enable_grad():
                output = ctx.advance(step, state, *points)
            if gradient is None or not output.requires_grad:  # detached: a tape ends here too
                return None, None, None, *totals
            wanted = [number for number, want in enumerate(needed) if want]
            gradient, *parts = torch.autograd.grad(
                output, [state, *(points[number] for number in wanted)], gradient, allow_unused=True
            )
            for number, part in zip(wanted, parts, strict=True):
                total = totals[number]
                totals[number] = part if total is None else total if part is None else total + part
        return None, None, gradient, *totals


def input_gradient(loss: Tensor, images: Tensor) -> Tensor:
    """d loss / d images (B, ...), checked: see `require_gradient`."""
    return require_gradient(differentiate(loss, [images])[0])


def differentiate(
    output: Tensor, inputs: Sequence[Tensor], cotangent: Tensor | None = None
) -> list[Tensor]:
    """Gradients of the output in each input. Where it does not hang on the first, the images, that
    is an error; in another it is zero then."""
    gradients: list[Tensor | None] = [None]
    if output.requires_grad:
        gradients = list(torch.autograd.grad(output, inputs, cotangent, allow_unused=True))
    if gradients[0] is None:
        raise GradientError(f"the loss does not depend on the image: a step is detached; {ADVICE}")
    return [
        torch.zeros_like(tensor) if part is None else part
        for tensor, part in zip(inputs, gradients, strict=True)
    ]


def check_finite(values: Tensor, what: str) -> Tensor:
    """The values themselves; not finite, they are an error."""
    if not values.isfinite().all():
        raise GradientError(
            f"{what} holds NaN or infinite values: attack nothing with it (float16 overflows"
            " easily: bfloat16 has the range of float32)"
        )
    return values


def require_gradient(gradient: Tensor, flat: Tensor | None = None) -> Tensor:
    """The gradient (B, ...) itself; not finite, or zero for an image, it is an error: an attack
    would leave that image where it is, and it would count as robust. `flat` are images (B,) whose
    gradient may be zero: those that do not count as robust anyway."""
    zero = ~check_finite(gradient, "the gradient").flatten(1).any(1)
    if flat is not None:
        zero &= ~flat
    if zero.any():
        count = f"{int(zero.sum())} of {len(zero)}"
        raise GradientError(
            f"the gradient is zero for {count} images: the defence hides it; {ADVICE}"
        )
    return gradient
