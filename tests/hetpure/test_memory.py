"""What a gradient takes is measured and not guessed: were it wrong, an evaluation would die of
memory after hours, or crawl where all would fit. What fits is arithmetic, checked as such."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hetpure import memory
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.gradients import APPROXIMATIONS, EXACT, Execution, Policy
from hetpure.memory import (
    Footprint,
    Seconds,
    choose,
    free_bytes,
    gigabytes,
    saved_bytes,
)
from hetpure.noise import noise_for
from hetpure.purifiers import EDMPurifier, HeterogeneousPurifier, Purifier, UniformPurifier
from hetpure.samplers import VPSDE

CPU = torch.device("cpu")
TOTAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
STEPS, ROWS = 10, 8
SIZE = Footprint(step=100, classifier=50, state=1)
IMAGE, OUTPUT, WEIGHT = 2 * 64 * 8, 2 * 4 * 36 * 8, 4 * 9 * 8  # bytes in float64


def device(once: float, each: float) -> Seconds:
    """Where a step of n rows takes once + each n seconds."""
    return lambda rows: (once + each * rows, 3 * (once + each * rows))


steady, busy = device(0, 1), device(1, 0)


def never(rows: int) -> tuple[float, float]:
    raise AssertionError("timed where there was nothing to choose")


def freed(x: Tensor) -> None:
    """What it keeps is forgotten at once."""
    (2 * x).square()


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        pytest.param(lambda conv, x: conv(x).square(), IMAGE + OUTPUT, id="and a square"),
        pytest.param(lambda conv, x: (y := conv(x)) * y, IMAGE + OUTPUT, id="one tensor twice"),
        pytest.param(lambda conv, x: x.flatten(1) ** 2 + (x * x).flatten(1), IMAGE, id="views"),
        pytest.param(lambda conv, x: x[:1] * x[:1], IMAGE, id="a slice holds the whole"),
        pytest.param(lambda conv, x: [freed(x) for _ in range(5)], 5 * IMAGE, id="freed"),
        pytest.param(lambda conv, x: conv.weight * conv.weight + x.sum(), 0, id="weights only"),
    ],
)
def test_saved_bytes_by_hand(run: Callable[[nn.Module, Tensor], object], expected: int) -> None:
    conv = nn.Conv2d(1, 4, 3, bias=False).double()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64).requires_grad_()
    with torch.no_grad():  # it turns recording on by itself
        assert saved_bytes(lambda: run(conv, x), [conv]) == expected
        assert saved_bytes(lambda: conv(x), []) == IMAGE + WEIGHT


def kept_bytes(defense: Defense, images: Tensor, policy: Policy) -> int:
    """Of the distinct storages that autograd keeps of a whole defence, counted here."""
    weights = {t.untyped_storage().data_ptr() for t in (*defense.parameters(), *defense.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    point = images.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = defense(point, noise_for(point), policy=policy)
    assert logits.requires_grad
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)


Make = Callable[[int], Purifier]
GROWING: dict[str, Make] = {
    "uniform": lambda n: UniformPurifier(steps=50 * n, strength=0.1),
    "vp-sde": lambda n: UniformPurifier(steps=50 * n, strength=0.1, sampler=VPSDE()),
    "heterogeneous": lambda n: HeterogeneousPurifier(steps=10 * n),
    "edm": lambda n: EDMPurifier(levels=4 * n, strength=0.3),
}


@pytest.mark.parametrize("batch", [2, 4])
@pytest.mark.parametrize("make", GROWING.values(), ids=GROWING.keys())
def test_footprint_is_what_autograd_keeps(
    make: Make, batch: int, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """A step more on the tape costs what was told, within 3%; the whole stays below the need."""
    short, long = (Defense(classifier, make(n), denoiser) for n in (1, 2))
    size = long.footprint(images)
    for policy, known in (("tape", size.step), ("checkpoint", size.state)):
        kept = [kept_bytes(defense, images[:batch], policy) for defense in (short, long)]
        assert (kept[1] - kept[0]) / (len(long.plan) - len(short.plan)) == pytest.approx(
            batch * known, rel=0.03
        )
        taped = len(long.plan) if policy == "tape" else 0
        need = size.need(batch, len(long.plan), taped)
        assert kept[1] < need < 2 * kept[1] + 3 * batch * size.step
    plain = Defense(classifier)
    assert plain.footprint(images) == Footprint(0, size.classifier, 0)
    assert kept_bytes(plain, images[:batch], "tape") == pytest.approx(batch * size.classifier)


def test_a_copy_in_float64_takes_its_weights_and_more_of_the_heap() -> None:
    """From float32, 1,000 bytes of weights; of two rows, six of ten steps taped."""
    assert SIZE.need(2, 10, 6) == 1.2 * 2 * (7 * 100 + 50 + 10)
    assert SIZE.in_float64(4, 1000).need(2, 10, 6) == 2000 + 1.9 * 2 * (7 * 200 + 100 + 20)
    assert SIZE.in_float64(8, 1000).need(2, 10, 6) == 1000 + 1.9 * 2 * (7 * 100 + 50 + 10)


# What there is.


def test_free_memory_of_this_machine() -> None:
    assert 0 < free_bytes(CPU) < TOTAL
    assert memory.budget_bytes(CPU) < 0.7 * TOTAL


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("7000", 3000, 4500), ("max", 3000, 10240), ("5000", 6000, 0), ("90000", 3000, 10240)],
    ids=["a lower limit", "no limit", "above its limit", "a limit above the machine"],
)
def test_a_control_groups_limit_counts(
    limit: str, used: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are only cached (500 bytes) can be taken from."""
    for name, text in {
        "meminfo": "MemTotal: 99 kB\nMemFree: 3 kB\nMemAvailable:      10 kB\n",
        "memory.max": f"{limit}\n",
        "memory.current": f"{used}\n",
        "memory.stat": "anon 11\ninactive_file 500\nactive_file 70\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_bytes(CPU) == expected
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")  # as on macOS
    assert 0 < free_bytes(CPU) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# What is chosen.

ALL, FOUR, LEAST = (SIZE.need(ROWS, STEPS, taped) for taped in (STEPS, 4, 0))
HALF, ONE = SIZE.need(ROWS // 2, STEPS, STEPS), SIZE.need(1, STEPS, 0)


@pytest.mark.parametrize(
    ("wish", "budget", "seconds", "known"),
    [
        (Execution(), ALL, never, Execution("tape", None, 8)),
        (Execution(), ALL - 1, steady, Execution("tape", None, 4)),
        (Execution(), ALL - 1, busy, Execution("hybrid", 9, 8)),
        (Execution(), HALF, busy, Execution("hybrid", 4, 8)),
        (Execution(), LEAST, busy, Execution("hybrid", 1, 8)),
        (Execution(), LEAST, steady, Execution("tape", None, 1)),
        (Execution(), LEAST - 1, busy, Execution("hybrid", 3, 4)),
        (Execution(), ONE, never, Execution("hybrid", 1, 1)),
        (Execution("tape"), ALL - 1, never, Execution("tape", None, 4)),
        (Execution("checkpoint"), LEAST - 1, never, Execution("checkpoint", None, 4)),
        (Execution("hybrid"), HALF, busy, Execution("hybrid", 4, 8)),
        (Execution("hybrid", 4), FOUR - 1, never, Execution("hybrid", 4, 4)),
        (Execution("hybrid", 99), ALL, never, Execution("hybrid", 99, 8)),
        (Execution(micro_batch=3), LEAST, never, Execution("hybrid", 5, 3)),
        (Execution("tape", None, 99), ALL * 99, never, Execution("tape", None, 8)),
        (Execution("tape", None, 99), ALL, never, Execution("tape", None, 8)),
        *[(Execution(how), LEAST, never, Execution(how, None, 8)) for how in APPROXIMATIONS],
        *[(Execution(how), LEAST - 1, never, Execution(how, None, 4)) for how in APPROXIMATIONS],
    ],
    ids=lambda value: "" if callable(value) else str(value).removeprefix("Execution"),
)
def test_what_is_chosen(wish: Execution, budget: int, seconds: Seconds, known: Execution) -> None:
    assert known.resolved
    assert choose(wish, STEPS, ROWS, SIZE, budget, seconds) == known


def test_the_choice_fits_and_is_the_fastest_that_does() -> None:
    """Of halves of the rows, where a call takes a + b rows seconds."""
    pick, refused = random.Random(1), 0
    policies: tuple[Policy, ...] = ("auto", *EXACT, *APPROXIMATIONS)
    for _ in range(2000):
        size = Footprint(pick.randint(1, 99), pick.randrange(50), pick.randrange(5))
        steps, rows = pick.randint(1, 12), pick.randint(1, 9)
        budget = pick.randrange(size.need(rows, steps, steps) + 99)
        wish = Execution(pick.choice(policies), micro_batch=pick.choice([None, None, 2]))
        seconds = device(pick.random(), pick.random())
        wanted = steps if wish.policy == "tape" else 0
        try:
            found = choose(wish, steps, rows, size, budget, seconds)
        except InputError:
            assert size.need(wish.micro_batch or 1, steps, wanted) > budget
            refused += 1
            continue
        assert found.micro_batch is not None and found.micro_batch <= (wish.micro_batch or rows)
        assert wish.policy in ("auto", found.policy)
        taped = steps - found.recomputed(steps) if found.policy in EXACT else 0
        assert size.need(found.micro_batch, steps, taped) <= budget
        if wish.policy == "auto" and wish.micro_batch is None:
            halves = {-(-rows // 2**k) for k in range(5)}
            fits = [(n, m) for n in halves if (m := size.fitting(n, steps, budget)) is not None]
            costs = {(n, m): (4 * steps - m) * seconds(n)[0] / n for n, m in fits}
            assert costs[found.micro_batch, taped] == pytest.approx(min(costs.values()))
    assert 100 < refused < 2000


@pytest.mark.parametrize(
    ("wish", "need", "advice"),
    [
        (Execution(), ONE, "1 image under"),
        (Execution("tape"), SIZE.need(1, STEPS, STEPS), "be auto"),
        (Execution("hybrid", 4), SIZE.need(1, STEPS, 4), "be auto"),
        (Execution("bpda"), ONE, "1 image under"),
        (Execution(micro_batch=3), 3 * ONE, "lower micro_batch"),
    ],
    ids=["auto", "tape", "hybrid", "bpda", "micro_batch"],
)
def test_too_small_a_budget_is_one_line(wish: Execution, need: int, advice: str) -> None:
    size = Footprint(100_000_000, 50_000_000, 1_000_000)
    need, less = need * 10**6, (need - 1) * 10**6
    with pytest.raises(InputError) as error:
        choose(wish, STEPS, ROWS, size, less, never)
    line = str(error.value)
    assert "\n" not in line and "give a larger memory_budget" in line and advice in line
    assert f"needs {gigabytes(need)}, the budget is {gigabytes(less)}" in line
    choose(wish, STEPS, ROWS, size, need, never)
