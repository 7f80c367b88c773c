"""Evaluates defences under attack: `python evaluate.py` is `hetpure evaluate`.

Every option: `python evaluate.py --help`; what it costs: `python evaluate.py --plan`; other
evaluations: `configs/evaluate/`.
"""

import sys

from hetpure.program import run
from lightning_modules.evaluation_cli import main

if __name__ == "__main__":
    run(main, sys.argv[1:])
