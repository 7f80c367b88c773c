"""Addressed noise against published vectors, a second implementation, and statistical tests.

The statistical tests have a fixed seed: they pass or fail, they are never flaky. Their thresholds
(p > 1e-3, five standard errors) are far from what a correct generator gives.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise, product

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from hetpure.noise import (
    FORWARD_GROUP,
    BatchNoise,
    Draw,
    Group,
    Noise,
    Purpose,
    Stream,
    attack_draw,
    normals_at,
    normals_on,
    one_kernel,
    philox,
    words_at,
)

MASK = 0xFFFFFFFF
REPORT = Draw(Stream.REPORT, 3)
OTHER = attack_draw(0, 1, 2, 3)


def reference_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 of Salmon et al. in Python integers, which cannot overflow."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def reference_words(
    seed: int, draw: Draw, sample: int, purpose: Purpose, step: int, repeat: int, count: int
) -> list[int]:
    """The words of one entry, from the layout written in the module's docstring."""
    key = [seed, int(draw.stream) * 2**24 + int(purpose) * 2**20 + step]
    low, high = draw.index % 2**32, draw.index // 2**32
    words: list[int] = []
    for block in range(math.ceil(count / 4)):
        words += reference_philox([block, sample, low, repeat * 2**16 + high], key)
    return words[:count]


def entry(
    *,
    seed: int = 0,
    stream: int = 0,
    sample: int = 0,
    draw: int = 0,
    reverse_draw: int | None = None,
) -> BatchNoise:
    """A single entry, whose fields need not be those of a named stream."""
    reverse = draw if reverse_draw is None else reverse_draw
    values = [sample], [(stream, draw, 1)], [(stream, reverse, 1)]
    return BatchNoise(seed, *map(torch.tensor, values))


def noise_of(
    samples: int, seed: int = 5, index: int = 0, stream: Stream = Stream.REPORT
) -> BatchNoise:
    return Noise.of(seed, stream, index).on(torch.arange(samples))


VECTORS = {
    "zeros": ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS.values(), ids=VECTORS)
def test_philox_gives_the_published_vectors(counter: str, key: str, expected: str) -> None:
    c0, c1, c2, c3 = (torch.tensor(int(word, 16)) for word in counter.split())
    k0, k1 = (torch.tensor(int(word, 16)) for word in key.split())
    words = philox((c0, c1, c2, c3), (k0, k1))
    assert [f"{int(word):08x}" for word in words] == expected.split()


@pytest.mark.parametrize(
    ("seed", "draw", "sample", "purpose", "step", "repeat"),
    [
        (0, Draw(Stream.TRAIN), 0, Purpose.FORWARD, 0, 0),
        (MASK, Draw(Stream.PROBE, 2**48 - 1), MASK, Purpose.AUGMENTATION, 2**20 - 1, 2**16 - 1),
        (7, Draw(Stream.REPORT, 2**32), 59_999, Purpose.REVERSE, 999, 20),
        (2**31, attack_draw(255, 0, 65_535, 1), 2**31, Purpose.RESAMPLE, 2**19, 2**15),
    ],
    ids=["smallest", "largest", "typical", "sign-bits"],
)
def test_words_are_those_of_a_second_implementation(
    seed: int, draw: Draw, sample: int, purpose: Purpose, step: int, repeat: int
) -> None:
    """Python integers know no device, no vector unit and no overflow, so agreement with them is
    what makes the integers the same everywhere. 11 words: the last block is cut."""
    noise = Noise(seed, draw, draw).on(torch.tensor([sample]))
    expected = reference_words(seed, draw, sample, purpose, step, repeat, 11)
    assert noise.words(purpose, step, repeat, 11).tolist() == [expected]


