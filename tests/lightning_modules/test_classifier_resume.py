"""A classifier's training that is stopped goes on as it was, or not at all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.fashion_mnist import FashionMNIST
from hetpure.adversarial_training import AdversarialTraining
from hetpure.errors import InputError
from hetpure.numbers import Number
from lightning_modules.classifier import ClassifierTraining
from lightning_modules.diffusion import DiffusionTraining

NETWORK = {"depth": 10, "widen_factor": 1}
PGD = AdversarialTraining("pgd", Number(0.1), Number(0.1), steps=1)


class FewImages(FashionMNIST):
    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self._splits["train"] = self._splits["train"].take(slice(40))


def train(folder: Path, resume: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Six updates, three to an epoch; the last checkpoint."""
    torch.manual_seed(1 if resume is None else 2)  # nothing but the checkpoint may matter
    settings: dict[str, Any] = {"network": NETWORK, "adversarial": PGD, "learning_rate": 0.1}
    module = ClassifierTraining(**(settings | changes))
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)],
    )
    data = FewImages(source="packaged", batch_size=12)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    state: dict[str, Any] = torch.load(folder / "step=6.ckpt", weights_only=True)
    return state


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


@pytest.mark.parametrize("stopped", [2, 3], ids=["mid", "epoch's end"])
def test_it_ends_with_the_same_weights(
    stopped: int, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Bit for bit, the optimiser's momenta too."""
    folder, expected = whole
    found = train(tmp_path, folder / f"step={stopped}.ckpt")
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    ours, theirs = (state["optimizer_states"][0]["state"] for state in (found, expected))
    assert all(torch.equal(ours[k]["momentum_buffer"], theirs[k]["momentum_buffer"]) for k in ours)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 0.01}, r"learning_rate is 0\.1, that of --model is 0\.01"),
        ({"momentum": 0.8}, "momentum is 0.9"),
        ({"weight_decay": 0.0}, "weight_decay is 0.0005"),
        ({"label_smoothing": 0.1}, "label_smoothing is 0.0"),
        ({"shift_pixels": 0}, "shift_pixels is 2"),
        ({"seed": 1}, "seed is 0"),
        ({"mean": [0.4]}, r"mean is \[0\.5\]"),
        ({"std": [0.4]}, r"std is \[0\.5\]"),
        ({"network": {**NETWORK, "dropout": 0.3}}, "network is {"),
        ({"adversarial": None}, r"adversarial is .AdversarialTraining\(.*is .None."),
        (
            {"adversarial": AdversarialTraining("pgd", Number(0.1), Number(0.1), steps=2)},
            "adversarial is .*steps=1.*steps=2",
        ),
        (
            {"adversarial": AdversarialTraining("pgd", Number(0.2), Number(0.1), steps=1)},
            "adversarial is .*0.1.*0.2",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_another_training_does_not_go_on(
    change: dict[str, Any], said: str, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"another training: its {said}.*without --ckpt_path"):
        train(tmp_path, whole[0] / "step=2.ckpt", **change)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_tells_of_no_settings_does_not_go_on(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    state = torch.load(whole[0] / "step=2.ckpt", weights_only=True)
    del state["architecture"]
    torch.save(state, tmp_path / "old.ckpt")
    with pytest.raises(InputError, match="holds no training of this version"):
        train(tmp_path / "rest", tmp_path / "old.ckpt")


def test_a_diffusion_does_not_go_on_from_a_classifier(
    whole: tuple[Path, dict[str, Any]],
) -> None:
    module = DiffusionTraining(diffusion="fashion_mnist_ddpm")
    with pytest.raises(InputError, match="--ckpt_path"):
        module.on_load_checkpoint(dict(whole[1]))
