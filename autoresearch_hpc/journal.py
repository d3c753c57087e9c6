"""The append-only log of a run: one JSON object a line, `{"seq": 7, "at": "2026-01-31T12:00:00+00:00", "event": …}`.

The only truth for resume. An event is flushed and fsynced before `append` returns, so that what it announces may
happen; where that fails it is taken back. A torn last line is the mark of a crash and is dropped; any other damage is
a JournalError.
"""

import contextlib
import gc
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from autoresearch_hpc.errors import JournalError
from autoresearch_hpc.files import parse_json_object, storing, sync_directory, write_all

REMEDY = "restore the file from a backup, or start a new run with another tag="


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line. `seq` counts from 0, `at` is UTC, ISO 8601."""

    seq: int
    at: str
    event: str
    data: Mapping[str, Any]


class Journal:
    """The journal opened by the one controller that writes it.

    The events that are already there are handed to `hear`, one by one, so that they are never in memory all at once;
    without it they are kept in `events`.
    """

    def __init__(self, path: Path, hear: Callable[[Event], None] | None = None) -> None:
        """Open or create. Raises JournalError on damage before the last line, StorageError as `append` does."""
        self.events: list[Event] = []
        self._path, self._next, self._length = path, 0, 0
        self._broken: OSError | None = None
        self._fd = -1
        for event, length in _lines(path) if path.exists() else ():
            (hear or self.events.append)(event)
            self._next, self._length = event.seq + 1, self._length + length
        with storing(path):
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                os.ftruncate(self._fd, self._length)
                sync_directory(path.parent)
            except BaseException:
                self.close()
                raise

    def append(self, event: str, **data: object) -> Event:
        """Write one event durably. Raises OSError (StorageError) where it could not be: then it has not happened.

        After that nothing more is written: who opens the journal again sees what was durable.
        """
        if clash := {"seq", "at"} & data.keys():
            raise ValueError(f"an event's own words: {', '.join(sorted(clash))}")
        record = Event(seq=self._next, at=datetime.now(UTC).isoformat(timespec="microseconds"), event=event, data=data)
        line = json.dumps({"seq": record.seq, "at": record.at, "event": event, **data}, allow_nan=False)
        self._write(line.encode() + b"\n")
        self._next += 1
        return record

    def _write(self, line: bytes) -> None:
        if self._broken:
            raise self._broken
        try:
            with storing(self._path):
                write_all(self._fd, line)
                os.fsync(self._fd)
        except OSError as error:
            self._broken = error
            self._roll_back()
            raise
        self._length += len(line)

    def _roll_back(self) -> None:
        """Leave no part of a line, if the filesystem lets us; else the next controller drops it."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._length)
            os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: Path) -> list[Event]:
    """The complete events of a journal that a controller may be writing. Raises JournalError, and OSError as `open`."""
    return list(stream(path))


def stream(path: Path) -> Iterator[Event]:
    """What `read` gives, one by one, for who need not have all of a long run in memory at once."""
    return (event for event, _ in _lines(path))


def _lines(path: Path) -> Iterator[tuple[Event, int]]:
    """The complete events, each with the length of its line in bytes."""
    with path.open("rb") as file, _no_collections():
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                return
            yield _event(path, number, line[:-1]), len(line)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """What a journal becomes is large and has no cycles: looking for some takes a quarter of the time."""
    wanted = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if wanted:
            gc.enable()


def _event(path: Path, number: int, line: bytes) -> Event:
    try:
        data = parse_json_object(line.decode())
        seq, at, event = data.pop("seq"), data.pop("at"), data.pop("event")
        datetime.fromisoformat(at)
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(f"damaged journal: {path} line {number + 1}: {error}", REMEDY) from error
    if seq != number:
        raise JournalError(f"damaged journal: {path} line {number + 1} has seq {seq}", REMEDY)
    return Event(seq=seq, at=at, event=event, data=data)
