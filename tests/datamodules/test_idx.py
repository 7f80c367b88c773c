"""The IDX reader against bytes written by hand, and against every way a file can be cut."""

import gzip
import struct
from pathlib import Path

import pytest
import torch

from datamodules.idx import read_idx, write_idx
from hetpure.errors import InputError

BYTES_2X3 = b"\x00\x00\x08\x02" + struct.pack(">2I", 2, 3) + bytes([0, 1, 2, 127, 128, 255])
INTS_3 = b"\x00\x00\x0c\x01" + struct.pack(">I", 3) + struct.pack(">3i", 1, -2, 60_000)


def save(folder: Path, data: bytes, name: str = "file-idx") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.filterwarnings("error")  # torch warns of a tensor over a read-only buffer
@pytest.mark.parametrize("name", ["file-idx", "file-idx.gz"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_values_type_and_shape_whatever_the_suffix(tmp_path: Path, packed: bool, name: str) -> None:
    for data, expected in (
        (BYTES_2X3, torch.tensor([[0, 1, 2], [127, 128, 255]], dtype=torch.uint8)),
        (INTS_3, torch.tensor([1, -2, 60_000], dtype=torch.int32)),
        (b"\x00\x00\x08\x00\x07", torch.tensor(7, dtype=torch.uint8)),
        (b"\x00\x00\x08\x01" + bytes(4), torch.empty(0, dtype=torch.uint8)),
    ):
        values = read_idx(save(tmp_path, gzip.compress(data) if packed else data, name))
        assert values.dtype == expected.dtype
        assert values.shape == expected.shape
        assert torch.equal(values, expected)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x01" + BYTES_2X3[1:], "not an IDX file"),
        (b"\x00\x00\x0d" + BYTES_2X3[3:], "0x00000d02"),  # 0x0d is float32, which we do not read
        (b"<html>404</html>", "not an IDX file"),
        (BYTES_2X3[:-1], "short file: 5 bytes of values, expected 6"),
        (BYTES_2X3 + b"\x00", "trailing bytes: 7 bytes of values, expected 6"),
        (INTS_3[:-4], "short file: 8 bytes of values, expected 12"),
        (b"\x00\x00\x08\x04" + bytes(8), "a header of 20 bytes for rank 4"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "short file"),  # 2**96 values: no overflow
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_wrong_file_is_named_with_what_was_found(
    tmp_path: Path, data: bytes, says: str, packed: bool
) -> None:
    path = save(tmp_path, gzip.compress(data) if packed else data)
    with pytest.raises(InputError) as caught:
        read_idx(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [BYTES_2X3, gzip.compress(BYTES_2X3)], ids=["plain", "gzip"])
def test_every_cut_is_noticed(tmp_path: Path, data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(InputError, match="file-idx"):
            read_idx(save(tmp_path, data[:length]))


def test_truncated_and_damaged_gzip_say_so(tmp_path: Path) -> None:
    data = gzip.compress(BYTES_2X3)
    damaged = [data[:-3]] + [
        data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data) - 8, len(data))
    ]
    for case in damaged:
        with pytest.raises(InputError, match="truncated or damaged gzip"):
            read_idx(save(tmp_path, case))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.*No such file"):
        read_idx(tmp_path / "absent")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([-1, 0, 2**31 - 1, -(2**31)], dtype=torch.int32),
        torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4),
        torch.arange(24, dtype=torch.uint8).reshape(4, 6).T,  # not contiguous
        torch.empty(0, 28, 28, dtype=torch.uint8),
    ],
    ids=["int32", "uint8", "transposed", "empty"],
)
def test_written_is_read_back_and_bytes_do_not_depend_on_time_or_name(
    tmp_path: Path, tensor: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for name, now in (("a.gz", 1e9), ("b.gz", 1.5e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        write_idx(tmp_path / name, tensor)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert torch.equal(read_idx(tmp_path / "a.gz"), tensor)
    assert gzip.decompress(contents[0])[:4] == bytes(
        [0, 0, 8 if tensor.dtype == torch.uint8 else 12, tensor.ndim]
    )
