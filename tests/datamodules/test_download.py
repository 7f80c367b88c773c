"""Downloads from a server of our own: whole, cut and gone on with, wrong, and refused."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from datamodules import cifar, svhn
from datamodules.cifar import CIFAR10, Version
from datamodules.download import Remote, fetch, unpack
from hetpure.errors import InputError

CONTENT = bytes(range(256)) * 4_000  # 1,024,000 bytes


class Server(ThreadingHTTPServer):
    """Serves `content` under any name; its answers break off after `cut` bytes each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges = CONTENT, True
        self.cut: int | None = None
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def remote(self, name: str = "set.bin") -> Remote:
        digest = hashlib.sha256(CONTENT).hexdigest()
        return Remote(self.url + name, len(CONTENT), digest)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        whole, begun = self.server.content, 0
        if asked and self.server.ranges:
            begun = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begun}-{len(whole) - 1}/{len(whole)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(whole) - begun))
        self.end_headers()
        cut = self.server.cut
        self.wfile.write(whole[begun:] if cut is None else whole[begun : begun + cut])

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def test_a_whole_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    for _ in range(2):
        assert fetch(server.remote(), folder).read_bytes() == CONTENT
    assert server.asked == [None]
    assert [path.name for path in folder.iterdir()] == ["set.bin"]


def test_a_cut_connection_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.cut = 300_000
    assert fetch(server.remote(), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, *(f"bytes={k}00000-" for k in (3, 6, 9))]


def test_a_download_goes_on_after_the_program_was_stopped(server: Server, tmp_path: Path) -> None:
    server.cut = 0
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:123_456])
    with pytest.raises(InputError, match=r"go on after the 123,456 bytes that arrived"):
        fetch(server.remote(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["set.bin.part"]
    server.cut = None
    assert fetch(server.remote(), tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=123456-"


def test_a_server_without_ranges_is_asked_for_all(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "set.bin.part").write_bytes(b"x" * 1000)
    assert fetch(server.remote(), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"x" * len(CONTENT), CONTENT + b"x"], ids=["wrong", "longer"])
def test_a_wrong_hash_is_refused_and_not_left(
    content: bytes, server: Server, tmp_path: Path
) -> None:
    server.content = content
    with pytest.raises(InputError, match=r"is not set.bin \(1,024,000 bytes, SHA-256") as caught:
        fetch(server.remote(), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    server.content = CONTENT
    assert fetch(server.remote(), tmp_path).read_bytes() == CONTENT


def test_offline_is_one_line_with_all_that_is_needed(server: Server, tmp_path: Path) -> None:
    remote = server.remote()
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError) as caught:
        fetch(remote, tmp_path)
    said = str(caught.value)
    assert "\n" not in said
    for part in (remote.url, "set.bin", "1,024,000 bytes", remote.sha256, str(tmp_path)):
        assert part in said


def archive(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return buffer.getvalue()


def test_only_expected_regular_files_are_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(archive({"f/a": b"1", "f/b": b"2", "../out": b"3", "/absolute": b"4"}))
    unpack(path, ["f/a", "f/b"], tmp_path / "f")
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == ["a", "b"]
    assert not (tmp_path.parent / "out").exists() and not Path("/absolute").exists()
    path.write_bytes(archive({"f/a": b"1"}, links={"f/b": "/etc/passwd"}))
    with pytest.raises(InputError, match="x.tar.gz has no file f/b"):
        unpack(path, ["f/a", "f/b"], tmp_path / "g")
    whole = archive({"f/a": bytes(range(256)) * 99, "f/b": b"2"})
    for cut in (0, 5, len(whole) // 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="x.tar.gz cannot be unpacked"):
            unpack(path, ["f/a", "f/b"], tmp_path / "h")


@pytest.fixture
def published(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """CIFAR-10 from that server, with files of one image."""
    names = CIFAR10.binary.names
    server.content = archive({f"{CIFAR10.binary.folder}/{name}": bytes(3073) for name in names})
    version = Version(
        CIFAR10.binary.archive,
        len(server.content),
        hashlib.sha256(server.content).hexdigest(),
        CIFAR10.binary.folder,
        CIFAR10.binary.files,
        CIFAR10.binary.agreed,
    )
    monkeypatch.setattr(CIFAR10, "binary", version)
    monkeypatch.setattr(CIFAR10, "counts", {"train": 5, "test": 1})
    monkeypatch.setattr(cifar, "URL", server.url)
    return server


def test_cifar_is_downloaded_when_asked_and_only_then(published: Server, tmp_path: Path) -> None:
    place = str(tmp_path / "data")
    without = CIFAR10(place)
    without.prepare_data()
    with pytest.raises(InputError, match="set download to true"):
        without.setup("test")
    assert not published.asked and not Path(place).exists()
    for _ in range(2):
        data = CIFAR10(place, download=True)
        data.prepare_data()
        data.setup("test")
    assert len(published.asked) == 1
    (batch,) = data.test_dataloader()
    assert batch["image"].shape == (1, 3, 32, 32)


def test_an_archive_that_is_there_is_unpacked(published: Server, tmp_path: Path) -> None:
    (tmp_path / CIFAR10.binary.archive).write_bytes(published.content)
    data = CIFAR10(str(tmp_path), download=True)
    data.prepare_data()
    data.setup("test")
    assert not published.asked


def test_svhn_is_downloaded_by_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svhn, "URL", server.url)
    digest = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setattr(svhn, "FILES", dict.fromkeys(svhn.FILES, (len(CONTENT), digest)))
    (tmp_path / "train_32x32.mat").touch()
    for download, extra, there in ((False, True, 0), (True, False, 1), (True, True, 2)):
        svhn.SVHN(str(tmp_path), download=download, extra=extra).prepare_data()
        assert len(server.asked) == there
    assert (tmp_path / "extra_32x32.mat").read_bytes() == CONTENT
