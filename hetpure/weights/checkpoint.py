"""Files of weights as people publish them, to tensors. No pickle is ever executed.

Read are safetensors, `torch.save` (zip files by memory mapping, and the older format) and plain
pickles. What torch reads with `weights_only` it reads. Of the others, whole modules among them,
only tensors are taken: every class is replaced by an inert one and nothing is imported.
"""

import collections
import io
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from hetpure.errors import InputError
from hetpure.pickles import NUMPY, Inert, Reader
from hetpure.weights.folders import in_one_line

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
# Where published files keep their weights; an average comes before what it was averaged from.
PARTS = ("state_dict", "model_state_dict", "model", "params", "net", "0")
AVERAGE = re.compile(r"(^|[_.])ema([_.]|$)")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "0.", "1.")  # of wrappers of a network
NORMALISER = re.compile(r"(?:.*\.)?(mean|std|mu|sigma)")  # of a wrapper that normalises

Part = dict[str, Tensor] | list[Tensor]


def read_parts(path: Path) -> dict[str, Part]:
    """Everything in a file that could be a network's weights: see `parts_of`."""
    try:
        return parts_of(read_content(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged or hostile pickle raises anything
        raise InputError(
            f"{path} is no file of weights that can be read ({in_one_line(error)[:100]}): give"
            " safetensors or what torch.save wrote"
        ) from None


def read_content(path: Path) -> Any:
    """What the file holds: dicts, lists, tensors and inert objects."""
    with path.open("rb") as file:
        head = file.read(9)
        if head[8:] == b"{":
            return load_file(path)
        if head[:2] == b"PK":
            _refuse_programs(path)
            return _read_zip(path)
        file.seek(0)
        return _read_stream(path, file)


def _refuse_programs(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        kind = "a TorchScript program"
    elif "archive_format" in names or any(name.startswith("models/") for name in names):
        kind = "a torch.export program"
    elif "data.pkl" not in names:
        raise InputError("a zip archive, but not one of torch.save")
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

            @cache  # tensors share their numbers
            def storage(key: str, kind: torch.dtype, count: int) -> Tensor:
                return _numbers(archive.read(f"{root}data/{key}"), kind)

            return _TensorReader(io.BytesIO(archive.read(f"{root}data.pkl")), storage).load()


def _read_stream(path: Path, file: BinaryIO) -> Any:
    """A plain pickle, or torch's older format: pickles one after another, then the numbers."""
    first = _TensorReader(file).load()
    if not (isinstance(first, int) and first == MAGIC):
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


def _persistent(record: Any) -> Inert:
    """Stands for an object of NVIDIA's `torch_utils.persistence`, under the name of its class: the
    source that it carries is never run."""
    stand_in: Inert = type(str(record["class_name"]), (Inert,), {})()
    stand_in.state = record["state"]
    return stand_in


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

    def persistent_load(self, record: Any, /) -> Any:
        kind, *rest = record
        if kind == "module":  # the older format: a class, its file, its source
            return rest[0]
        name = getattr(rest[0], "__name__", "").removesuffix("Storage")
        views = rest[4:]  # the older format's parts of other numbers, written no more
        if self.storage is None or kind != "storage" or name not in KINDS or any(views):
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


def parts_of(content: Any, deeper: int = 1) -> dict[str, Part]:
    """Everything in a file that could be a network's weights, by where it lies ("" at the top): a
    state dict, or the list of an average, whose tensors have no names. Averages come first.
    """
    parts: dict[str, Part] = {}
    if isinstance(content, (list, tuple)):
        content = {str(number): part for number, part in enumerate(content)}
    if (weights := _weights(content)) is not None:
        parts[""] = weights
    if isinstance(content, Mapping):
        names = [str(name) for name in content]
        order = {name: number for number, name in reversed([*enumerate((*PARTS, *names))])}
        named = dict(zip(names, content.values(), strict=True))
        for name in sorted(names, key=lambda name: (not AVERAGE.search(name), order[name])):
            part = named[name]
            if (weights := _weights(part)) is not None:
                parts[name] = weights
            elif isinstance(part, Mapping) and deeper:
                for inner, weights in parts_of(part, deeper - 1).items():
                    parts[f"{name}.{inner}"] = weights
    return parts


def _weights(part: Any) -> Part | None:
    if isinstance(part, Inert):
        _check_class(part)
        part = dict(state_of(part))
    if not isinstance(part, Mapping):
        return None
    if isinstance(shadow := part.get("shadow_params"), (list, tuple)):
        if not all(isinstance(tensor, Tensor) for tensor in shadow):
            raise InputError("its average (shadow_params) holds what is no tensor")
        return list(shadow)
    tensors = {str(key): value for key, value in part.items() if isinstance(value, Tensor)}
    return tensors or None


def _check_class(module: Inert) -> None:
    """InputError for those of EDM's preconditionings that are not EDM's own, whose names are the
    same, and for another sigma_data."""
    name = type(module).__name__
    if name.endswith("Precond") and name != "EDMPrecond":
        raise InputError(f"a network inside {name}: of EDM's snapshots only EDMPrecond is read")
    sigma_data = module.state.get("sigma_data", 0.5) if isinstance(module.state, dict) else 0.5
    if name == "EDMPrecond" and sigma_data != 0.5:
        raise InputError(f"an EDMPrecond of sigma_data {sigma_data}: only 0.5 is read")


def _all_begin(names: Collection[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a network whose names all begin with its wrappers' names. A wrapper's own
    mean and std, of pixels, are kept under these names."""
    held = {}
    for name, value in state.items():
        match = NORMALISER.fullmatch(name)
        if match and value.numel() in (1, 3):
            held[match[1]] = value
    weights = {name: value for name, value in state.items() if not NORMALISER.fullmatch(name)}
    if len(held) + len(weights) != len(state):  # names that only end so
        held, weights = {}, dict(state)
    while prefix := next((prefix for prefix in PREFIXES if _all_begin(weights, prefix)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return held | weights
