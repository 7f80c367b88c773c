"""What the processes of a training share: values, and weights that each holds a part of."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hetpure.errors import InputError
from hetpure.weights.diffusion import Network, blocks_of


def run_folder(trainer: L.Trainer) -> Path:
    """Where a training writes. All processes have to ask for it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def everyones(value: Any) -> list[Any]:
    """The value of each process, on all of them."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def shard(network: Network, mesh: DeviceMesh) -> None:
    """Parts the weights among the devices (FSDP2), block by block. InputError where they are to be
    parted within a layer."""
    if mesh["tensor_parallel"].size() != 1:
        raise InputError(
            "--trainer.strategy.tensor_parallel_size must be 1, and data_parallel_size the number"
            " of devices: the network is sharded over the data's devices"
        )
    data = mesh["data_parallel"]
    for part in blocks_of(network):
        fully_shard(part, mesh=data)
    # Let go after every call, also one that no backward pass follows.
    fully_shard(network, mesh=data, reshard_after_forward=True)


def whole(values: Tensor) -> Tensor:
    """A tensor that processes share in parts, put together on each; any other one as it is."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def parted(values: Tensor, like: Tensor) -> Tensor:
    """A whole tensor parted among the processes as another one is, if it is."""
    if not isinstance(like, DTensor):
        return values
    return distribute_tensor(values.to(like.device), like.device_mesh, like.placements)
