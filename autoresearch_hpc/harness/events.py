"""What the session tells the worker: one JSON object a line, on a pipe that the worker opened.

    {"event": "warmup"}                    the first warm-up batch was asked for: compilation begins
    {"event": "clock"}                     the training clock has started
    {"event": "stopped"}                   the clock has stopped; what follows is the writing of the checkpoint
    {"event": "saved", "steps", "tokens", "num_params", "peak_vram_mb", "mfu"}
    {"event": "diverged", "step"}
    {"event": "summary"}                   the script is done

No event carries a time: the worker stamps them with its own clock. `mfu` is a share of 1, null where it is unknown.
"""

import json
import os

EVENTS_FD_VARIABLE = "AUTORESEARCH_EVENTS_FD"


class Events:
    """The writing end. Without a pipe (a script run by hand) nothing is written."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    @classmethod
    def from_environment(cls) -> "Events":
        text = os.environ.get(EVENTS_FD_VARIABLE)
        return cls(int(text) if text else None)

    def emit(self, event: str, **fields: int | float | None) -> None:
        if self._fd is None:
            return
        line = json.dumps({"event": event, **fields}, allow_nan=False) + "\n"
        os.write(self._fd, line.encode())  # far below PIPE_BUF: lines never interleave
