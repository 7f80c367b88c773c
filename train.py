"""Trains a network: `python train.py` is `hetpure train`; it fine-tunes the packaged diffusion with
ADDT.

Every option: `python train.py --help`; other trainings: `configs/train/`.
"""

import sys

from hetpure.program import run
from lightning_modules.training_cli import main

if __name__ == "__main__":
    run(main, sys.argv[1:])
