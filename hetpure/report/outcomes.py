"""The figure of a run: what the attack did to images and what each defence made of it."""

import textwrap
from collections.abc import Sequence

import torch

from hetpure.evaluation.description import Run
from hetpure.evaluation.store import Store
from hetpure.noise import Noise, Stream
from hetpure.report.figure import Panel

ROWS = 6


@torch.no_grad()
def outcome_panels(run: Run, store: Store, rows: Sequence[str]) -> list[Panel]:
    """The first images clean, then for each of these rows that has a purifier: adversarial under
    the main attack, mask, purified."""
    block, names = run.read(0).first(ROWS), run.images.class_names
    noise = Noise.of(run.config.seed, Stream.REPORT).on(block.samples)

    def named(classes: torch.Tensor) -> list[str]:
        return [names[k] for k in classes.tolist()]

    panels = [Panel("clean", block.images, named(block.labels))]
    for name in rows:
        row = run.rows[name]
        defense, label = row.defense, textwrap.fill(name, 16)
        if not defense.stochastic:
            continue
        saved, _ = store.images(name, row.cells[1].name)  # the first cell is the clean images
        adversarial = saved[: len(block.images)].to(run.device)
        answers = named(defense.classifier(adversarial).argmax(1))
        panels.append(Panel(f"{label}\nadversarial", adversarial, answers))
        mask = defense.mask(adversarial, block.samples)
        if mask is not None:
            shares = [f"{100 * share:.0f}%" for share in mask.flatten(1).mean(1).tolist()]
            panels.append(Panel(f"{label}\nmask", mask, shares))
        purified = defense.purify(adversarial, noise, mask)
        answers = named(defense.classifier(purified).argmax(1))
        panels.append(Panel(f"{label}\npurified", purified, answers))
    return panels
