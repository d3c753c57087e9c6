"""Where a trial is and how long each phase took: phases.json for whoever watches, seconds for the result."""

import logging
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from autoresearch_hpc.files import write_json_atomic

_log = logging.getLogger(__name__)


class Phase(StrEnum):
    STARTUP = "startup"
    COMPILE = "compile"
    TRAIN = "train"
    EVAL = "eval"


class PhaseLog:
    """Phases follow each other; `total_s` counts from construction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = time.monotonic()
        self._starts: dict[Phase, float] = {}
        self._ends: dict[Phase, float] = {}
        self.enter(Phase.STARTUP)

    def enter(self, phase: Phase) -> None:
        """End the current phase and begin this one, once."""
        if phase in self._starts:
            return  # whoever says it twice
        now = time.monotonic()
        for begun in self._starts:
            self._ends.setdefault(begun, now)
        self._starts[phase] = now
        try:
            write_json_atomic(self._path, {"phase": phase.value, "at": datetime.now(UTC).isoformat()})
        except OSError as error:  # it is for who watches: no reason to end a training
            _log.warning("%s", error)

    def close(self, phase: Phase) -> None:
        """End this phase."""
        self._ends.setdefault(phase, time.monotonic())

    def seconds(self) -> dict[Phase, float]:
        """Seconds of each phase that began, the current one up to now."""
        now = time.monotonic()
        return {phase: round(self._ends.get(phase, now) - start, 3) for phase, start in self._starts.items()}

    @property
    def total_s(self) -> float:
        return round(time.monotonic() - self._begun, 3)
