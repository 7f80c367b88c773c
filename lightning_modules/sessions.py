"""The starts of one run: what must be the same for its records to belong together."""

from collections.abc import Mapping, Sequence
from typing import Any

from hetpure.errors import InputError

SAME = ("weights", "data", "device", "threads")


def check_session(before: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> None:
    """InputError where a run would go on with other weights, data or arithmetic than it began with;
    another commit is told in the results."""
    if not before:
        return
    for name in SAME:
        first = before[0].get(name)
        if first != now[name]:
            raise InputError(
                f"the run began with other {name} ({_differing(first, now[name])}): give another"
                " --model.run, or what it began with"
            )


def _differing(first: Any, now: Any) -> str:
    if isinstance(first, dict) and isinstance(now, dict):
        names = [key for key in {**first, **now} if first.get(key) != now.get(key)]
        return ", ".join(names)
    return f"{first}, now {now}"
