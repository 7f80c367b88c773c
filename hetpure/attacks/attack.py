"""What an attack is."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from hetpure.defense import Defense
from hetpure.noise import Noise


class Attack(ABC):
    """Holds hyper-parameters only; nothing is remembered between calls."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name in tables and records."""

    @abstractmethod
    def describe(self) -> str:
        """Norm, radius and budget in a few words."""

    @abstractmethod
    def weaker_than_full(self) -> list[str]:
        """What of the budget is below the published full attack."""

    @property
    @abstractmethod
    def candidates(self) -> int:
        """Adversarial candidates an image."""

    @abstractmethod
    def purifications(self, defense: Defense) -> int:
        """Purifications that are differentiated for one image."""

    @abstractmethod
    def draws(self, defense: Defense) -> int:
        """Noise draws of one image that are differentiated at once; a deterministic defence needs
        one."""

    def network_calls(self, defense: Defense) -> int:
        """Forward network calls for one image, recomputed ones too."""
        return self.purifications(defense) * defense.gradient_calls()[0]

    @abstractmethod
    def __call__(
        self,
        defense: Defense,
        images: Tensor,
        labels: Tensor,
        samples: Tensor,
        noise: Noise,
        *,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> Tensor:
        """(N, B, C, H, W) candidates inside the ball and [0, 1], N per image, for images
        (B, C, H, W) in pixel [0, 1], labels (B,) and sample ids (B,). Draws of the attack stream
        replace those of `noise`; `progress` is told how many rows were
        differentiated."""
