"""Files of weights as people publish them, to tensors. No pickle is ever executed.

Read are safetensors, `torch.save` (zip files by memory mapping, and the older format) and plain
pickles. What torch reads with `weights_only` it reads. Of the others, whole modules among them,
only tensors are taken: every class is replaced by an inert one and nothing is imported.
"""

import collections
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hetpure.errors import InputError
from hetpure.pickles import NUMPY, Inert, Reader

Storage = Callable[[str, torch.dtype, int], Tensor]  # the numbers of a name, so many of a kind
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of torch's older format
KINDS = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
# Where published files keep their weights, averages before what they were averaged from.
PARTS = ("ema", "model_ema", "state_dict", "model_state_dict", "model", "params", "net", "0")
PREFIXES = ("module.", "_orig_mod.", "model.", "0.")  # of wrappers around a network


def read_checkpoint(path: Path) -> Any:
    """What the file holds: dicts, lists, tensors and inert objects."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
            if head[8:] == b"{":
                return load_file(path)
            if head[:2] == b"PK":
                _refuse_programs(path)
                return _read_zip(path)
            file.seek(0)
            return _read_stream(path, file)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (
        pickle.UnpicklingError,
        SafetensorError,
        zipfile.BadZipFile,
        EOFError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
    ) as error:
        raise InputError(
            f"{path} is no file of weights that can be read ({_short(error)}): give safetensors or"
            " what torch.save wrote"
        ) from None


def _refuse_programs(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        kind = "a TorchScript program"
    elif "archive_format" in names or any(name.startswith("models/") for name in names):
        kind = "a torch.export program"
    elif "data.pkl" not in names:
        kind = "a zip archive without weights of torch.save"
    else:
        return
    raise InputError(
        f"{kind}: reading it would run what it holds; save the network's state_dict() with"
        " safetensors.torch.save_file where you trust it"
    )


def _read_zip(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))[:-8]
            order = f"{root}byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise InputError(
                    "its numbers are big-endian: save it again on this machine"
                ) from None

            def storage(key: str, kind: torch.dtype, count: int) -> Tensor:
                return _numbers(archive.read(f"{root}data/{key}"), kind)

            return _TensorReader(io.BytesIO(archive.read(f"{root}data.pkl")), storage).load()


def _read_stream(path: Path, file: BinaryIO) -> Any:
    """A plain pickle, or torch's older format: pickles one after another, then the numbers."""
    first = _TensorReader(file).load()
    if first != MAGIC:
        return first
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass
    storages: dict[str, Tensor] = {}

    def storage(key: str, kind: torch.dtype, count: int) -> Tensor:
        return storages.setdefault(key, torch.empty(count, dtype=kind))

    for _ in range(2):  # the version, and the writer's machine
        _TensorReader(file).load()
    content = _TensorReader(file, storage).load()
    for key in _TensorReader(file).load():
        values = storages[key]
        count = int.from_bytes(file.read(8), "little")
        if count != len(values):
            raise InputError(f"{count} numbers where {len(values)} were announced")
        values.copy_(_numbers(file.read(count * values.element_size()), values.dtype))
    return content


def _numbers(data: bytes, kind: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=kind) if data else torch.empty(0, dtype=kind)


class _Persistent(Inert):
    """An object of NVIDIA's `torch_utils.persistence`: the source that it carries is never run."""


def _persistent(told: Any) -> _Persistent:
    found = _Persistent()
    found.state = told["state"]
    return found


def _tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *ignored: Any
) -> Tensor:
    """Stands for `torch._utils._rebuild_tensor_v2`."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if not isinstance(storage, Tensor) or offset < 0 or (all(size) and last >= len(storage)):
        raise InputError("a tensor lies outside of its numbers")
    return storage.as_strided(size, stride, offset)


def _from_bytes(data: bytes) -> Tensor:
    """Stands for `torch.storage._load_from_bytes`: a file of torch within a pickle."""
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.TypedStorage):
        raise InputError("it holds numbers of a kind that is not read")
    memory = storage.untyped()  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=storage.dtype).set_(memory, 0, (len(storage),), (1,))


class _TensorReader(Reader):
    """Tensors are real ones, every other class is inert."""

    inert = True
    names = NUMPY | {
        "collections.OrderedDict": collections.OrderedDict,
        "dnnlib.util.EasyDict": dict,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_parameter": lambda data, *ignored: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *ignored: data,
        "torch.storage._load_from_bytes": _from_bytes,
        "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    }

    def __init__(self, file: Any, storage: Storage | None = None) -> None:
        super().__init__(file)
        self.storage = storage

    def persistent_load(self, told: Any, /) -> Any:
        kind, *rest = told
        if kind == "module":  # the older format: a class, its file, its source
            return rest[0]
        name = getattr(rest[0], "__name__", "").removesuffix("Storage")
        if self.storage is None or kind != "storage" or name not in KINDS:
            raise InputError(f"it holds numbers of a kind that is not read ({name or kind})")
        return self.storage(str(rest[1]), KINDS[name], int(rest[3]))


def state_of(module: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and tensors of a whole module that was read as an inert object, as its state_dict()."""
    state = module.state if isinstance(module, Inert) else {}
    if not isinstance(state, dict):
        return
    hidden = state.get("_non_persistent_buffers_set", ())
    if isinstance(hidden, Inert):  # a set, as older pickles write it
        hidden = hidden.arguments[0] if hidden.arguments else ()
    for group in ("_parameters", "_buffers"):
        for name, value in (state.get(group) or {}).items():
            if isinstance(value, Tensor) and name not in hidden:
                yield prefix + name, value
    for name, part in (state.get("_modules") or {}).items():
        yield from state_of(part, f"{prefix}{name}.")


def parts_of(content: Any, deeper: int = 1) -> dict[str, dict[str, Tensor] | list[Tensor]]:
    """Everything in a file that could be a network's weights, by where it lies ("" at the top): a
    state dict without its wrappers' prefixes, or the list of an average, whose tensors have no
    names. Averages come first.
    """
    found: dict[str, dict[str, Tensor] | list[Tensor]] = {}
    if isinstance(content, (list, tuple)):
        content = {str(number): part for number, part in enumerate(content)}
    if (own := _weights(content)) is not None:
        found[""] = own
    if isinstance(content, Mapping):
        known = [name for name in PARTS if name in content]
        for name in [*known, *(name for name in content if name not in known)]:
            part = content[name]
            if (weights := _weights(part)) is not None:
                found[str(name)] = weights
            elif isinstance(part, Mapping) and deeper:
                for inner, weights in parts_of(part, deeper - 1).items():
                    found[f"{name}.{inner}"] = weights
    return found


def _weights(part: Any) -> dict[str, Tensor] | list[Tensor] | None:
    if isinstance(part, Inert):
        part = dict(state_of(part))
    if not isinstance(part, Mapping):
        return None
    if isinstance(shadow := part.get("shadow_params"), (list, tuple)):
        return list(shadow)
    tensors = {str(key): value for key, value in part.items() if isinstance(value, Tensor)}
    return without_prefix(tensors) if tensors else None


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a network, where all names begin with its wrappers' names."""
    found = dict(state)
    while prefix := next(
        (one for one in PREFIXES if all(name.startswith(one) for name in found)), None
    ):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
