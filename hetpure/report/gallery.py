"""The images that a page shows, at most 24: which ones, what the networks make of them, and how
they are read again from the run's folder."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hetpure.defense import Defense
from hetpure.denoiser import to_pixels
from hetpure.disk import write_whole
from hetpure.errors import InputError
from hetpure.evaluation.description import Run
from hetpure.evaluation.protocol import AUDIT, CLEAN, Record
from hetpure.evaluation.run_results import Contents
from hetpure.evaluation.store import Job, Store
from hetpure.expectation import Query
from hetpure.noise import BatchNoise, Noise, Stream
from hetpure.numbers import counted
from hetpure.purifiers import HeterogeneousPurifier, heterogeneous_state
from hetpure.saved_images import file_stem

MOST = 24  # images of a page, over all its defences
TENFOLD = 10
FOLDER = "gallery"


@dataclass(frozen=True)
class Chosen:
    """An image that is shown: its record under attack, and why it is shown."""

    record: Record
    reason: str


@dataclass(frozen=True)
class Panel:
    """A picture (C, H, W) in pixel [0, 1], its name and what stands below it."""

    name: str
    image: Tensor
    below: str = ""


@dataclass(frozen=True)
class Exhibit:
    """All pictures of one image of one defence, with a line on it."""

    sample: int
    title: str
    answers: str
    panels: Sequence[Panel]


def choose(robust: Mapping[str, Sequence[Record]]) -> dict[str, list[Chosen]]:
    """By defence at most 24 images in all: the first ones, which nobody selected and all defences
    share; and where a defence draws noise those on which its report draws agree least and most.

    How sure a defence is of an image is the share of report draws that give its commonest answer;
    of equals the first image goes first, and no image is shown twice.
    """
    shown = list(robust)[:MOST]
    each = MOST // max(len(shown), 1)
    chosen = {}
    for name in shown:
        records = sorted(robust[name], key=lambda record: record.sample)
        drawn = any(len(set(record.predictions)) > 1 for record in records)
        extreme = (each + 1) // 4 if drawn else 0
        picked = [Chosen(record, "one of the first") for record in records[: each - 2 * extreme]]
        rest = records[len(picked) :]
        rest.sort(key=sureness)
        least = rest[:extreme]
        most = sorted(rest[extreme:], key=sureness, reverse=True)[:extreme]
        picked += [Chosen(record, "among the least sure") for record in least]
        picked += [Chosen(record, "among the surest") for record in most]
        chosen[name] = picked
    return chosen


def sureness(record: Record) -> float:
    """The share of report draws that give the commonest answer."""
    return max(Counter(record.predictions).values()) / len(record.predictions)


@torch.no_grad()
def measure(run: Run, store: Store, chosen: Mapping[str, Sequence[Chosen]]) -> None:
    """Writes what the networks make of the chosen images: of each defence the classifier's answer
    without it, and where it purifies the noised and the purified image on the first report draw,
    the answer to it, and the mask where there is one. Pictures have 8 bits a value."""
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
                defense.execution.micro_batch or len(images)
            )
        ]
        tensors = {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
        content = save({"samples": samples, **tensors}, {"row": name})
        write_whole(_path(store.path, name), content)


def _outcome(
    defense: Defense, images: Tensor, noise: BatchNoise, mask: Tensor | None
) -> dict[str, Tensor]:
    """What is kept of a piece: classes (R,) int64 and pictures (R, C, H, W) uint8."""
    tensors = {"undefended": defense.classifier(images).argmax(1)}
    purifier, denoiser = defense.purifier, defense.denoiser
    if purifier is None or denoiser is None:
        return _on_cpu(tensors)
    known = defense.resized(images)
    if isinstance(purifier, HeterogeneousPurifier) and mask is not None:
        large, small = (denoiser.schedule.index(s) for s in (purifier.t_large, purifier.t_small))
        noised = heterogeneous_state(denoiser, known, mask, noise, large, small)
    else:
        noised = purifier.start(denoiser, known, noise)
    purified = defense.purify(images, noise, mask)
    tensors["answer"] = defense.classifier(purified).argmax(1)
    pictures = {"noised": to_pixels(noised), "purified": purified}
    if mask is not None:
        pictures["mask"] = mask
    tensors |= {key: (255 * p.clamp(0, 1)).round().byte() for key, p in pictures.items()}
    return _on_cpu(tensors)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.cpu().contiguous() for key, value in tensors.items()}


class Sources:
    """The images of a run's finished jobs, each file read once."""

    def __init__(self, contents: Contents, store: Store) -> None:
        self.store = store
        self.places = {
            (job.row, job.attack, record.sample): (job, position)
            for job, finished in contents.finished.items()
            if not job.attack.startswith(AUDIT)
            for position, record in enumerate(finished.records)
        }
        self.read: dict[Job, Tensor] = {}

    def image(self, row: str, record: Record, attack: str | None = None) -> Tensor:
        """The image (C, H, W) that a record reports on, or the same sample under another attack."""
        job, position = self.places[row, attack or record.attack, record.sample]
        if job not in self.read:
            self.read[job] = self.store.block_images(job)
        return self.read[job][position]


