"""Replay: adversarial images that were made before, by another run or another program."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from hetpure.attacks.attack import (
    Attack,
    Cost,
    Target,
    Threat,
    check_candidates,
    check_radius,
)
from hetpure.defense import Defense
from hetpure.errors import InputError, check_choice
from hetpure.geometry import Norm
from hetpure.noise import Group
from hetpure.numbers import Number
from hetpure.saved_images import saved_images


@dataclass(frozen=True)
class Replay(Attack):
    """Gives back saved images, found by their sample ids: a transfer attack where they were made
    against another defence. They are checked as the candidates of any attack are.

    Args:
        path: the folder of a run, or an .npz file with `images` (N, C, H, W), float32 in [0, 1] or
            uint8, and `samples` (N,), their integer sample ids.
        row: the row of that run that the images were made against; not needed where it has one.
        attack: the attack of that run; not needed where the row has one.
        epsilon: radius of the ball that the images must lie in, pixel units; null where they were
            made otherwise, as by stAdv.
        norm: of the ball.
    """

    path: str
    row: str | None = None
    attack: str | None = None
    epsilon: Number | None = Number("8/255")  # noqa: RUF009 (immutable)
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        check_choice(self, "norm", Norm)
        if self.epsilon is not None:
            check_radius(self, self.epsilon, self.norm)
        if not self._is_run and (self.row is not None or self.attack is not None):
            raise InputError(f"{self.path} is no run: an .npz file has no row and no attack")

    @property
    def _is_run(self) -> bool:
        return Path(self.path).suffix != ".npz"

    @property
    def name(self) -> str:
        return "replay"

    def describe(self) -> str:
        chosen = [name for name in (self.row, self.attack) if name is not None]
        of = f" ({', '.join(chosen)})" if chosen else ""
        return f"{self.threat or 'no ball'}, images of {self.path}{of}"

    @property
    def threat(self) -> Threat | None:
        return None if self.epsilon is None else Threat(self.norm, self.epsilon)

    def weaker_than_full(self) -> list[str]:
        return [f"{self.name}: saved images, not adapted to the defence"]

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        return Cost()

    def __call__(self, target: Target) -> Tensor:
        images, samples = target.images, target.samples.tolist()
        saved, ids = self._read()
        if saved.shape[1:] != images.shape[1:]:
            raise InputError(
                f"{self.path} holds images {tuple(saved.shape[1:])}, the data"
                f" {tuple(images.shape[1:])}: replay them on the data they were made from"
            )
        place = {sample: number for number, sample in enumerate(ids.tolist())}
        if len(place) < len(ids):
            twice = next(k for k in place if (ids == k).sum() > 1)
            raise InputError(f"{self.path} holds sample {twice} twice: leave one image of each")
        missing = [sample for sample in samples if sample not in place]
        if missing:
            raise InputError(
                f"{self.path} has no image of sample {missing[0]}"
                f" ({len(missing)} of {len(images)} are missing): evaluate the samples it was made"
                " for"
            )
        adversarial = saved[[place[sample] for sample in samples]].to(images)[None]
        try:
            check_candidates(adversarial, images, target.samples, self.threat)
        except AssertionError as error:
            raise InputError(
                f"{self.path}: {error}; replay pixels in [0, 1] with the epsilon and the norm that"
                " they were made with"
            ) from None
        return adversarial

    def _read(self) -> tuple[Tensor, Tensor]:
        """All its images (N, C, H, W) float32 and their sample ids (N,)."""
        if not self._is_run:
            return read_npz(Path(self.path))
        return saved_images(Path(self.path), self.row, self.attack)


def read_npz(path: Path) -> tuple[Tensor, Tensor]:
    """The images (N, C, H, W), float32 pixels, and the sample ids (N,) int64 of an .npz file."""
    wanted = "wanted are images (N, C, H, W), float32 or uint8, and samples (N,), integers"
    try:
        with np.load(path, allow_pickle=False) as file:
            images, samples = file["images"], file["samples"]
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: give an .npz file or the folder of a run"
        ) from None
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]}; {wanted}") from None
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}); {wanted}") from None
    for name, array, good in (
        ("images", images, images.ndim == 4 and images.dtype in (np.float32, np.uint8)),
        ("samples", samples, samples.ndim == 1 and np.issubdtype(samples.dtype, np.integer)),
    ):
        if not good or len(array) != len(images):
            raise InputError(f"{path} has {name} {array.shape} {array.dtype}: {wanted}")
    pixels = torch.from_numpy(images)
    if images.dtype == np.uint8:
        pixels = pixels.float() / 255
    return pixels, torch.from_numpy(samples.astype(np.int64))
