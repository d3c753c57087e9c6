"""`python killed_at.py before|torn|after|warned EVENT COUNT -- ARGUMENTS`: the command line, killed around an event.

A controller that sends itself SIGKILL right before, right after, or half way through writing the COUNTth such event;
"warned": SIGTERM right after it.
Watching the journal from outside would hit these moments only by luck; nothing but `Journal` is changed.
"""

import os
import signal
import sys

from autoresearch_hpc import journal
from autoresearch_hpc.__main__ import main

moment, wanted, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.argv[1:] = sys.argv[5:]
append = journal.Journal.append
seen = 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(self: journal.Journal, line: bytes) -> None:
    os.write(self._fd, line[: len(line) // 2])
    die()


def append_and_die(self: journal.Journal, event: str, **data: object) -> journal.Event:
    global seen
    seen += event == wanted
    now = event == wanted and seen == count
    if now and moment == "before":
        die()
    if now and moment == "torn":
        journal.Journal._write = write_half  # type: ignore[method-assign]
    written = append(self, event, **data)
    if now and moment == "warned":
        os.kill(os.getpid(), signal.SIGTERM)
    elif now:
        die()
    return written


journal.Journal.append = append_and_die  # type: ignore[method-assign]
sys.exit(main())