def exhibits(
    store: Store,
    contents: Contents,
    chosen: Mapping[str, Sequence[Chosen]],
    class_names: Sequence[str],
) -> dict[str, list[Exhibit]]:
    """What the folder holds of the chosen images, by defence: clean and adversarial images from the
    blocks; mask, noised and purified ones where `measure` has left them."""
    sources = Sources(contents, store)
    shown = {}
    for name, of_row in chosen.items():
        measured = _measured(store.path, name)
        shown[name] = [
            _exhibit(
                one,
                sources.image(name, one.record, CLEAN),
                sources.image(name, one.record),
                measured.get(one.record.sample, {}),
                class_names,
            )
            for one in of_row
        ]
    return shown


def _exhibit(
    chosen: Chosen,
    clean: Tensor,
    adversarial: Tensor,
    measured: Mapping[str, Tensor],
    class_names: Sequence[str],
) -> Exhibit:
    record = chosen.record
    undefended = measured.get("undefended")
    answer = "" if undefended is None else f"classifier: {class_name(class_names, int(undefended))}"
    tenfold = 0.5 + TENFOLD * (adversarial - clean)
    panels = [
        Panel("clean", clean, f"label: {class_name(class_names, record.label)}"),
        Panel("adversarial", adversarial, answer),
        Panel("perturbation, tenfold", tenfold, f"Linf {record.linf:.3f}, L2 {record.l2:.2f}"),
    ]
    pictures = {key: value.float() / 255 for key, value in measured.items() if value.dim() == 3}
    if "mask" in pictures:
        share = f"{pictures['mask'].mean():.0%} attended"
        panels.append(Panel("mask", pictures["mask"], share))
    if "noised" in pictures:
        panels.append(Panel("noised", pictures["noised"]))
        answer = f"answer: {class_name(class_names, int(measured['answer']))}"
        panels.append(Panel("purified, first draw", pictures["purified"], answer))
    counts = Counter(record.predictions).most_common()
    draws = counted(len(record.predictions), "report draw")
    given = ", ".join(f"{class_name(class_names, label)} {count}" for label, count in counts)
    return Exhibit(
        record.sample,
        f"image {record.sample} under {record.attack}, {chosen.reason}",
        f"answers on {draws}: {given}",
        panels,
    )


def class_name(class_names: Sequence[str], label: int) -> str:
    """The name of a class; of a run that does not say it, or of no class, its number."""
    return class_names[label] if 0 <= label < len(class_names) else str(label)


def _path(folder: Path, row: str) -> Path:
    return folder / FOLDER / f"{file_stem(row)}.safetensors"


def _measured(folder: Path, row: str) -> dict[int, dict[str, Tensor]]:
    """By sample what `measure` left of a row; nothing where it was not run. InputError where its
    file is damaged."""
    path = _path(folder, row)
    if not path.exists():
        return {}
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): delete it") from None
    samples = tensors.pop("samples").tolist()
    return {
        sample: {key: value[position] for key, value in tensors.items()}
        for position, sample in enumerate(samples)
    }
