"""Running Slurm's commands: a clean environment, a time limit, no pipe that a forgotten child could hold open."""

import functools
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoresearch_hpc.cluster.protocol import enclosing_variables

_log = logging.getLogger(__name__)

COMMAND_LIMIT_S = 60.0
NOT_INSTALLED = 127
_KILLED = 124
_STEP_S = 0.1
_AT_ONCE_S = 0.8
_SILENT = re.compile(
    r"timed? ?out|unable to contact|unable to connect|connect(ion)? (refused|reset|fail)|connection failure|zero bytes"
    r"|no route to host|network is unreachable|broken pipe|standby mode|receive failure|no answer within"
    r"|transport endpoint|authentication",
    re.IGNORECASE,
)


# Python's own preexec_fn is not safe beside threads. 1 is PR_SET_PDEATHSIG.
_TIED = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.getppid() == int(sys.argv[1]) or sys.exit(1); "
    "os.execvp(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a command ended and what it said. `stopped_early`: ended by us, right after it said what `until` tells."""

    code: int
    out: str
    err: str
    stopped_early: bool = False

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def silent(self) -> bool:
        """Whether the daemon behind the command did not answer, so that nothing can be concluded."""
        return self.code in (_KILLED, -signal.SIGKILL) or bool(_SILENT.search(self.err))

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def reason(self) -> str:
        """The last line of the complaint."""
        said = [line.strip() for line in self.err.splitlines() if line.strip()]
        return said[-1] if said else f"exit status {self.code} and no reason given"


def run(
    words: Sequence[str],
    *,
    limit_s: float = COMMAND_LIMIT_S,
    until: re.Pattern[str] | None = None,
    extra: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Answer:
    """Run a command without the variables of an enclosing job. Never raises: what could not run has an exit status too.

    With `until`, the command is ended as soon as its stderr matches. `environment` takes the place of this process's,
    `extra` is added to it.
    """
    if environment is None:
        hidden = set(enclosing_variables())
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
    out, err = os.memfd_create("stdout"), os.memfd_create("stderr")  # no disk that could be full
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**environment, **(extra or {})},
            start_new_session=True,
        )
        code, early = _watch(process, limit_s, err, until)
        complaint = _content(err) + (f"\nno answer within {limit_s:g} s" if code == _KILLED and not early else "")
        return Answer(code=code, out=_content(out), err=complaint, stopped_early=early)
    except FileNotFoundError:
        return Answer(code=NOT_INSTALLED, out="", err=f"{words[0]}: not installed")
    except OSError as error:  # no process to be had, a command that may not be run
        return Answer(code=_KILLED, out="", err=f"{words[0]}: {error}")
    finally:
        os.close(out)
        os.close(err)


def tied(words: Sequence[str]) -> list[str]:
    """The command, killed when the thread that runs it ends, and with it the process: nobody would hear its answer."""
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *words]


def _watch(
    process: "subprocess.Popen[bytes]", limit_s: float, err: int, until: re.Pattern[str] | None
) -> tuple[int, bool]:
    """The exit status, and whether it was ended because of `until`, less than _AT_ONCE_S after it had said so."""
    looked = time.monotonic()
    deadline = looked + limit_s
    while True:
        left_s = max(deadline - time.monotonic(), 0)
        try:
            return process.wait(min(_STEP_S, left_s) if until else left_s), False
        except subprocess.TimeoutExpired:
            said = bool(until and until.search(_content(err)))
            if said or time.monotonic() >= deadline:
                _end(process)
                return _KILLED, said and time.monotonic() - looked < _AT_ONCE_S
            looked = time.monotonic()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The command's whole session: a site's wrapper leaves no sbatch behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _content(file: int) -> str:
    size = os.fstat(file).st_size
    return os.pread(file, size, 0).decode(errors="replace")


@functools.cache
def warn_once(message: str) -> None:
    _log.warning("%s", message)


def expanded(indices: str) -> list[int]:
    """Slurm's way to write the tasks of an array: `[0-2,5,8-12:2%4]` -> 0, 1, 2, 5, 8, 10, 12."""
    found: list[int] = []
    for part in indices.strip("[]").partition("%")[0].split(","):
        if matched := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part.strip()):
            first, last, step = (int(text) if text else None for text in matched.groups())
            assert first is not None
            found += range(first, (first if last is None else last) + 1, step or 1)
    return found


def compressed(indices: Sequence[int]) -> str:
    """The other way: 0, 1, 2, 5 -> `0-2,5`."""
    parts: list[list[int]] = []
    for index in sorted(set(indices)):
        if parts and index == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], index]
        else:
            parts.append([index, index])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)
