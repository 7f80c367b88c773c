"""Noise as a pure function of its address: Philox4x32-10 (Salmon et al., SC 2011) and Box-Muller.

No generator and no state: every random tensor is computed from
`(seed, stream, sample id, draw, purpose, step, repeat)`. The address is packed without loss, so two
different addresses never share a random number:

    key     = (seed: 32 bits,  stream: 8 | purpose: 4 | step: 20 bits)
    counter = (element block: 32,  sample id: 32,  draw low: 32,  repeat: 16 | draw high: 16 bits)

Everything is int64 arithmetic on tensors: the integers are the same on every device and for every
way of cutting a data set into batches.
"""

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from hetpure.errors import FieldError, InputError

Group = Literal["forward", "reverse"]
Words = tuple[Tensor, Tensor, Tensor, Tensor]
Address = tuple[int, Tensor, Tensor, int, int]  # seed, sample ids, draws, place, repeat


class Stream(IntEnum):
    """Who draws. No two of these ever see the same numbers."""

    TRAIN = 0
    ATTACK = 1
    SELECTION = 2
    REPORT = 3
    DW_BOX = 4
    PROBE = 5
    DATA = 6  # images that are painted


class Purpose(IntEnum):
    """What a draw is used for inside one purification, attack or training update."""

    FORWARD = 0  # initial and known noise: at one diffusion index they are one draw
    RESAMPLE = 1  # jumps back up in the heterogeneous purifier
    REVERSE = 2  # the sampler's own noise
    START = 3  # random start of an attack
    TIMESTEP = 4
    TRAINING = 5
    PERTURBATION = 6  # ADDT's initial perturbation
    RANK = 7  # the Gaussian multiset of RBGM
    TIES = 8  # RBGM's order among equal values
    AUGMENTATION = 9
    MASK = 10  # control masks: where the pixels go instead
    PAINTING = 11  # images that are painted


FORWARD_GROUP = (Purpose.FORWARD, Purpose.RESAMPLE)

