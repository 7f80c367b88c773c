"""Peak memory of one piece of work: the accelerator's counter, or Linux's high-water mark."""

from collections.abc import Callable
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(run: Callable[[], None], device: str) -> int | None:
    """Bytes above those in use before. None where neither counter exists.

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
