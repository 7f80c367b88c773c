"""Whose code runs: import paths of classes and functions stand in configs and folders of weights,
and those may be another person's."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from hetpure.errors import InputError

OURS = ("hetpure", "datamodules", "lightning_modules")  # packages
_ours_alone = ContextVar("ours_alone", default=False)


@contextmanager
def only_our_code() -> Iterator[None]:
    """Within it nothing that is not hetpure's is imported by a name that was read, no module is
    looked for in the folder where the program was started, and nothing is downloaded."""
    before, path = _ours_alone.set(True), list(sys.path)
    sys.path[:] = [place for place in path if place]
    try:
        yield
    finally:
        sys.path[:] = path
        _ours_alone.reset(before)


def may_run(name: str) -> bool:
    """Whether what an import path leads to may be imported: anything, and within `only_our_code`
    what is in our packages."""
    return not _ours_alone.get() or name.partition(".")[0] in OURS


def foreign(name: str) -> InputError:
    """The error about a name that would run code which is not hetpure's."""
    return InputError(
        f"{name!r} is not hetpure's, and its code would run here: read that code, and give --trust"
        " if you trust it"
    )


def check_ours(name: str) -> None:
    """InputError unless what an import path leads to may be imported."""
    if not may_run(name):
        raise foreign(name)


def check_download(what: str) -> None:
    """InputError within `only_our_code`: a config of another person has nothing downloaded."""
    if _ours_alone.get():
        raise InputError(f"{what} would be downloaded: fetch it yourself, or give --trust")


def import_named(path: str) -> Any:
    """What an import path names ("module.name"), the only place that imports by a name which was
    read. Raises what the import does; InputError where it is foreign and may not run: by its path,
    or because a module of ours has it from elsewhere."""
    check_ours(path)
    module, _, name = path.rpartition(".")
    found = getattr(import_module(module), name)
    check_ours(getattr(found, "__module__", None) or "")
    return found