def addresses() -> Iterator[tuple[str, BatchNoise, Purpose, int, int]]:
    """The zero address, and every address with one bit set in one field (purposes: each one)."""
    zero = Purpose(0)
    yield "zero", entry(), zero, 0, 0
    for bit in range(32):
        yield f"seed {bit}", entry(seed=1 << bit), zero, 0, 0
        yield f"sample {bit}", entry(sample=1 << bit), zero, 0, 0
    for bit in range(8):
        yield f"stream {bit}", entry(stream=1 << bit), zero, 0, 0
    for bit in range(48):
        yield f"draw {bit}", entry(draw=1 << bit), zero, 0, 0
    for bit in range(20):
        yield f"step {bit}", entry(), zero, 1 << bit, 0
    for bit in range(16):
        yield f"repeat {bit}", entry(), zero, 0, 1 << bit
    for purpose in list(Purpose)[1:]:
        yield f"purpose {purpose.name}", entry(), purpose, 0, 0


def test_no_two_addresses_share_words() -> None:
    """Packing moves bits without combining them, so fields overlap exactly where two addresses of
    one bit agree. 64 element blocks of each address must all differ: a 128-bit accident is
    impossible."""
    owner: dict[tuple[int, ...], str] = {}
    for name, noise, purpose, step, repeat in addresses():
        for block in noise.words(purpose, step, repeat, 4 * 64).reshape(-1, 4).tolist():
            assert tuple(block) not in owner, f"{name} shares words with {owner[tuple(block)]}"
            owner[tuple(block)] = name
    assert len(owner) == 64 * (1 + 32 + 32 + 8 + 48 + 20 + 16 + len(Purpose) - 1)


def test_attack_draws_of_different_queries_are_different() -> None:
    values = (0, 1, 255)
    queries = [
        (attack, restart, iteration, eot)
        for attack in values
        for restart in values
        for iteration in (*values, 256, 65_535)
        for eot in (*values, 256, 65_535)
    ]
    draws = {attack_draw(*query) for query in queries}
    assert len(draws) == len(queries)
    assert {draw.stream for draw in draws} == {Stream.ATTACK}


@pytest.mark.parametrize("split", [[1] * 12, [8, 4], [5, 4, 2, 1]], ids=str)
def test_an_entry_does_not_depend_on_the_batch_around_it(split: list[int]) -> None:
    """APGD shrinks its batch (8, 5, 4, ...) and ranks cut the data set: the same integers."""
    samples = torch.randperm(12, generator=torch.Generator().manual_seed(0)) + 100
    like = torch.empty(12, 3, 5, 5)
    whole = Noise.of(1, Stream.REPORT, 2).on(samples)
    parts = [Noise.of(1, Stream.REPORT, 2).on(part) for part in samples.split(split)]

    words = torch.cat([part.words(Purpose.REVERSE, 9, 1, 75) for part in parts])
    assert torch.equal(words, whole.words(Purpose.REVERSE, 9, 1, 75))
    normals = torch.cat(
        [part.normal(Purpose.REVERSE, like[: len(part)], step=9, repeat=1) for part in parts]
    )
    assert torch.equal(normals, whole.normal(Purpose.REVERSE, like, step=9, repeat=1))

    backwards = Noise.of(1, Stream.REPORT, 2).on(samples.flip(0))
    forward = whole.normal(Purpose.FORWARD, like)
    assert torch.equal(backwards.normal(Purpose.FORWARD, like), forward.flip(0))


def test_normals_are_box_muller_of_the_words() -> None:
    draw, sample = Draw(Stream.DW_BOX, 2**40 + 5), 31
    words = reference_words(9, draw, sample, Purpose.REVERSE, 100, 2, 7 + 1)
    unit = [(word + 0.5) / 2**32 for word in words]
    expected = [
        math.sqrt(-2 * math.log(unit[i - i % 2]))
        * (math.sin if i % 2 else math.cos)(2 * math.pi * unit[i - i % 2 + 1])
        for i in range(7)
    ]
    noise = Noise(9, draw, draw).on(torch.tensor([sample]))
    double = noise.normal(Purpose.REVERSE, torch.empty(1, 7, 1, 1).double(), step=100, repeat=2)
    exact = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(double.flatten(), exact, rtol=0, atol=1e-12)
    single = noise.normal(Purpose.REVERSE, torch.empty(1, 7, 1, 1), step=100, repeat=2)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-6)


