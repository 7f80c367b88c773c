"""One image: what the classifier says before and after purification, and where it looks.

python examples/one_image.py docs/example.png purified.png
"""

import argparse

import hetpure
from hetpure.presets import FASHION_MNIST_CLASSES


def main(source: str, target: str) -> None:
    """Purifies the image in one file into another file."""
    defense = hetpure.load_defense("fashion_mnist")
    image = hetpure.read_image(source, defense.image_shape)  # (1, 1, 28, 28) in [0, 1]

    mask = defense.mask(image)
    assert mask is not None  # this purifier has one
    print(f"the classifier looks at {100 * mask.mean():.0f}% of the pixels")

    before = defense.classifier(image).argmax(1).item()
    print(f"as it is: {FASHION_MNIST_CLASSES[before]}")
    for seed in range(3):  # each seed is other noise, so another purification
        purified = defense.purify(image, hetpure.noise_for(image, seed=seed), mask)
        after = defense.classifier(purified).argmax(1).item()
        print(f"purified, seed {seed}: {FASHION_MNIST_CLASSES[after]}")
    hetpure.write_image(target, purified)
    print(f"the last one is in {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="an image")
    parser.add_argument("target", help="where the purified image goes")
    main(**vars(parser.parse_args()))
