"""`hetpure purify`: look at one purification."""

from pathlib import Path

from hetpure.commands.parsing import call
from hetpure.errors import InputError, only_warned
from hetpure.images import read_image, write_image
from hetpure.noise import noise_for
from hetpure.presets import FASHION_MNIST_CLASSES, load_defense
from hetpure.report.figure import draw
from hetpure.report.purification import purification_panels


def purify(
    source: str,
    target: str,
    defense: str = "fashion_mnist",
    seed: int = 0,
    figure: str | None = None,
) -> None:
    """Purifies one image file.

    Args:
        source: PNG or JPEG to read; it is scaled to the diffusion network's size.
        target: PNG to write.
        defense: name of a packaged defence.
        seed: of the noise; another seed is another purification.
        figure: where to draw the steps between, as PNG.
    """
    if Path(target).resolve() == Path(source).resolve():
        raise InputError(f"{target} is the image itself: name another file to write")
    loaded = load_defense(defense)
    image = read_image(source, loaded.image_shape)
    noise = noise_for(image, seed)
    purified = loaded.purify(image, noise)
    write_image(target, purified)
    names = FASHION_MNIST_CLASSES  # of every packaged defence
    before, after = (names[loaded.classifier(p).argmax(1)] for p in (image, purified))
    print(f"{target}: classified as {after}, {before} before; {loaded.network_calls} network calls")
    if figure is not None:
        with only_warned(figure):
            draw(purification_panels(loaded, image, noise, names), Path(figure))
            print(f"{figure}: the steps between")


def main(arguments: list[str]) -> None:
    """Parses the arguments and purifies."""
    call(purify, arguments)
