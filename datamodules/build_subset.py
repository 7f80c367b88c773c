"""Makes the packaged subset of Fashion-MNIST: `python -m datamodules.build_subset`."""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from datamodules.fashion_mnist import DEBIAN, PACKAGED, find_full, packaged_files, read_pair
from datamodules.idx import write_idx
from datamodules.subsets import choose
from hetpure.errors import InputError

CHOICE = "hetpure fashion-mnist subset"
TEST, VALIDATION, TRAIN = 100, 50, 500  # images of each class


def subset(folder: Path) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """For each split: images uint8 (N, 28, 28), labels uint8 (N,), ids int32 (N,)."""
    files = find_full(folder)
    if files is None:
        raise InputError(f"{folder}: Fashion-MNIST's four files are not there; give --data-dir")
    splits = {}
    for prefix, names, counts in (
        ("t10k", ("test",), (TEST,)),
        ("train", ("validation", "train"), (VALIDATION, TRAIN)),
    ):
        images, labels = read_pair(
            files[f"{prefix}-images-idx3-ubyte"], files[f"{prefix}-labels-idx1-ubyte"]
        )
        parts = choose(labels, counts, f"{CHOICE}:{prefix}")
        for name, ids in zip(names, parts, strict=True):
            splits[name] = (images[ids.long(), 0], labels[ids.long()].to(torch.uint8), ids)
    return splits


def main() -> int:
    """Writes the packaged files and says where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=DEBIAN, help="default: %(default)s")
    try:
        splits = subset(parser.parse_args().data_dir)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for split in ("train", "validation", "test"):
        for path, tensor in zip(packaged_files(split).values(), splits[split], strict=True):
            write_idx(path, tensor)
            print(f"{path.relative_to(PACKAGED)} {tuple(tensor.shape)} {path.stat().st_size:,} B")
    return 0


if __name__ == "__main__":
    sys.exit(main())