# What an address has room for; configs are held to it when they are read.
SEEDS = 2**32
MOST_DRAWS = 2**47  # of a protocol: the null attack's come after as many others
MOST_RUNS = 2**8  # restarts of an attack
MOST_STEPS = 2**16 - 2  # iterations of an attack, its start and its choice of targets beside them
MOST_EOT_SAMPLES = MOST_REPEATS = 2**16

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Philox4x32-10: four 32-bit counters and two 32-bit keys to four 32-bit words.

    Every argument is an int64 tensor with values in [0, 2^32); shapes broadcast. A 32x32-bit
    product wraps around in int64, but its two halves are still exact once masked.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def words_at(
    seed: int, samples: Tensor, draws: Tensor, place: int, repeat: int, count: int
) -> Tensor:
    """(N, count) int64 random words in [0, 2^32) for the entries of a `BatchNoise`; the place is
    purpose and step, packed as in the key."""
    stream, draw = draws[:, :1], draws[:, 1:2]
    key = (torch.full_like(stream, seed), stream << 24 | place)
    block = torch.arange(-(-count // 4), device=samples.device)[None, :]
    counter = (block, samples[:, None], draw & _MASK, repeat << 16 | draw >> 32)
    return torch.stack(philox(counter, key), dim=-1).flatten(1)[:, :count]


def normals_at(
    seed: int, samples: Tensor, draws: Tensor, place: int, repeat: int, count: int
) -> Tensor:
    """(N, count) float64 standard normal numbers at an address, by Box-Muller: see `words_at`."""
    words = words_at(seed, samples, draws, place, repeat, count + count % 2)
    radius = (-2 * _to_unit(words[:, 0::2]).log()).sqrt()
    angle = 2 * math.pi * _to_unit(words[:, 1::2])
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return (pairs * draws[:, 2:, None]).flatten(1)[:, :count]


@cache
def one_kernel(device: torch.device) -> Callable[..., Tensor]:
    """`normals_at`, compiled. Written as it is, it is some 180 small kernels, each of which an
    accelerator waits for. Numbers are arguments of the kernel: it is compiled once, not at each
    step. What torch will not compile any more, as beyond its limit of variants, runs as written.
    So does all noise of a device for which torch compiles nothing, with a warning."""
    kernel = torch.compile(normals_at, dynamic=True)
    samples, draws = torch.zeros(2, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)
    try:  # numbers from 2 on: for zeros and ones torch compiles code of their own
        kernel(2, samples.to(device), draws.to(device), 2, 2, 6)
    except Exception as error:  # no C compiler, an old device: whatever torch and Triton raise
        name = type(error).__name__
        warnings.warn(
            f"torch cannot compile the noise for {device} ({name}): it is drawn by many small"
            " kernels, which is slower",
            stacklevel=2,
        )
        return normals_at
    return kernel


def normals_on(device: torch.device) -> Callable[..., Tensor]:
    """`normals_at`, as it is fast on a device. Where every operation is watched, as by the gradient
    check, torch compiles nothing, nor ever after what it was asked for there: it is not asked."""
    compiles = device.type == "cuda" and _get_current_dispatch_mode() is None
    return one_kernel(device) if compiles else normals_at


@dataclass(frozen=True)
class Draw:
    """One draw of a stream; `index` counts draws and fits 48 bits. `negated` turns the signs of its
    normal numbers around: the antithetic partner of the draw."""

    stream: Stream
    index: int = 0
    negated: bool = False

    def __post_init__(self) -> None:
        _check("draw", self.index, 48)


def attack_draw(attack: int, restart: int, iteration: int, eot: int) -> Draw:
    """The draw of one EOT sample of one iteration: no two iterations share numbers."""
    for name, value, bits in (
        ("attack", attack, 8),
        ("restart", restart, 8),
        ("iteration", iteration, 16),
        ("eot", eot, 16),
    ):
        _check(name, value, bits)
    return Draw(Stream.ATTACK, attack << 40 | restart << 32 | iteration << 16 | eot)


@dataclass(frozen=True)
class Noise:
    """Which draws a purification uses, for its forward group (initial, known and resampling noise)
    and its reverse group (the sampler's own noise).

    An attacker who knows a group's noise shares that group's draw: see `redraw`.
    """

    seed: int
    forward: Draw
    reverse: Draw

    def __post_init__(self) -> None:
        _check("seed", self.seed, 32)

    @classmethod
    def of(cls, seed: int, stream: Stream, index: int = 0) -> "Noise":
        """Both groups on one draw."""
        return cls(seed, Draw(stream, index), Draw(stream, index))

    def redraw(self, draw: Draw, keep: Collection[Group] = ()) -> "Noise":
        """The same noise with `draw` in every group that is not kept. `keep` is what an attacker
        knows of the noise that the defence runs with: nothing (white-box), or some of it (DW-box).
        """
        changed: dict[str, Draw] = {g: draw for g in ("forward", "reverse") if g not in keep}
        return replace(self, **changed)  # type: ignore[arg-type]

    def on(self, samples: Tensor) -> "BatchNoise":
        """This noise for the images with these sample ids, (B,) int64."""
        return BatchNoise.stack([self], samples)


class Randomness(Protocol):
    """What a purifier asks for its noise: numbers by purpose, step and repeat, an entry of the
    batch each. `BatchNoise` is one; purifiers of a defence get the one of `unsigned`."""

    def __len__(self) -> int: ...

    def uniform(
        self, purpose: Purpose, like: Tensor, *, step: int = 0, repeat: int = 0
    ) -> Tensor: ...

    def normal(
        self, purpose: Purpose, like: Tensor, *, step: int = 0, repeat: int = 0
    ) -> Tensor: ...

    def integers(
        self, purpose: Purpose, high: int, *, step: int = 0, repeat: int = 0
    ) -> Tensor: ...


@dataclass(frozen=True)
class _Unsigned:
    count: int
    uniform: Callable[..., Tensor]
    normal: Callable[..., Tensor]
    integers: Callable[..., Tensor]

    def __len__(self) -> int:
        return self.count


def unsigned(noise: "BatchNoise") -> Randomness:
    """The same numbers without their address: no attribute tells stream, draw or sample ids. A
    purifier must not know who asks, nor whose image it is. It is no lock: code that digs in
    closures finds them, and `hetpure.evaluation.sameness` looks for what it then does."""

    def without_owner(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *asked, **place: method(*asked, **place)

    methods: list[Callable[..., Tensor]] = [noise.uniform, noise.normal, noise.integers]
    return _Unsigned(len(noise), *map(without_owner, methods))


def noise_for(images: Tensor, seed: int = 0) -> "BatchNoise":
    """Noise for images (B, ...) that belong to no data set: samples 0 to B - 1 of a seed."""
    return Noise.of(seed, Stream.REPORT).on(torch.arange(len(images), device=images.device))


@dataclass(frozen=True)
class BatchNoise:
    """Noise for a batch: each entry, an (image, draw), has a sample id and a draw in each group.

    Sample ids are (N,) int64. A group's draws are (N, 3) int64: stream, index, and the sign of the
    normal numbers.
    """

    seed: int
    samples: Tensor
    forward: Tensor
    reverse: Tensor

    @classmethod
    def stack(cls, noises: Sequence[Noise], samples: Tensor) -> "BatchNoise":
        """Every noise on every sample, noise-major: entries 0..B-1 use the first noise."""
        if len({noise.seed for noise in noises}) != 1:
            raise ValueError("stacked noises must share one seed")

        def repeated(draws: list[Draw]) -> Tensor:
            numbers = [(draw.stream, draw.index, -1 if draw.negated else 1) for draw in draws]
            return torch.tensor(numbers, device=samples.device).repeat_interleave(len(samples), 0)

        return cls(
            noises[0].seed,
            samples.repeat(len(noises)),
            repeated([noise.forward for noise in noises]),
            repeated([noise.reverse for noise in noises]),
        )

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, index: Tensor) -> "BatchNoise":
        """The noise of some entries, by their positions (R,), int64."""
        return BatchNoise(self.seed, self.samples[index], self.forward[index], self.reverse[index])

    def _draws(self, purpose: Purpose) -> Tensor:
        return self.forward if purpose in FORWARD_GROUP else self.reverse

    def words(self, purpose: Purpose, step: int, repeat: int, count: int) -> Tensor:
        """(N, count) int64 random words in [0, 2^32)."""
        return words_at(*self.address(purpose, step, repeat), count)

    def address(self, purpose: Purpose, step: int, repeat: int) -> Address:
        """Of all entries, as `words_at` takes it; InputError where a number is out of its field."""
        _check("step", step, 20)
        _check("repeat", repeat, 16)
        return self.seed, self.samples, self._draws(purpose), int(purpose) << 20 | step, repeat

    def uniform(self, purpose: Purpose, like: Tensor, *, step: int = 0, repeat: int = 0) -> Tensor:
        """Uniform on the open interval (0, 1), with the shape (N, ...) and dtype of `like`.

        Computed in float64; float32 keeps the interval open at 0 and may round up to 1.
        """
        count = math.prod(like.shape[1:])
        words = self.words(purpose, step, repeat, count)
        return _to_unit(words).reshape(like.shape).to(like.dtype)

    def normal(self, purpose: Purpose, like: Tensor, *, step: int = 0, repeat: int = 0) -> Tensor:
        """Standard normal with the shape (N, ...) and dtype of `like`, by Box-Muller in float64."""
        if len(like) != len(self):
            raise ValueError(f"noise for {len(self)} entries asked for a batch of {len(like)}")
        place = self.address(purpose, step, repeat)
        with torch.no_grad():  # the kernel's variants for other states would be the same numbers
            values = normals_on(self.samples.device)(*place, math.prod(like.shape[1:]))
        return values.reshape(like.shape).to(like.dtype)

    def integers(self, purpose: Purpose, high: int, *, step: int = 0, repeat: int = 0) -> Tensor:
        """(N,) int64 in [0, high); the bias of the multiply-shift map is below high / 2^32."""
        return self.words(purpose, step, repeat, 1)[:, 0] * high >> 32


def check_seed(owner: object, field: str = "seed") -> None:
    """FieldError unless this field of the owner is the seed of an address."""
    seed = getattr(owner, field)
    if not 0 <= seed < SEEDS:
        raise FieldError(owner, field, f"must be in 0 to {SEEDS - 1}, got {seed}")


def _to_unit(words: Tensor) -> Tensor:
    return (words.double() + 0.5) * 2.0**-32


def _check(name: str, value: int, bits: int) -> None:
    if not 0 <= value < 1 << bits:
        raise InputError(f"{name} must be in [0, 2^{bits}), got {value}")
