"""Where results come from: commit, versions, device; and what was measured of the machine."""

import functools
import platform
import resource
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hetpure.evaluation.identity import device_kind

COMPUTING = (
    "hetpure",
    "diffusers",
    "pyautoattack",
)  # beside torch: another version may round otherwise
PACKAGES = ("lightning", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Of what computes records. torch's own string names its build (+cpu, +cu130), which its
    metadata may not."""
    return {"torch": torch.__version__} | {name: version(name) for name in COMPUTING}


def provenance(device: torch.device) -> dict[str, Any]:
    """Commit, versions and device of this run."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions() | {name: version(name) for name in PACKAGES},
        "device": device_kind(device),
        "threads": torch.get_num_threads(),
    }


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes: the accelerator's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@functools.cache
def commit() -> str | None:
    """The checkout's commit when it was first asked for, marked where files differ from it; None
    outside a checkout."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