def test_no_word_gives_an_infinite_normal_or_a_uniform_outside_the_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A word of 0 is one in 2^32: a logarithm of zero would end a long run, and no test of random
    words would see it."""
    corners = torch.tensor([[0, 0, 0, MASK, MASK, 0, MASK, MASK]])
    monkeypatch.setattr("hetpure.noise.words_at", lambda *_: corners)
    like = torch.empty(1, 8, 1, 1).double()
    normals = noise_of(1).normal(Purpose.FORWARD, like)
    assert normals.isfinite().all()
    assert normals.abs().max() == pytest.approx(math.sqrt(2 * 33 * math.log(2)))  # unit 2^-33
    assert normals.abs().max() < 7
    uniforms = noise_of(1).uniform(Purpose.FORWARD, like)
    assert 0 < uniforms.min() < uniforms.max() < 1
    assert noise_of(1).uniform(Purpose.FORWARD, like.float()).min() > 0
    monkeypatch.setattr("hetpure.noise.words_at", lambda *_: torch.tensor([[0], [MASK]]))
    assert noise_of(2).integers(Purpose.TIMESTEP, 1000).tolist() == [0, 999]


def test_compiled_into_one_kernel_the_numbers_are_the_same() -> None:
    """As accelerators draw them, here with the compiler's code for CPUs. Other steps, repeats and
    purposes do not compile again: a plan has a hundred."""
    seed, samples = MASK, torch.tensor([0, 5, 2**31 + 7])
    noise = BatchNoise.stack(
        [
            Noise.of(seed, Stream.ATTACK, 2**47 + 5),
            Noise(seed, Draw(Stream.REPORT, 7, negated=True), Draw(Stream.DW_BOX, 8)),
        ],
        samples,
    )
    words, normals = (
        torch.compile(function, fullgraph=True, dynamic=True) for function in (words_at, normals_at)
    )
    kernels = counters["stats"]["unique_graphs"]
    for place, (purpose, step, repeat) in enumerate(
        [
            (Purpose.FORWARD, 0, 0),
            (Purpose.RESAMPLE, 1, 1),
            (Purpose.REVERSE, 2, 2),
            (Purpose.REVERSE, 999, 2**16 - 1),
        ]
    ):
        address = noise.address(purpose, step, repeat)
        for count in (784, 75):
            assert torch.equal(words(*address, count), words_at(*address, count))
            ours, exact = normals(*address, count), normals_at(*address, count)
            torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)
        if place == 1:  # zeros and ones are compiled for themselves
            kernels = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == kernels


def test_where_every_operation_is_watched_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch refuses to compile there, and for ever after: the gradient check watches."""
    cuda = torch.device("cuda")
    monkeypatch.setattr("hetpure.noise.one_kernel", lambda device: device)
    assert normals_on(torch.device("cpu")) is normals_at
    assert normals_on(cuda) is cuda
    with TorchDispatchMode():
        assert normals_on(cuda) is normals_at
    assert normals_on(cuda) is cuda


