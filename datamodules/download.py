"""Downloads of published files: verified by hash, and resumed where they broke off."""

import shutil
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pooch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from hetpure.errors import InputError
from hetpure.trust import check_download

PIECE = 2**18  # bytes
TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True)
class Remote:
    """A published file: where it is, its size in bytes and its SHA-256."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.name} ({self.size:,} bytes, SHA-256 {self.sha256})"


def fetch(remote: Remote, folder: Path) -> Path:
    """The file in that folder, downloaded unless it is there with the published hash.

    What arrived of a download that broke off stays beside it as `.part`, and the next one goes on
    from there. A file with another hash is deleted. InputError where it cannot be had.
    """
    part = folder / f"{remote.name}.part"

    def download(url: str, output_file: str, _: Any) -> None:
        check_download(remote.name)
        _complete(url, part, remote)
        part.replace(output_file)  # pooch compares the hash, then gives it its name

    try:
        path = pooch.retrieve(
            remote.url, f"sha256:{remote.sha256}", remote.name, folder, downloader=download
        )
    except InputError:
        raise
    except ValueError:
        raise InputError(
            f"what {remote.url} gives is not {remote}: it was deleted; start again, or put the"
            f" published file into {folder}"
        ) from None
    return Path(path)


def _complete(url: str, part: Path, remote: Remote) -> None:
    """Adds to `part` what it lacks. As long as something arrives, a broken connection is opened
    again."""
    columns = (TextColumn(remote.name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(remote.name, total=remote.size)
        while (begun := _size(part)) < remote.size:
            why = "the connection was closed"
            try:
                _append(url, part, lambda arrived: progress.update(task, completed=arrived))
            except (OSError, HTTPException) as error:
                why = str(error) or type(error).__name__
            if _size(part) <= begun:
                raise InputError(
                    f"{url} cannot be downloaded ({why}): start again to go on after the"
                    f" {_size(part):,} bytes that arrived, or put {remote} into {part.parent}"
                )


def _append(url: str, part: Path, tell: Callable[[int], None]) -> None:
    begun = _size(part)
    request = Request(url, headers={"Range": f"bytes={begun}-"} if begun else {})
    with urlopen(request, timeout=TIMEOUT) as answer:
        # A server that knows no ranges sends all from the beginning.
        goes_on = answer.status == HTTPStatus.PARTIAL_CONTENT
        with part.open("ab" if goes_on else "wb") as file:
            while piece := answer.read(PIECE):
                file.write(piece)
                tell(file.tell())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def unpack(archive: Path, members: Sequence[str], folder: Path) -> None:
    """Copies the regular files `members` of a tar archive into `folder`, each whole or not at all;
    nothing else of the archive is written."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = set(members)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name in wanted and member.isfile():
                    target = folder / Path(member.name).name
                    part = target.with_name(f"{target.name}.part")
                    with part.open("wb") as file:
                        shutil.copyfileobj(tar.extractfile(member), file)  # type: ignore[arg-type]
                    part.replace(target)
                    wanted.remove(member.name)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"{archive} cannot be unpacked ({error}): fetch it again") from None
    if wanted:
        raise InputError(f"{archive} has no file {min(wanted)}: fetch it again")
