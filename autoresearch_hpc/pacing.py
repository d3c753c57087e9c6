"""When a submission may be tried again, and how large: back-off while Slurm has no room or does not answer."""

import logging
import time
from collections.abc import Callable

from autoresearch_hpc.errors import ClusterError, NoAnswerError, NoRoomError

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
_LOOK_S = 1.0


class Pacing:
    """Remembers how the last submissions fared.

    `size` is the most trials to submit at once, None for any number. Where a limit refuses an array, half of it is
    tried at once, and so on; where not even one trial fits, the next try waits until one of ours has ended, or a
    growing pause.
    """

    def __init__(self, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s, self._clock = patience_s, clock
        self._next_at, self._pause_s = clock(), _FIRST_PAUSE_S
        self._unanswered_since: float | None = None
        self._told: str | None = None
        self.size: int | None = None

    @property
    def due(self) -> bool:
        return self._clock() >= self._next_at

    def accepted(self) -> None:
        """A submission went in, or was found."""
        self._next_at, self._pause_s = self._clock(), _FIRST_PAUSE_S
        self._unanswered_since = self._told = None
        self.size = 2 * self.size if self.size else None

    def refused(self, count: int, error: NoRoomError) -> None:
        """There is no room for so many."""
        self._tell(f"waiting for room in the queue: {error}")
        self._unanswered_since = None
        self.size = count // 2
        if self.size == 0:
            self.size = 1
            self._wait()

    def one_ended(self) -> None:
        """One of our trials has made room."""
        if self.size is not None and not self.due:
            self._next_at = self._clock()

    def unanswered(self, error: NoAnswerError) -> None:
        """Nobody knows whether it went in. Raises ClusterError where that has been so for too long."""
        now = self._clock()
        self._tell(f"{error}; trying again")
        self._unanswered_since = now if self._unanswered_since is None else self._unanswered_since
        if now - self._unanswered_since > self._patience_s:
            minutes = self._patience_s / 60
            raise ClusterError(f"Slurm has not answered for {minutes:.0f} min: {error}", "start again when it does")
        self._wait()

    def look_again(self) -> None:
        """It was not found, but may still be on its way."""
        self._next_at = self._clock() + _LOOK_S

    def _wait(self) -> None:
        self._next_at = self._clock() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _tell(self, message: str) -> None:
        if message != self._told:
            self._told = message
            _log.warning("%s", message)