def test_where_torch_compiles_nothing_noise_is_drawn_as_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a machine without a C compiler."""

    def missing(*given: object, **named: object) -> Tensor:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *given, **named: missing)
    one_kernel.cache_clear()
    with pytest.warns(UserWarning, match=r"cannot compile the noise for cpu \(RuntimeError\)"):
        assert one_kernel(torch.device("cpu")) is normals_at
    one_kernel.cache_clear()
    address = noise_of(3).address(Purpose.REVERSE, 5, 2)
    monkeypatch.undo()
    ours = one_kernel(torch.device("cpu"))(*address, 6)
    torch.testing.assert_close(ours, normals_at(*address, 6), rtol=0, atol=1e-12)


def sequences(draw_normal: bool) -> dict[str, Tensor]:
    """Long samples along each direction of the address: all of them must have the right law."""
    count = 40_000

    def tensor(noise: BatchNoise, shape: tuple[int, ...], step: int = 0, repeat: int = 0) -> Tensor:
        make = noise.normal if draw_normal else noise.uniform
        like = torch.empty(shape, dtype=torch.float64)
        return make(Purpose.REVERSE, like, step=step, repeat=repeat).flatten()

    many = torch.arange(count)
    draws = torch.stack([torch.full_like(many, Stream.REPORT), many, torch.ones_like(many)], 1)
    return {
        "elements": tensor(noise_of(1), (1, 1, 200, 200)),
        "samples": tensor(noise_of(count), (count, 1, 1, 1)),
        "draws": tensor(BatchNoise(5, torch.zeros_like(many), draws, draws), (count, 1, 1, 1)),
        "steps": torch.cat([tensor(noise_of(400), (400, 1, 1, 1), step=t) for t in range(100)]),
        "repeats": torch.cat([tensor(noise_of(400), (400, 1, 1, 1), repeat=k) for k in range(100)]),
    }


def test_normals_are_standard_normal_along_every_direction() -> None:
    for name, values in sequences(draw_normal=True).items():
        size = len(values) ** 0.5
        assert abs(values.mean()) < 5 / size, name
        assert abs(values.var() - 1) < 5 * 2**0.5 / size, name
        assert abs((values**3).mean()) < 5 * 15**0.5 / size, name
        assert abs((values**4).mean() - 3) < 5 * 96**0.5 / size, name
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3, name


def test_uniforms_are_uniform_along_every_direction() -> None:
    for name, values in sequences(draw_normal=False).items():
        assert 0 < values.min() < values.max() < 1, name
        assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3, name


def test_different_addresses_are_uncorrelated() -> None:
    """Values, and squares: a Box-Muller pair that shared its angle would show only there."""
    like = torch.empty(1, 1, 200, 200, dtype=torch.float64)
    base = noise_of(1)
    drawn = {
        "base": base.normal(Purpose.REVERSE, like),
        "seed": noise_of(1, seed=6).normal(Purpose.REVERSE, like),
        "draw": noise_of(1, index=1).normal(Purpose.REVERSE, like),
        "high draw": noise_of(1, index=2**32).normal(Purpose.REVERSE, like),
        "sample": noise_of(2).take(torch.tensor([1])).normal(Purpose.REVERSE, like),
        "step": base.normal(Purpose.REVERSE, like, step=1),
        "repeat": base.normal(Purpose.REVERSE, like, repeat=1),
    }
    for stream in set(Stream) - {Stream.REPORT}:
        drawn[stream.name] = noise_of(1, stream=stream).normal(Purpose.REVERSE, like)
    for purpose in set(Purpose) - {Purpose.REVERSE}:
        drawn[purpose.name] = base.normal(purpose, like)
    count = like.numel()
    values = torch.stack([tensor.flatten() for tensor in drawn.values()])
    for kind, table in (("values", values), ("squares", values**2)):
        correlation = torch.corrcoef(table).fill_diagonal_(0).abs()
        first, second = divmod(int(correlation.argmax()), len(drawn))
        worst = f"{kind} of {list(drawn)[first]} and {list(drawn)[second]}"
        assert correlation.max() < 5 / count**0.5, worst


def test_neighbouring_elements_are_uncorrelated() -> None:
    """Within a pair (lag 1), a block of four words, a line of the image; and between samples.
    Values, and squares."""
    images = noise_of(2).normal(Purpose.FORWARD, torch.empty(2, 1, 200, 200).double()).flatten(1)
    for lag, power in product((1, 2, 3, 4, 5, 8, 16, 200), (1, 2)):
        first, second = images**power
        within = torch.corrcoef(torch.stack((first[:-lag], first[lag:])))[0, 1]
        across = torch.corrcoef(torch.stack((first[:-lag], second[lag:])))[0, 1]
        assert max(abs(within), abs(across)) < 5 / len(first) ** 0.5, (lag, power)


def test_integers_are_uniform() -> None:
    values = noise_of(60_000).integers(Purpose.TIMESTEP, 1000)
    counts = torch.bincount(values, minlength=1000)
    assert values.dtype == torch.int64
    assert len(counts) == 1000  # nothing at or above it
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_stack_is_the_concatenation_of_its_noises() -> None:
    """EOT: every noise on every sample, the first noise's entries first; the groups may differ."""
    samples = torch.tensor([7, 3, 11])
    noises = [
        Noise.of(2, Stream.REPORT, 4),
        Noise(2, Draw(Stream.DW_BOX, 2**40), attack_draw(1, 2, 3, 4)),
        Noise.of(2, Stream.PROBE),
    ]
    stacked = BatchNoise.stack(noises, samples)
    like = torch.empty(9, 2, 3, 3)
    assert len(stacked) == 9
    for purpose in Purpose:
        single = [noise.on(samples).normal(purpose, like[:3], step=5, repeat=1) for noise in noises]
        assert torch.equal(stacked.normal(purpose, like, step=5, repeat=1), torch.cat(single))


