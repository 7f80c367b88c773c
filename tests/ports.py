"""Ports of the tests' process groups."""

import itertools
import os
import socket

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_numbers = itertools.cycle(range(20_000 + 1000 * (_worker % 10), 21_000 + 1000 * (_worker % 10)))


def next_port() -> int:
    """One that no other worker gives and the system gives nobody by itself. Lightning's own choice
    is free when it looks, but may be taken when it listens."""
    for port in _numbers:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("unreachable: the numbers have no end")
