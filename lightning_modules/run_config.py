"""The config of a run in its folder: written before anything is computed, and asked when the same
command goes on with the run."""

from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from hetpure.errors import InputError
from hetpure.evaluation.records import CONFIG
from hetpure.gradients import Execution
from lightning_modules.evaluation import RobustnessEvaluation


def chosen_before(folder: Path) -> dict[str, Execution]:
    """How the rows of a run that goes on are computed: memory may have changed, its results not."""
    path = folder / CONFIG
    if not path.exists():
        return {}
    saved = yaml.safe_load(path.read_text())["model"]["execution"] or {}
    return {name: Execution(**found) for name, found in saved.items()}


def differing(saved: Any, now: Any, name: str = "") -> list[str]:
    """Where two nested configs differ, by dotted names."""
    if isinstance(saved, dict) and isinstance(now, dict):
        return [
            line
            for key in dict.fromkeys([*saved, *now])
            for line in differing(saved.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if saved == now else [f"{name}: {saved}, now {now}"]


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete config into the run's folder before anything is computed. In a folder
    that holds a run only the same config goes on."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, RobustnessEvaluation)
        if not trainer.is_global_zero:
            return
        path = pl_module.folder.path / CONFIG
        if path.exists():
            now = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
            found = differing(yaml.safe_load(path.read_text()), now)
            if found:
                raise InputError(
                    f"{path.parent} holds a run with another config ({'; '.join(found)}): give"
                    " another --model.run, or the same config to go on"
                )
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, path, skip_none=False, multifile=False)
