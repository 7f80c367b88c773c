"""The starts of one run: what must be the same for its records to belong together."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from hetpure.errors import InputError
from hetpure.evaluation.records import RunFolder

SAME = ("weights", "data", "device", "threads", "torch")
SEEN_WITHIN = 30.0  # seconds that a network's file system may take
HINTS = {"threads": " (OMP_NUM_THREADS)"}


def check_session(before: Sequence[Mapping[str, Any]], now: Mapping[str, Any], said: str) -> None:
    """InputError, which begins as `said`, where a run would go on with other weights, data or
    arithmetic than it began with; another commit is told in the results."""
    if not before:
        return
    for name in SAME:
        first, own = _of(before[0], name), _of(now, name)
        if first != own:
            raise InputError(
                f"{said} other {name} ({_differing(first, own)}): give another --model.run, or the"
                f" same {name}{HINTS.get(name, '')}"
            )


def is_seen(folder: RunFolder, session: Mapping[str, Any]) -> bool:
    """Whether a start that one process wrote is in this process's folder too."""
    until = time.monotonic() + SEEN_WITHIN
    while time.monotonic() < until:
        with suppress(OSError, InputError):  # half there
            if any(one.get("start") == session["start"] for one in folder.read_sessions()):
                return True
        time.sleep(0.2)
    return False


def _of(session: Mapping[str, Any], name: str) -> Any:
    return session.get("packages", {}).get("torch") if name == "torch" else session.get(name)


def _differing(first: Any, now: Any) -> str:
    if isinstance(first, dict) and isinstance(now, dict):
        names = [key for key in {**first, **now} if first.get(key) != now.get(key)]
        return ", ".join(names)
    return f"{first}, now {now}"
