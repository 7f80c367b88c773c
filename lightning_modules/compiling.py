"""How long torch compiles: the one long wait of a run in which no pass is done."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def compiling(begin: Callable[[], None], end: Callable[[float], None]) -> Iterator[None]:
    """Inside, `begin()` is called where torch starts to compile, as code is asked for first or
    differentiated first, and `end(seconds)` where it is done. What torch's cache holds of an
    earlier start takes less time."""
    from torch._dynamo.callback import callback_handler  # seconds, to import

    began = 0.0

    def start(*_: object) -> None:
        nonlocal began
        began = time.monotonic()
        begin()

    def stop(*_: object) -> None:
        end(time.monotonic() - began)

    callback_handler.register_start_callback(start)
    callback_handler.register_end_callback(stop)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(start)
        callback_handler.remove_end_callback(stop)
