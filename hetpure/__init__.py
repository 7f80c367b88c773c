"""Diffusion-based adversarial purification: mathematics, attacks and counting, without Lightning.

What a script needs is here; it is imported when first used, so that `import hetpure` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hetpure.images import read_image, write_image
    from hetpure.noise import noise_for
    from hetpure.presets import load_defense

__all__ = ["load_defense", "noise_for", "read_image", "write_image"]

_HOMES = {
    "load_defense": "hetpure.presets",
    "noise_for": "hetpure.noise",
    "read_image": "hetpure.images",
    "write_image": "hetpure.images",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hetpure' has no attribute {name!r}")
