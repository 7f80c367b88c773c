"""Classifiers and data of somebody else's, for tests of what is asked of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

HERE = "tests.lightning_modules.foreign"
NAMES = tuple("abcdefghij")


class Network(nn.Module):
    """Somebody's classifier of ten classes, which gives its logits in many a form."""

    def __init__(
        self, gives: str = "logits", size: int = 28, num_classes: int = 10, in_channels: int = 1
    ) -> None:
        super().__init__()
        self.gives = gives
        self.linear = nn.Linear(in_channels * size**2, num_classes)

    def forward(self, x: Tensor) -> Any:
        logits = self.linear(x.flatten(1))
        forms: dict[str, Callable[[], Any]] = {
            "logits": lambda: logits,
            "one logit": lambda: logits[:, :1],
            "nine logits": lambda: logits[:, :9],
            "a map": lambda: logits[:, :, None],
            "a tuple": lambda: (logits, logits),
            "a dict": lambda: {"logits": logits},
            "integers": lambda: logits.long(),
            "NaN": lambda: logits * torch.nan,
            "infinity": lambda: logits / 0,
            "infinity where bright": lambda: logits / (x.amax() < -0.9),
            "whole numbers": lambda: (10 * logits).round(),
            "the batch's sum": lambda: logits.sum(0, keepdim=True),
        }
        return forms[self.gives]()


def classifier(folder: Path, **network: Any) -> str:
    """Its folder, as docs/guide/purifier.md says."""
    folder.mkdir()
    torch.manual_seed(0)
    config = {"architecture": f"{HERE}.Network", "network": network, "mean": [0.5], "std": [0.5]}
    config |= {"num_classes": network.get("num_classes", 10), "in_channels": 1}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(Network(**network).state_dict(), folder / "model.safetensors")
    return str(folder)


class Items(Dataset[dict[str, Any]]):
    """Five grey images, read one by one; `changed` is put in place of what an item holds."""

    def __init__(self, changed: dict[int, dict[str, Any]], every: dict[str, Any]) -> None:
        self.changed, self.every = changed, every
        self.read: list[int] = []

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        torch.manual_seed(index)
        image = torch.rand(1, 28, 28)
        item = {"image": image, "label": torch.tensor(index), "sample": torch.tensor(index)}
        changes = self.every | self.changed.get(index, {})
        return item | {k: new(item[k]) if callable(new) else new for k, new in changes.items()}


class Data(LightningDataModule):
    """Somebody's data, in batches of two: the third is the last."""

    description, class_names, num_classes, channels, image_size = "mine", NAMES, 10, 1, 28

    def __init__(self, changed: dict[int, dict[str, Any]] | None = None, **every: Any) -> None:
        super().__init__()
        self.items = Items(changed or {}, every)

    def files_sha256(self) -> dict[str, str]:
        return {}

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(self.items, batch_size=2)

    train_dataloader = val_dataloader = test_dataloader
