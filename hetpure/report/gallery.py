"""The images that a page shows, at most 24: which ones, and how they are read from the folder."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hetpure.errors import InputError
from hetpure.evaluation.protocol import AUDIT, CLEAN, Record
from hetpure.evaluation.run_results import Contents
from hetpure.evaluation.store import Job, Store
from hetpure.numbers import counted
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


def without_images(names: Sequence[str]) -> str:
    """Which of these defences `choose` has no image for, as there are too many; else empty."""
    rest = names[MOST:]
    if not rest:
        return ""
    return (
        f"A page shows at most {MOST} images, so the first {MOST} of {len(names)} defences have one"
        f" each. Not shown: {', '.join(rest)}. The images of all are in the folder blocks."
    )


def sureness(record: Record) -> float:
    """The share of report draws that give the commonest answer."""
    return max(Counter(record.predictions).values()) / len(record.predictions)


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
    blocks; mask, start or heterogeneous state, and purified ones where `measure` has left them."""
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
    if "heterogeneous_state" in pictures:
        both = pictures["heterogeneous_state"]
        panels.append(Panel("x(t_l, t_s)", both, "noise of both levels"))
    if "start" in pictures:
        panels.append(Panel("start", pictures["start"], "the first state"))
    if "purified" in pictures:
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


def gallery_path(folder: Path, row: str) -> Path:
    """Where the pictures of a row lie that `measure` makes."""
    return folder / FOLDER / f"{file_stem(row)}.safetensors"


def _measured(folder: Path, row: str) -> dict[int, dict[str, Tensor]]:
    """By sample what `measure` left of a row; nothing where it was not run. InputError where its
    file is damaged."""
    path = gallery_path(folder, row)
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
