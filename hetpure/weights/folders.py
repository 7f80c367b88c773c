"""Where weights are: the names of the packaged ones, folders of the user's, and their hashes."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from hetpure.errors import InputError
from hetpure.weights.hub import HUB, fetch
from hetpure.weights.published import FILES

# Of safetensors, and torch's names; whole numbers are counters of batches.
NUMBERS = {
    *("F64", "F32", "F16", "BF16", "I64", "BOOL"),
    *(f"torch.{kind}" for kind in ("float64", "float32", "float16", "bfloat16", "int64", "bool")),
}
ASSETS = Path(__file__).parent.parent / "assets"
_PICKLE_STARTS = (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
CONVERT = "`hetpure convert {} FOLDER` makes a folder of published files"
SOURCE = "source.json"  # what a folder was converted from, or trained on
_PINNED = re.compile(r"(.+)@([0-9a-fA-F]{8,64})")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.t7")


def packaged() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.name for path in ASSETS.iterdir() if path.is_dir())


def resolve(name: str | Path) -> Path:
    """The folder of a packaged name, which wins, a path, `PATH@HASH` or `hf://owner/name`.

    The hash is the beginning of the SHA-256 or MD5 of the file that the folder was converted from.
    InputError where it was another one.
    """
    if str(name).startswith(HUB):
        return fetch(str(name))
    if str(name) in packaged():
        return ASSETS / str(name)
    path, digest = unpinned(name)
    folder = Path(path)
    if folder.is_file():
        raise InputError(f"{folder} is a file, no folder: {CONVERT.format(folder)}")
    if not folder.is_dir():
        raise InputError(f"no weights at {folder}: {_advice(folder)}")
    if digest is not None:
        check_source(folder, digest)
    return folder


def resolve_all(names: Mapping[str, str]) -> dict[str, Path]:
    """Folders by what they are of. InputError that names every one which is not there."""
    folders, problems = {}, []
    for what, name in names.items():
        try:
            folders[what] = resolve(name)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("; ".join(dict.fromkeys(problems)))
    return folders


def unpinned(name: str | Path) -> tuple[str, str | None]:
    """A path, and the hash that it is given with. A folder of the whole name is that folder."""
    match = None if Path(name).exists() else _PINNED.fullmatch(str(name))
    return (match[1], match[2].lower()) if match else (str(name), None)


def check_source(folder: Path, digest: str) -> None:
    """InputError unless the folder was converted from a file whose hash begins so."""
    hashes = source_hashes(folder)
    if any(known.startswith(digest) for known in hashes.values()):
        return
    if not hashes:
        before = "does not say what it was converted from"
    elif len(hashes) == 1:
        before = "was converted by an earlier version, which kept no MD5, or from another file"
    else:
        before = f"was converted from another file (SHA-256 {hashes['sha256']})"
    raise InputError(
        f"{folder} {before}, wanted is {digest}: convert that file, or leave @{digest} out of the"
        " path to take this folder"
    )


def source_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 and MD5 of the file that a folder was converted from, as far as the folder says."""
    made_of = read_json(folder / SOURCE) if (folder / SOURCE).is_file() else {}
    return {kind: str(made_of[kind]) for kind in ("sha256", "md5") if kind in made_of}


def trained_on_of(folder: Path) -> str | None:
    """The data set that a folder's weights were trained on, where the folder says so."""
    data = read_json(folder / SOURCE).get("trained_on") if (folder / SOURCE).is_file() else None
    return None if data is None else str(data)


def _advice(folder: Path) -> str:
    file = FILES.get(folder.name)
    if file is None:
        return f"give a folder, or one of the packaged {', '.join(packaged())}"
    return f"it is made by {file.how(folder)} ({file.hash}; {file.where})"


def weights_file(folder: Path, safe: str, pickled: str | None = None) -> Path:
    """The file of weights of a folder: safetensors, else a pickle of that name, which is read
    without running it. An error says what lies there instead."""
    path = folder / safe
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(9)
        # Safetensors begin with the header's length in 8 bytes and its brace; the length alone
        # can look like the first bytes of a pickle or of the zip that torch.save writes.
        if head[8:] != b"{" and head[:2] in _PICKLE_STARTS:
            raise InputError(f"{path} is a pickle, not safetensors: {CONVERT.format(path)}")
        return path
    if pickled is not None and (folder / pickled).is_file():
        return folder / pickled
    others = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
    if others:
        raise InputError(
            f"{folder} holds {others[0]}, a pickle, and no {safe}:"
            f" {CONVERT.format(folder / others[0])}"
        )
    raise InputError(f"{folder} holds no {safe}")


def check_numbers(path: Path, network: nn.Module) -> None:
    """InputError unless a file of weights holds floats (and counters), and the network that they
    were loaded into is finite: integers would be taken for weights at their face value."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    else:
        state = torch.load(path, map_location="meta", weights_only=True)
        kinds = {name: str(value.dtype) for name, value in state.items()}
    if other := sorted(name for name, kind in kinds.items() if kind not in NUMBERS):
        raise InputError(f"{path}: {other[0]} holds {kinds[other[0]]} numbers, expected are floats")
    for name, value in network.state_dict().items():
        if not value.isfinite().all():
            raise InputError(f"{path}: {name} holds NaN or infinite values: these are no weights")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, in which no key is twice, or an error naming the file."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # JSON would keep the last
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{path}: {name!r} is there twice: take one away")
        return dict(pairs)

    try:
        content = json.loads(path.read_text("utf-8"), object_pairs_hook=once)
    except FileNotFoundError:
        raise InputError(
            f"{path.parent} holds no {path.name}: give a folder of weights, as hetpure convert and"
            " hetpure train write them"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content


def in_one_line(error: Exception) -> str:
    """What a library's error says, short enough for a terminal."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def folder_hash(folder: Path) -> str:
    """SHA-256 over the folder's files of weights and JSON, names and contents in sorted order."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".bin"):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                while piece := file.read(1 << 22):
                    digest.update(piece)
    return digest.hexdigest()
