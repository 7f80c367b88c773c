"""`hetpure benchmark`: how far from its own limit a machine computes gradients."""

import sys
from pathlib import Path

import torch

from hetpure.benchmark.benchmark import RESULTS, TABLES, failed, tables
from hetpure.benchmark.benchmark import benchmark as measure
from hetpure.benchmark.machine import Device, Low, Machine
from hetpure.commands.parsing import call, parser_of
from hetpure.program import FAILED


def benchmark(
    device: Device | None = None,
    quick: bool = False,
    batch: int = 64,
    low: Low = "bfloat16",
    output: str = "runs/benchmark",
) -> None:
    """Measures network calls, gradients, memory and purifications on this machine.

    No row begins that is predicted to end after 8 minutes in all, on a CPU after an hour. Every row
    is kept as soon as it is there; a second start goes on. What is too large for the machine is
    listed with the reason.

    Args:
        device: cuda or cpu; by default cuda where there is one.
        quick: smallest sizes, once each: seconds on a CPU, to see that everything runs.
        batch: images at once; of the larger networks at most so many.
        low: the precision beside float32.
        output: folder for benchmark.json and benchmark.md.
    """
    kind: Device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32
    results = measure(Machine(device or kind, batch, low, quick), Path(output))
    print(f"\n{tables(results)}\n\n{Path(output) / RESULTS}, {Path(output) / TABLES}")
    if failed(results):
        sys.exit(FAILED)


def main(arguments: list[str]) -> None:
    """Parses the arguments and measures."""
    parser = parser_of(benchmark, "quick")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, once each")
    call(benchmark, arguments, parser)
