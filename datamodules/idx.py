"""IDX, the file format of MNIST and its kin: a magic number, big-endian sizes, raw values.

The magic number is 00 00 TT RR: TT the type of a value, RR the rank. RR sizes follow, four bytes
each, then the values, last dimension fastest.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetpure.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype("u1"), 0x0C: np.dtype(">i4")}
CODES = {torch.uint8: 0x08, torch.int32: 0x0C}


def read_idx(path: Path) -> Tensor:
    """Values of an IDX file, gzipped or plain, as uint8 or int32 of the file's own shape."""
    data = _read_bytes(path)
    if len(data) < 4 or data[:2] != b"\x00\x00" or data[2] not in TYPES:
        raise InputError(
            f"{path}: not an IDX file: it starts with 0x{data[:4].hex()}, expected 0x0000 then"
            " 08 (uint8) or 0c (int32) and the rank; fetch the file again"
        )
    dtype, rank = TYPES[data[2]], data[3]
    header = 4 + 4 * rank
    if len(data) < header:
        raise InputError(
            f"{path}: {len(data)} bytes, expected a header of {header} bytes for rank {rank};"
            " fetch the file again"
        )
    shape = struct.unpack(f">{rank}I", data[4:header])
    expected, actual = math.prod(shape) * dtype.itemsize, len(data) - header
    if actual != expected:
        problem = "short file" if actual < expected else "trailing bytes"
        raise InputError(
            f"{path}: {problem}: {actual} bytes of values, expected {expected} for shape {shape};"
            " fetch the file again"
        )
    values = np.frombuffer(data, dtype, offset=header) if expected else np.empty(0, dtype)
    # The copy makes the array writable and of the machine's own byte order, as torch needs it.
    return torch.from_numpy(values.astype(dtype.newbyteorder("="), copy=True).reshape(shape))


def write_idx(path: Path, tensor: Tensor) -> None:
    """Writes a uint8 or int32 tensor of any shape as gzipped IDX, the same bytes at every call."""
    assert tensor.dtype in CODES, f"IDX files here hold uint8 or int32, not {tensor.dtype}"
    array = tensor.cpu().contiguous().numpy()
    header = struct.pack(f">2x2B{array.ndim}I", CODES[tensor.dtype], array.ndim, *array.shape)
    values = array.astype(TYPES[CODES[tensor.dtype]]).tobytes()
    # No name and no time in the gzip header: they would change the hash of the same data.
    with path.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(header + values)


def _read_bytes(path: Path) -> bytes:
    """Contents of the file, unpacked where the first bytes (not the name) say gzip."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(GZIP_MAGIC) else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path}: truncated or damaged gzip file ({error}), expected a whole one;"
            " fetch the file again"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
