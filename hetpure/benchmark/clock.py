"""Time and peak memory of one piece of work."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Clock:
    """Milliseconds of a piece of work: CUDA events, or this process's clock."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def __call__(self, run: Callable[[], object]) -> float:
        if not self.cuda:
            start = time.perf_counter()
            run()
            return 1000 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()  # what was asked for before is no part of it
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))

    def median(self, run: Callable[[], object], repeats: int) -> float:
        """Of as many runs, after one that warms up."""
        run()
        return statistics.median(self(run) for _ in range(repeats))


def peak_bytes(run: Callable[[], object], device: str) -> int | None:
    """Bytes above those in use before, by the accelerator's counter or Linux's high-water mark;
    None where neither counter exists.

    On a CPU call it in a process that has done nothing large before: memory that an allocator
    kept would be used again without being seen.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not CLEAR.exists():
        return None
    CLEAR.write_text("5")  # resets the high-water mark of this process
    before = _kilobytes("VmRSS")
    run()
    return (_kilobytes("VmHWM") - before) * 1024


def _kilobytes(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"{STATUS} has no {field}")