def test_stack_of_different_seeds_is_refused() -> None:
    with pytest.raises(ValueError, match="one seed"):
        BatchNoise.stack([Noise.of(1, Stream.REPORT), Noise.of(2, Stream.REPORT)], torch.arange(2))


@pytest.mark.parametrize(
    ("keep", "changed"),
    [
        ((), {"forward", "reverse"}),
        (("forward",), {"reverse"}),
        (("reverse",), {"forward"}),
        (("forward", "reverse"), set()),
        (("reverse", "forward", "reverse"), set()),
    ],
    ids=["white-box", "DW-forward", "DW-reverse", "DW-box", "DW-box, repeated"],
)
def test_an_attacker_knows_exactly_the_groups_it_keeps(
    keep: tuple[Group, ...], changed: set[str]
) -> None:
    report = Noise.of(1, Stream.REPORT, 3)
    attacker = report.redraw(OTHER, keep)
    assert attacker.seed == report.seed
    assert attacker.forward == (OTHER if "forward" in changed else REPORT)
    assert attacker.reverse == (OTHER if "reverse" in changed else REPORT)
    assert (attacker == report) == (not changed)  # this equality defines "all noise is known"

    samples, like = torch.arange(2), torch.empty(2, 3, 4, 4)
    for purpose in (Purpose.FORWARD, Purpose.RESAMPLE, Purpose.REVERSE):
        group = "forward" if purpose in FORWARD_GROUP else "reverse"
        same = torch.equal(
            attacker.on(samples).normal(purpose, like), report.on(samples).normal(purpose, like)
        )
        assert same == (group not in changed), purpose
    assert report == Noise.of(1, Stream.REPORT, 3)  # redraw changes nothing in place


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Draw(Stream.REPORT, -1), "draw"),
        (lambda: Draw(Stream.REPORT, 2**48), "draw"),
        (lambda: Noise.of(2**32, Stream.REPORT), "seed"),
        (lambda: attack_draw(256, 0, 0, 0), "attack"),
        (lambda: attack_draw(0, 256, 0, 0), "restart"),
        (lambda: attack_draw(0, 0, 2**16, 0), "iteration"),
        (lambda: attack_draw(0, 0, 0, 2**16), "eot"),
        (lambda: noise_of(1).words(Purpose.FORWARD, 2**20, 0, 1), "step"),
        (lambda: noise_of(1).words(Purpose.FORWARD, 0, 2**16, 1), "repeat"),
        (lambda: noise_of(1).normal(Purpose.FORWARD, torch.empty(1, 2), step=-1), "step"),
    ],
)
def test_a_number_out_of_its_field_is_refused_and_named(
    make: Callable[[], object], says: str
) -> None:
    """A field that spilled into the next one would silently share another address' numbers."""
    with pytest.raises(ValueError, match=rf"^{says} must be in \[0, 2\^\d+\), got -?\d+$"):
        make()


def test_noise_of_one_batch_is_refused_for_another() -> None:
    with pytest.raises(ValueError, match="2 entries asked for a batch of 3"):
        noise_of(2).normal(Purpose.FORWARD, torch.empty(3, 1, 2, 2))


def test_streams_and_purposes_fit_their_fields_without_a_shared_number() -> None:
    """IntEnum makes two names of one value silent aliases."""
    for kind, bits in ((Stream, 8), (Purpose, 4)):
        values = sorted(int(member) for member in kind.__members__.values())
        assert all(low < high for low, high in pairwise(values))
        assert 0 <= values[0] <= values[-1] < 2**bits
