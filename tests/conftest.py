"""Threads of the workers: all of them together have as many as there are cores. What a test or
Lightning sets in the environment ends with the test."""

import os
from collections.abc import Iterator
from unittest import mock

import pytest
import torch

workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _environment_as_it_was() -> Iterator[None]:
    """Lightning leaves LOCAL_RANK there: a program of two processes that finds it starts none, and
    waits for the other one."""
    with mock.patch.dict(os.environ):
        yield
    if torch.distributed.is_initialized():  # Lightning leaves the group of a refused training
        torch.distributed.destroy_process_group()
