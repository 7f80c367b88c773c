"""How a program ends: what the user can mend is one line and exit code 2."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOWrapper

from jsonargparse import ArgumentError

from hetpure.errors import InputError, causes

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
PARTIAL = (
    "; a --config takes the default's place: lay a partial one over a whole one, by naming both"
    " (`hetpure configs` lists those that come along)"
)
# What a disk, its permissions or a network's file system can refuse.
WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
WRITING |= {errno.ENOTDIR, errno.EEXIST, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
WRITING |= {errno.ENAMETOOLONG}
UNREAD = 128 + 13  # a shell's exit code of what SIGPIPE ends


def run(main: Callable[[list[str]], None], arguments: Sequence[str]) -> None:
    """Runs an entry point: what the user can mend is printed in one line, exit code 2. Classes that
    options name are also looked for in the folder where the program is started."""
    for stream in (sys.stdout, sys.stderr):  # of a terminal that has not all letters of a name
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.path.append("")  # last: no file there hides an installed package
    try:
        main(list(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # as where `head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to flush
        sys.exit(UNREAD)
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning's trainer makes an exit of an interrupt.
        if not any(isinstance(e, KeyboardInterrupt) for e in (error, error.__context__)):
            raise
        say("stopped; records and checkpoints that were written are kept\n")
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = _users_mistake(error) or _of_the_machine(error)
        if message is None:
            raise
        partial = str(message).startswith("the following arguments are required") and any(
            argument.partition("=")[0] in ("--config", "-c") for argument in arguments
        )
        hint = PARTIAL if partial else ""
        # A loader's process sends its traceback along: of that, what the error itself said.
        line = " ".join(str(message).rpartition(f"{InputError.__name__}: ")[2].split())
        print(f"error: {line}{hint}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def say(text: str, stream: int = 2) -> None:
    """Writes to standard error (2) or output (1). Nothing ends because nobody reads it any more, as
    where Ctrl-C has ended `tee` too, or because a log's disk is full."""
    with suppress(OSError):
        os.write(stream, text.encode())


def _users_mistake(error: BaseException) -> BaseException | None:
    """The error itself or the one inside that the user can mend. Lightning's is looked up where it
    was imported: commands without it start at once."""
    kinds: list[type[BaseException]] = [InputError, ArgumentError]
    if lightning := sys.modules.get("lightning.fabric.utilities.exceptions"):
        kinds.append(lightning.MisconfigurationException)
    links = (link for kind in kinds for link in causes(error) if isinstance(link, kind))
    return next(links, None)


def _of_the_machine(error: BaseException) -> str | None:
    """What memory, disk or compiler could not do, and what to change."""
    first = str(error).splitlines()[:1]
    reason = first[0][:100] if first else type(error).__name__
    if isinstance(error, OSError) and error.errno in WRITING:
        return f"{error}: mend it and start again; finished records and checkpoints are kept"
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return (
            f"the memory was not enough ({reason}): set a smaller --data.batch_size, or in"
            " evaluations a smaller --model.memory_budget (a run that goes on keeps what it began"
            " with: give another --model.run)"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return (
            f"the network could not be compiled ({reason}): set --model.acceleration.compile=off"
            " (in a training --model.compile=false)"
        )
    return None
