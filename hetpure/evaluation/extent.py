"""How much of a gradient is checked: all of it where that is cheap, and less of it beyond."""

from dataclasses import dataclass, replace

from hetpure.defense import Defense
from hetpure.purifiers import Plan
from hetpure.schedule import NO_NOISE

IMAGES, DIRECTIONS = 2, 3


@dataclass(frozen=True)
class Extent:
    """What a gradient check looks at.

    Args:
        images: the first so many are computed in float64.
        directions: of finite differences.
        plan: the steps that are taken in float64, and by the attack's gradient beside it.
        block: the first so many images are computed on the run's device.
    """

    images: int
    directions: int
    plan: Plan
    block: int

    @property
    def work(self) -> int:
        """What a check so far costs, roughly, in forward passes of float32: in float64, which takes
        twice as long, some five gradients of each image and four passes a direction; on the run's
        device two gradients of each image of the block."""
        return max(len(self.plan), 1) * (
            2 * self.images * (20 + 4 * self.directions) + 8 * self.block
        )


def extents(plan: Plan, block: int) -> list[Extent]:
    """For a plan and a block of images, from everything down to one image and one step of every
    kind: directions go first, then images, then half of the steps and of the block again and
    again."""
    narrowing = [Extent(min(IMAGES, block), DIRECTIONS, plan, block)]
    narrowing += [Extent(images, 1, plan, block) for images in range(narrowing[0].images, 0, -1)]
    count = len(plan)
    while count > 1 or block > 1:
        count, block = -(-count // 2), -(-block // 2)
        narrowing.append(Extent(1, 1, thinned_plan(plan, count), block))
    return list(dict.fromkeys(narrowing))


def thinned_plan(plan: Plan, count: int) -> Plan:
    """About `count` steps of the plan, evenly spread, each as it is and in their order. The first
    step of every kind is always among them, and so is the one that ends at the clean image.

    The result purifies worse: steps that are left out take away no noise. For a gradient that does
    not matter, each step is computed as in the whole plan.
    """
    first: dict[object, int] = {}
    for place, step in enumerate(plan):
        # What its code branches on.
        kind = step.via > step.at, step.known, step.corrected, step.repeat > 0, step.to == NO_NOISE
        first.setdefault(kind, place)
    last, count = len(plan) - 1, min(count, len(plan))
    even = (k * last // (count - 1) for k in range(1, count))
    return tuple(plan[place] for place in sorted({*first.values(), *even}))


def thinned(defense: Defense, plan: Plan) -> Defense:
    """The same defence with these of its steps, as large a share of them taped."""
    if plan == defense.plan:
        return defense
    short, used = defense.copy(), defense.execution
    if used.taped_steps is not None:
        taped = -(-used.taped_steps * len(plan) // len(defense.plan))
        short.execution = replace(used, taped_steps=min(taped, len(plan)))
    short.plan = plan
    return short
