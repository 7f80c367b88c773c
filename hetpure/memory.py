"""How much memory a gradient takes, how much there is, and what fits."""

import ctypes
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hetpure.errors import InputError
from hetpure.gradients import EXACT, Execution
from hetpure.numbers import counted

SHARE = 0.6  # of the free memory; the rest is for what is not counted
# What an allocator takes beside what it is asked for (measured: 1.06 to 1.18 of it). In float64 a
# CPU's convolutions copy their inputs out for a moment, and the heap keeps the holes (1.25 to 1.9).
ALLOCATOR, ALLOCATOR_FLOAT64 = 1.2, 1.9
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")

Seconds = Callable[[int], tuple[float, float]]


@dataclass(frozen=True)
class Footprint:
    """Bytes that an entry of a batch takes, an (image, draw): activations of a taped step and of
    the classifier, and a state. Beside them `fixed` bytes for all entries together, and the
    `allocator`'s share of the entries'."""

    step: int
    classifier: int
    state: int
    fixed: int = 0
    allocator: float = ALLOCATOR

    def in_float64(self, element: int, weights: int) -> "Footprint":
        """Of a copy of the networks in float64, where a number has `element` bytes here and the
        networks' numbers take `weights`."""
        factor = 8 // element
        return Footprint(
            factor * self.step,
            factor * self.classifier,
            factor * self.state,
            factor * weights,
            ALLOCATOR_FLOAT64,
        )

    def need(self, entries: int, steps: int, taped: int) -> int:
        """Bytes of one gradient of `entries` with the last `taped` of `steps` taped.

        A step that is called again holds its activations too, so one is always counted; one more
        stands for what a step and its way back hold for a moment.
        """
        entry = (max(taped, 1) + 1) * self.step + self.classifier + steps * self.state
        return self.fixed + round(self.allocator * entries * entry)

    def fitting(self, entries: int, steps: int, budget: int) -> int | None:
        """How many steps can be taped; None where not even a recomputed plan fits."""
        needs = [self.need(entries, steps, taped) for taped in range(steps + 1)]
        return bisect_right(needs, budget) - 1 if needs[0] <= budget else None


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the distinct weights and buffers of modules, counters left out."""
    return sum(
        {
            tensor.data_ptr(): tensor.nbytes
            for module in modules
            for tensor in (*module.parameters(), *module.buffers())
            if tensor.is_floating_point()
        }.values()
    )


def saved_bytes(run: Callable[[], object], modules: Iterable[nn.Module]) -> int:
    """Bytes of the distinct tensors that autograd keeps of what `run` computes, weights left out.

    Compiled code is measured as it would run eagerly; CUDA graphs hold memory of their own besides.
    """
    weights = {
        tensor.untyped_storage().data_ptr()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # a storage that was freed could give its address to the next one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with (
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        run()
    return sum(kept.values())


def trim_heap() -> None:
    """Gives the system back what the C library keeps of freed memory, where it can (glibc): what
    float64 leaves is cut into pieces that fit nothing that follows."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def free_bytes(device: torch.device) -> int:
    """Memory that this process could still take on a device."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reusable
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    if not MEMINFO.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    return max(min([free, *_free_in_groups()]), 0)


def _free_in_groups() -> Iterator[int]:
    """What the limits of this process's control groups (Linux, version 2) leave."""
    group_of_process = OWN_GROUP.read_text().strip() if OWN_GROUP.exists() else "0::/"
    path = CGROUP / group_of_process.rpartition("::")[2].lstrip("/")
    for group in (path, *path.parents):
        limit = group / "memory.max"
        if limit.exists() and (most := limit.read_text().strip()) != "max":
            used = int((group / "memory.current").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            yield int(most) - used + int(stat["inactive_file"])


def budget_bytes(device: torch.device) -> int:
    """The memory to plan with where no budget is given."""
    return int(SHARE * free_bytes(device))


def choose(
    wish: Execution, steps: int, entries: int, footprint: Footprint, budget: int, seconds: Seconds
) -> Execution:
    """What `wish` leaves open, so that one gradient of `entries` is as fast as the budget allows.

    All entries at once where they fit taped. Else they are halved until they fit: fewer entries at
    a time leave room for more taped steps but may keep a device less busy, so of these sizes the
    one with the smallest predicted time is taken. `seconds(n)` gives the seconds of one step of n
    entries, forward, and forward with backward; it is called only where there is a choice.
    """
    options: list[tuple[int, int]] = []  # entries at once, taped steps
    if wish.micro_batch is not None:
        wish = replace(wish, micro_batch=min(wish.micro_batch, entries))
    for size in [wish.micro_batch] if wish.micro_batch else _halves(entries):
        fitting = footprint.fitting(size, steps, budget)
        taped = _taped(wish, steps, fitting)
        if taped is not None:
            options.append((size, taped))
            if wish.resolved or taped == steps:
                break  # fewer entries at once would gain nothing
    if not options:
        raise InputError(_too_large(wish, steps, footprint, budget))

    def predicted(option: tuple[int, int]) -> float:
        size, taped = option
        forward, both = seconds(size)
        return (steps * both + (steps - taped) * forward) / size

    size, taped = options[0] if len(options) == 1 else min(options, key=predicted)
    if wish.resolved:
        return replace(wish, micro_batch=size)
    if wish.policy == "auto" and taped == steps:
        return Execution("tape", micro_batch=size)
    return Execution("hybrid", taped, size)


def gigabytes(count: float) -> str:
    """Bytes in a unit for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _halves(entries: int) -> list[int]:
    sizes = [entries]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _taped(wish: Execution, steps: int, fitting: int | None) -> int | None:
    """How many steps would be taped where `fitting` fit; None where the wish cannot be met."""
    if fitting is None or not wish.resolved:
        return fitting
    wanted = steps - wish.recomputed(steps) if wish.policy in EXACT else 0
    return wanted if wanted <= fitting else None


def _too_large(wish: Execution, steps: int, footprint: Footprint, budget: int) -> str:
    entries = wish.micro_batch or 1
    wanted = steps - wish.recomputed(steps) if wish.policy == "tape" or wish.taped_steps else 0
    need = gigabytes(footprint.need(entries, steps, wanted))
    what = f"{counted(entries, 'image')} under the policy {wish.policy}"
    advice = "give a larger memory_budget or free memory"
    if entries > 1:
        advice += ", or lower micro_batch"
    if wanted:
        advice += ", or let the gradient be auto"
    return f"a gradient of {what} needs {need}, the budget is {gigabytes(budget)}: {advice}"
