"""What a run is: two runs with one identity give the same records."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch


def plain(value: Any) -> Any:
    """A config as JSON holds it. A dataclass becomes its class and its fields, so that two ways to
    write one config are one."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        settings = {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init}
        return {"class": f"{kind.__module__}.{kind.__qualname__}", **settings}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float):  # 8/255 is written in many ways
        return float(value)
    if value is None or isinstance(value, bool | int | str):
        return int(value) if type(value) is not bool and isinstance(value, int) else value
    return str(value) if isinstance(value, Path) else repr(value)


def device_kind(device: torch.device) -> str:
    """What arithmetic is done on: another kind rounds otherwise."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def changes(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two identities, or parts of them, differ: the dotted name and both values, None for
    what one of them lacks."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            yield from changes(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now:
        yield name, before, now


def differences(before: Any, now: Any) -> list[str]:
    """The changes, one readable line each."""
    return [f"{name}: {_short(old)}, now {_short(new)}" for name, old, new in changes(before, now)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
