"""Ports of the tests' process groups."""

import itertools
import os
import socket

_begin = 20_000 + os.getpid() * 1009 % 10_000  # tests that run beside these begin elsewhere
_numbers = itertools.cycle([*range(_begin, 30_000), *range(20_000, _begin)])


def next_port() -> int:
    """One that hardly another worker gives and the system gives nobody by itself. Lightning's own
    choice is free when it looks, but may be taken when it listens."""
    for port in _numbers:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("unreachable: the numbers have no end")
