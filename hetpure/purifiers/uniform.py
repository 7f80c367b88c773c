"""The same noise in every pixel: DiffPure (Nie et al. 2022), ADDT's DP_DDPM and DP_DDIM."""

from dataclasses import dataclass
from itertools import pairwise

from hetpure.errors import check_fraction
from hetpure.purifiers.purifier import GridPurifier, Plan, Step, strength_index
from hetpure.schedule import Schedule


@dataclass(frozen=True)
class UniformPurifier(GridPurifier):
    """Diffuse to one level, denoise. With the samplers DDPM and DDIM it is the discrete DiffPure,
    with VPSDE and VPODE the continuous one.

    Args:
        strength: noise level as a fraction of T: 0.1 is index 100 of 1000.
        through: a lower level that joins the grid, as the t_small of the heterogeneous purifier
            that this one is compared with.
    """

    strength: float = 0.1
    through: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "strength", "through")

    def plan(self, schedule: Schedule) -> Plan:
        through = None if self.through is None else strength_index(schedule, self.through)
        grid = self.grid(schedule, strength_index(schedule, self.strength), include=through)
        return tuple(Step(at=t, via=t, to=s) for t, s in pairwise(grid))
