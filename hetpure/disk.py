"""Files that are there whole or not at all, also where the power fails; and their hashes."""

import hashlib
import os
from pathlib import Path

from torch import Tensor

PIECE = 2**20  # bytes read at once


def file_hash(path: Path, kind: str = "sha256") -> str:
    """Of a file's content, which is never in memory as a whole."""
    digest = hashlib.new(kind)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def tensor_hash(values: Tensor) -> str:
    """SHA-256 of a tensor's content."""
    return hashlib.sha256(values.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def make_folder(path: Path) -> None:
    """With the folders it lies in; those that are new are on the disk then."""
    if not path.exists():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """In place of what was there. Where the disk refuses, nothing is left of it; of a process that
    is killed here, a file whose name begins with a dot and ends with `.part`."""
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(folder: Path) -> None:
    """A folder's list of names, to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
