"""What the networks make of the images that a page shows, kept in the run's folder: a page is made
again without the networks."""

from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import save
from torch import Tensor

from hetpure.defense import Defense
from hetpure.denoiser import to_pixels
from hetpure.disk import write_whole
from hetpure.evaluation.description import Run
from hetpure.evaluation.run_results import Contents
from hetpure.evaluation.store import Store
from hetpure.expectation import Query
from hetpure.noise import BatchNoise, Noise, Stream
from hetpure.purifiers import HeterogeneousPurifier, heterogeneous_state
from hetpure.report.gallery import Chosen, Sources, gallery_path


@torch.no_grad()
def measure(run: Run, store: Store, chosen: Mapping[str, Sequence[Chosen]]) -> None:
    """Writes what the networks make of the chosen images: of each defence the classifier's answer
    without it, and where it purifies the start and the purified image on the first report draw,
    the answer to it, and the mask where there is one. Of a heterogeneous purifier the place of the
    start takes the heterogeneous state, which shows both its levels. Pictures have 8 bits a value.
    """
    sources = Sources(Contents.read(store), store)
    for name, of_row in chosen.items():
        if not of_row:
            continue
        images = torch.stack([sources.image(name, one.record) for one in of_row]).to(run.device)
        samples = torch.tensor([one.record.sample for one in of_row])
        noise = Noise.of(run.config.seed, Stream.REPORT)
        defense = run.rows[name].defense
        mask = defense.mask(images, samples.to(run.device))
        query = Query(images, samples.to(run.device), mask, [noise])
        pieces = [
            _outcome(defense, part, numbers, masked)
            for _, part, numbers, masked in query.pieces(
                defense.execution.micro_batch or len(images), defense.compiled
            )
        ]
        tensors = {
            key: torch.cat([piece[key] for piece in pieces])[: len(images)] for key in pieces[0]
        }
        content = save({"samples": samples, **tensors}, {"row": name})
        write_whole(gallery_path(store.path, name), content)


def _outcome(
    defense: Defense, images: Tensor, noise: BatchNoise, mask: Tensor | None
) -> dict[str, Tensor]:
    """What is kept of a piece: classes (R,) int64 and pictures (R, C, H, W) uint8."""
    tensors = {"undefended": defense.classifier(images).argmax(1)}
    purifier, denoiser = defense.purifier, defense.denoiser
    if purifier is None or denoiser is None:
        return _on_cpu(tensors)
    known = defense.resized(images)
    purified = defense.purify(images, noise, mask)
    tensors["answer"] = defense.classifier(purified).argmax(1)
    pictures = {"purified": purified}
    if isinstance(purifier, HeterogeneousPurifier) and mask is not None:
        large, small = (denoiser.schedule.index(s) for s in (purifier.t_large, purifier.t_small))
        both = heterogeneous_state(denoiser, known, mask, noise, large, small)
        pictures["heterogeneous_state"] = to_pixels(both)
    else:
        pictures["start"] = to_pixels(purifier.start(denoiser, known, noise))
    if mask is not None:
        pictures["mask"] = mask
    tensors |= {key: (255 * p.clamp(0, 1)).round().byte() for key, p in pictures.items()}
    return _on_cpu(tensors)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.cpu().contiguous() for key, value in tensors.items()}
