"""A run's journal together with its replay: what is recorded is durable first, and then so."""

import threading
from collections.abc import Callable

from autoresearch_hpc.history import History
from autoresearch_hpc.journal import Journal


class Ledger:
    """The one way in which a run's state changes. `history` is always the journal's replay.

    `verify` raises where the run is another controller's by now.
    """

    def __init__(
        self, journal: Journal, verify: Callable[[], None] = lambda: None, history: History | None = None
    ) -> None:
        """`history` is given where it has heard all of the journal's past already."""
        self._journal, self.verify = journal, verify
        self._lock = threading.Lock()  # an agent thinks in a thread of its own, and notes what it spends
        self.history = history or History.replay(journal.events)

    def record(self, event: str, **data: object) -> None:
        """Journal the event, then apply it. Raises OSError where it could not be written: then it has not happened."""
        with self._lock:
            self.verify()
            self.history.apply(self._journal.append(event, **data))
