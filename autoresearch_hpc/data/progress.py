"""Progress of the stages: rich bars on a terminal, now and then a log line elsewhere, nothing when quiet."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)
_LINE_EVERY_S = 30.0


class Progress:
    """Shows one stage after another on standard error."""

    def __init__(self, quiet: bool = False) -> None:
        self._bars = sys.stderr.isatty() and not quiet
        self._level = logging.DEBUG if quiet else logging.INFO

    @contextmanager
    def stage(self, name: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
        """A stage of `total` units; the value is to be called with the units done since the last call."""
        started = time.monotonic()
        with self._shown(name, total, unit) as advance:
            done = 0.0

            def count(amount: float) -> None:
                nonlocal done
                done += amount
                advance(amount)

            yield count
        if not self._bars:
            _log.log(self._level, "%s: %s %s in %.1f s", name, _number(done), unit, time.monotonic() - started)

    @contextmanager
    def _shown(self, name: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
        if self._bars:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            amount = TextColumn("{task.completed:.0f} " + unit)
            columns = (TextColumn(f"{name:<9}"), BarColumn(), amount, TimeElapsedColumn(), TimeRemainingColumn())
            with Bars(*columns, console=Console(stderr=True)) as bars:
                task = bars.add_task(name, total=total)
                yield lambda step: bars.advance(task, step)
                bars.update(task, total=bars.tasks[0].completed)
            return
        done, shown_at = 0.0, time.monotonic()

        def line(step: float) -> None:
            nonlocal done, shown_at
            done += step
            if time.monotonic() - shown_at >= _LINE_EVERY_S:
                shown_at = time.monotonic()
                of = f" of about {_number(total)}" if total else ""
                _log.log(self._level, "%s: %s%s %s", name, _number(done), of, unit)

        yield line


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"
