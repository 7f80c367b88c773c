"""The images of a datamodule, as an evaluation reads them: block by block, in order."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler

from datamodules.dataset import ImageDataset, check_ids
from hetpure.compatibility import check_data
from hetpure.errors import InputError
from hetpure.evaluation.description import Images
from hetpure.evaluation.protocol import Block
from lightning_modules.batches import WHERE, block_of, check_told, checked


def images_of(data: Any, loader: DataLoader[Any], device: torch.device) -> Images:
    """The images of a datamodule's `test_dataloader`, on the device. InputError unless all labels
    and ids are right, no id twice, and the loader's batches are its samples in order.

    An `ImageDataset` is asked for those that its items give. Of any other dataset every batch is
    read and checked whole, which takes as long as its images take to load.
    """
    check_data(data)
    in_order = isinstance(loader, DataLoader) and isinstance(loader.sampler, SequentialSampler)
    if not in_order or loader.batch_size is None or loader.drop_last:
        raise InputError(
            "the data's test_dataloader must be a DataLoader that gives all samples in order, in"
            " batches: without shuffle, sampler or drop_last"
        )
    dataset: Any = loader.dataset
    if not len(dataset):
        raise InputError(f"{WHERE} holds no images")

    def read(positions: Sequence[int]) -> Block:
        batch = loader.collate_fn([dataset[position] for position in positions])
        return block_of(batch, data, device)

    if isinstance(dataset, ImageDataset):
        samples = dataset.samples
        check_told(dataset.labels, samples, len(dataset), data)
    else:
        samples = torch.cat([checked(batch, data)["sample"] for batch in loader])
    check_ids(samples, WHERE)
    files, data_set = data.files_sha256(), getattr(data, "data_set", "")
    return Images(data.description, data.class_names, samples, read, files, data_set)
