"""Signals that ask a controller to stop: noted when they come, obeyed where nothing is half done."""

import signal
from typing import Self

from autoresearch_hpc.errors import InterruptedRun


class StopRequest:
    """Inside its `with` block the first signal is noted; a second one of the same kind acts as it always did."""

    def __init__(self, remedy: str) -> None:
        self.signal: signal.Signals | None = None
        self._remedy = remedy
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: object) -> None:
        self.signal = signal.Signals(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def reason(self) -> str:
        """The signal's name; nothing where none has come."""
        return self.signal.name if self.signal else ""

    def check(self) -> None:
        """Raises InterruptedRun once a signal has come."""
        if self.signal is not None:
            raise InterruptedRun(f"stopped by {self.reason}", self._remedy)
