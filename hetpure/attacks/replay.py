"""Replay: adversarial images that were made before, by another run or another program."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hetpure.attacks.attack import Attack, Cost, Target, Threat, check_ball, check_candidates
from hetpure.defense import Defense
from hetpure.disk import tensor_hash
from hetpure.errors import InputError
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
        check_ball(self, self.epsilon, self.norm)
        if not self._is_run and (self.row is not None or self.attack is not None):
            raise InputError(f"{self.path} is no run: an .npz file has no row and no attack")

    @property
    def _is_run(self) -> bool:
        return Path(self.path).suffix != ".npz"

    @property
    def name(self) -> str:
        return "replay"

    @property
    def threat(self) -> Threat | None:
        return None if self.epsilon is None else Threat(self.norm, self.epsilon)

    def weaker_than_full(self) -> list[str]:
        return [f"{self.name}: saved images, not adapted to the defence"]

    def content(self) -> str:
        images, ids = self._read()
        return tensor_hash(images) + tensor_hash(ids)

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        return Cost()

    def check(self, defense: Defense, samples: Tensor, known: tuple[Group, ...] = ()) -> None:
        self._places(self._read()[1], samples)

    def _read(self) -> tuple[Tensor, Tensor]:
        """The saved images and their ids."""
        if self._is_run:
            return saved_images(Path(self.path), self.row, self.attack)
        return read_npz(Path(self.path))

    def _places(self, ids: Tensor, samples: Tensor) -> list[int]:
        """Where the images of these samples are among the saved ones."""
        position = {sample: number for number, sample in enumerate(ids.tolist())}
        if len(position) < len(ids):
            raise InputError(f"{self.path} holds a sample twice: leave one image of each")
        missing = [sample for sample in samples.tolist() if sample not in position]
        if missing:
            raise InputError(
                f"{self.path} has no image of sample {missing[0]} ({len(missing)} of {len(samples)}"
                " are missing): evaluate the samples it was made for"
            )
        return [position[sample] for sample in samples.tolist()]

    def __call__(self, target: Target) -> Tensor:
        images = target.images
        saved, ids = self._read()
        if saved.shape[1:] != images.shape[1:]:
            raise InputError(
                f"{self.path} holds images {tuple(saved.shape[1:])}, the data"
                f" {tuple(images.shape[1:])}: replay them on the data they were made from"
            )
        adversarial = saved[self._places(ids, target.samples)].to(images)[None]
        try:
            check_candidates(adversarial, images, target.samples, self.threat)
        except AssertionError as error:
            raise InputError(
                f"{self.path}: {error}; replay pixels in [0, 1] with the epsilon and the norm that"
                " they were made with"
            ) from None
        return adversarial


def read_npz(path: Path) -> tuple[Tensor, Tensor]:
    """The images (N, C, H, W), float32 pixels, and the sample ids (N,) int64 of an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images, samples = file["images"], file["samples"]
        if images.ndim != 4 or images.dtype not in (np.float32, np.uint8):
            raise ValueError(f"images are {images.shape} {images.dtype}")
        if samples.shape != images.shape[:1] or samples.dtype.kind not in "iu":
            raise ValueError(f"samples are {samples.shape} {samples.dtype}")
    except Exception as error:  # of whatever kind: a damaged file says anything
        why = "it holds objects, or is no .npz file" if "allow_pickle" in str(error) else error
        raise InputError(
            f"{path} cannot be read ({why}): give an .npz file with images (N, C, H, W), float32"
            " or uint8, and samples (N,), integers; or the folder of a run"
        ) from None
    pixels = torch.from_numpy(images)
    if images.dtype == np.uint8:
        pixels = pixels.float() / 255
    return pixels, torch.from_numpy(samples.astype(np.int64))
