"""One line and an exit code instead of a traceback, for every command.

Apart from `entry`, so that commands without a configuration need not import Hydra.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import TextIO

from autoresearch_hpc.errors import STORAGE_ERRORS, AutoresearchError, StorageError


def run(main: Callable[[], int | None]) -> int:
    """Call main; an operator's problem becomes one line on standard error and its exit code."""
    logging.raiseExceptions = False  # a log that finds no room is no reason for a traceback
    try:
        code = main() or 0
        sys.stdout.flush()  # what cannot be printed shall be told here, not by the interpreter's exit
        return code
    except AutoresearchError as error:
        return _tell(str(error), error.exit_code)
    except BrokenPipeError:  # `| head`
        _drop(sys.stdout)
        sys.stderr.close()
        return 1
    except OSError as error:  # a full disk, a file of somebody else's: the system's words say it
        if told := _storage_error(error):
            return _tell(str(told), told.exit_code)
        return _tell(f"{error}; correct it and start again", 1)
    except KeyboardInterrupt:
        return _tell("interrupted", 3)


def _storage_error(error: OSError) -> StorageError | None:
    """What the filesystem is to blame for: the first failure, which names its file, before those of cleaning up."""
    first: BaseException | None = error.__context__
    while first is not None:
        if isinstance(first, StorageError):
            return first
        first = first.__context__
    if error.errno not in STORAGE_ERRORS:
        return None
    return StorageError(os.fsdecode(error.filename or "a file or the output"), error.errno)


def _tell(problem: str, code: int) -> int:
    """The line, as far as it can be told: standard output and error may lie on the same full disk."""
    for stream, text in ((sys.stderr, f"autoresearch_hpc: {problem}\n"), (sys.stdout, "")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            _drop(stream)
    return code


def _drop(stream: TextIO) -> None:
    """Let what is still buffered go nowhere, else the interpreter's exit stumbles over it."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
