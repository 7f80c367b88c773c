"""Files in the layouts in which weights are published, and one that would do harm if run."""

import io
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Bomb:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def module_of(state: Mapping[str, Tensor], kind: type[nn.Module] = nn.Module) -> nn.Module:
    """A tree of modules with this state dict; its dicts of blocks are torch's own `ModuleDict`."""
    root = kind()
    for name, value in state.items():
        *path, leaf = name.split(".")
        place = root
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.ModuleDict() if part in ("enc", "dec") else kind())
            place = place._modules[part]  # type: ignore[assignment]
        if value.is_floating_point() and "resample_filter" not in leaf:
            place.register_parameter(leaf, nn.Parameter(value))
        else:
            place.register_buffer(leaf, value)
    return root


@contextmanager
def foreign_modules(class_name: str = "") -> Iterator[tuple[type[nn.Module], type[nn.Module]]]:
    """Inside, pickles can be written of classes that are gone when they are read: a plain module,
    and one of NVIDIA's `torch_utils.persistence`, whose pickle carries its source."""
    network, utils = types.ModuleType("their_network"), types.ModuleType("torch_utils.persistence")
    package = types.ModuleType("torch_utils")
    package.persistence = utils  # type: ignore[attr-defined]

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
        raise AssertionError("this would run the source in the pickle")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    utils._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]

    class Net(nn.Module):
        pass

    class Persistent(nn.Module):
        def __reduce__(self) -> tuple[Any, ...]:
            meta = {
                "type": "class",
                "version": 6,
                "module_src": "import os; os._exit(3)",
                "class_name": class_name,
                "state": self.__dict__,
            }
            return _reconstruct_persistent_obj, (meta,)

    Net.__module__, Net.__qualname__ = "their_network", "Net"
    network.Net = Net  # type: ignore[attr-defined]
    names = {
        "their_network": network,
        "torch_utils": package,
        "torch_utils.persistence": utils,
    }
    sys.modules.update(names)
    try:
        yield Net, Persistent
    finally:
        for name in names:
            del sys.modules[name]


def edm_snapshot(state: Mapping[str, Tensor], path: Path, class_name: str = "EDMPrecond") -> Path:
    """A plain pickle as NVlabs/edm writes it: {'ema': EDMPrecond, ...}."""
    with foreign_modules(class_name) as (_, persistent):
        content = {
            "ema": module_of(state, persistent),
            "loss_fn": {"sigma": torch.tensor(1.0).numpy()[()]},
            "dataset_kwargs": {"resolution": 32},
        }
        stream = io.BytesIO()
        pickle.dump(content, stream, protocol=4)
    path.write_bytes(stream.getvalue())
    return path


def whole_module(state: Mapping[str, Tensor], path: Path, *, zipped: bool) -> Path:
    """A module saved whole by torch.save, its class nowhere to be imported from."""
    with foreign_modules() as (net, _):
        content = {"net": module_of(state, net), "epoch": 3}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path
