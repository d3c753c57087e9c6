"""`python -P -m autoresearch_hpc.shut_in [--readable DIR]... [--writable DIR]... -- COMMAND...`: a program shut in.

The command can write below the writable directories alone, read the system's software and what is named, and use the
network; see `sandbox`. It ends with who started it, and nothing that it has started outlives it.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from autoresearch_hpc.leftovers import adopt_orphans, die_with_parent, kill_descendants
from autoresearch_hpc.sandbox import Barrier, software, usable

_MAX_FILE_BYTES = 256 << 20  # of any file, its output included
_NAME_SERVICE = ("/run/systemd/resolve", "/run/resolvconf", "/run/nscd")  # what resolv.conf may point to


def main(words: list[str]) -> int:
    """Run the command and return its exit status; 126 where it may not or cannot be started."""
    parser = argparse.ArgumentParser(prog="autoresearch_hpc.shut_in")
    parser.add_argument("--mode", choices=("auto", "require", "none"), default="auto")
    parser.add_argument("--readable", action="append", type=Path, default=[])
    parser.add_argument("--writable", action="append", type=Path, default=[])
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args(words)
    if asked.mode == "require" and not usable(asked.mode):
        print("this kernel has no Landlock, and agent.cli.sandbox=require", file=sys.stderr)
        return 126
    barrier = Barrier(
        readable=[*software([]), *map(Path, _NAME_SERVICE), *asked.readable],
        writable=asked.writable,
        mode=asked.mode,
        max_file_bytes=_MAX_FILE_BYTES,
        network=True,
    )
    die_with_parent()
    adopt_orphans()
    pid = os.fork()
    if pid == 0:
        _become(asked.command, barrier)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _end(128 + signal.SIGTERM))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    kill_descendants()
    return status if status >= 0 else 128 - status


def _become(command: list[str], barrier: Barrier) -> None:
    try:
        die_with_parent()
        barrier.enter()
        os.environ.pop("PYTHONPATH", None)  # ours, not the command's
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(126)


def _end(status: int) -> None:
    kill_descendants()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
