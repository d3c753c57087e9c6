"""Names that a file uses and does not have, by ruff: what Python itself would only find on reaching the line."""

import json
import logging
import subprocess
import sys
from collections import Counter
from functools import lru_cache
from typing import Any

from autoresearch_hpc.quoting import quoted_line

LIMIT_S = 30.0
_MAX_TOLD = 5
# Rules of style, and those that comments of array shapes in annotations break.
_IGNORED = "F401,F402,F403,F405,F504,F522,F523,F541,F601,F632,F722,F811,F841,F842"
_NEWEST = 13  # the minor version of Python that every ruff from 0.8 knows

_log = logging.getLogger(__name__)


def problem(path: str, before: str, after: str) -> str:
    """What ruff finds in after and did not in before; "" where nothing new."""
    known = Counter((f["code"], f["message"]) for f in _findings(path, before))
    new: list[str] = []
    for finding in _findings(path, after):
        key = (finding["code"], finding["message"])
        known[key] -= 1
        if known[key] < 0:
            line = after.splitlines()[finding["location"]["row"] - 1 :][:1]
            text = f"\n    {quoted_line(line[0])}" if line else ""
            new.append(f"{path}:{finding['location']['row']}: {quoted_line(key[1])} ({key[0]}){text}")
    more = len(new) - _MAX_TOLD
    return "\n".join(new[:_MAX_TOLD] + ([f"and {more} more"] if more > 0 else []))


@lru_cache(maxsize=16)
def _findings(path: str, text: str) -> list[dict[str, Any]]:
    """ruff's findings; none where there is no ruff that answers."""
    if not text:
        return []
    version = f"py3{min(sys.version_info.minor, _NEWEST)}"
    command = [
        sys.executable, "-P", "-m", "ruff", "check", "--isolated", "--no-cache", "--quiet", "--ignore-noqa",
        "--select", "F", "--ignore", _IGNORED, "--target-version", version, "--output-format", "json",
        "--stdin-filename", path, "-",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, input=text.encode(errors="replace"), capture_output=True, timeout=LIMIT_S, check=False
        )
        found = json.loads(done.stdout)
        return [f for f in found if f["code"] is not None]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        _say_once(quoted_line(str(error)))
        return []


@lru_cache(maxsize=1)
def _say_once(reason: str) -> None:
    _log.warning("names are not checked, since ruff does not answer: %s", reason)
