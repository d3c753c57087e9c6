"""Work in threads that nobody has to wait for: a controller that stops leaves them behind."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

__all__ = ["Task", "side_by_side"]

T = TypeVar("T")
_TICK_S = 0.1


class Task(Generic[T]):
    """A call that has begun in a thread of its own."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._done = threading.Event()
        self._value: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._value.append(self._function())
        except BaseException as error:  # noqa: BLE001 - raised again where the value is waited for
            self._error = error
        finally:
            self._done.set()

    def wait(self, tick: Callable[[], None] = lambda: None) -> T:
        """What the call returned, or raises what it raised; `tick` is called meanwhile and may raise."""
        while not self._done.wait(_TICK_S):
            tick()
        if self._error is not None:
            raise self._error
        return self._value[0]


def side_by_side(functions: Sequence[Callable[[], T]], at_once: int) -> list[T]:
    """What the calls return, in order, with at most so many at a time. Raises what the first failed one raised."""
    slots = threading.Semaphore(at_once)

    def one(function: Callable[[], T]) -> T:
        with slots:
            return function()

    tasks = [Task(partial(one, function)) for function in functions]
    return [task.wait() for task in tasks]
