"""`hetpure purify`: look at one purification, or purify the images of a folder."""

from pathlib import Path

import torch

from hetpure.commands.parsing import call
from hetpure.defense import Defense
from hetpure.errors import InputError, only_warned
from hetpure.images import read_image, write_image
from hetpure.noise import Noise, Stream, noise_for
from hetpure.presets import FASHION_MNIST_CLASSES, load_defense
from hetpure.report.figure import draw
from hetpure.report.purification import purification_panels

AT_ONCE = 64  # images of a folder that are purified together
SUFFIXES = (".png", ".jpg", ".jpeg")


def purify(
    source: str,
    target: str,
    defense: str = "fashion_mnist",
    seed: int = 0,
    figure: str | None = None,
) -> None:
    """Purifies an image file, or all those of a folder, many at once.

    Args:
        source: PNG or JPEG to read, or a folder of them; images are scaled to the diffusion
            network's size.
        target: PNG to write; for a folder, the folder for a PNG of each image.
        defense: name of a packaged defence.
        seed: of the noise, the same for every image; another seed is another purification.
        figure: where to draw the steps between, as PNG; of a single image.
    """
    if Path(target).resolve() == Path(source).resolve():
        raise InputError(f"{target} is the image itself: name another file to write")
    pairs = files(Path(source), Path(target))
    if figure is not None and Path(source).is_dir():
        raise InputError("--figure draws a single image: name a file, not a folder")
    loaded = load_defense(defense)
    for start in range(0, len(pairs), AT_ONCE):
        for line in purified(loaded, pairs[start : start + AT_ONCE], seed):
            print(f"{line}; {loaded.network_calls} network calls")
    if figure is not None:
        image = read_image(source, loaded.image_shape)
        with only_warned(figure):
            panels = purification_panels(
                loaded, image, noise_for(image, seed), FASHION_MNIST_CLASSES
            )
            draw(panels, Path(figure))
            print(f"{figure}: the steps between")


def files(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Each image file to read with the file to write; InputError where a folder has none, or two
    that would be written to one file."""
    if not source.is_dir():
        return [(source, target)]
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: name a folder for the images of {source}")
    found = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{source} holds no image: {', '.join(SUFFIXES)} are read")
    pairs = [(path, target / f"{path.stem}.png") for path in found]
    written: dict[Path, Path] = {}
    for path, new in pairs:
        if new in written:
            raise InputError(f"{written[new]} and {path} would both be {new}: rename one")
        written[new] = path
    return pairs


def purified(defense: Defense, pairs: list[tuple[Path, Path]], seed: int) -> list[str]:
    """Purifies images at once and writes them; what each is classified as. An image's noise is the
    one that it has alone, whatever lies beside it."""
    images = torch.cat([read_image(path, defense.image_shape) for path, _ in pairs])
    noise = Noise.of(seed, Stream.REPORT).on(torch.zeros(len(images), dtype=torch.int64))
    with torch.no_grad():
        results = defense.purify(images, noise)
        before, after = (defense.classifier(pixels).argmax(1) for pixels in (images, results))
    lines = []
    for number, (_, new) in enumerate(pairs):
        write_image(new, results[number])
        names = (FASHION_MNIST_CLASSES[int(found[number])] for found in (after, before))
        lines.append("{}: classified as {}, {} before".format(new, *names))
    return lines


def main(arguments: list[str]) -> None:
    """Parses the arguments and purifies."""
    call(purify, arguments)
