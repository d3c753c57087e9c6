"""Processes under a worker: their pipes, deadlines and ends. Signals are the worker's business: see test_worker."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoresearch_hpc.trial.children import Child, StopFlag, Stopped

PIPE = "import os, sys, time; pipe = int(os.environ['PIPE']); say = lambda s: os.write(pipe, s.encode())\n"
Start = Callable[..., Child]


class Quiet(StopFlag):
    """A flag without signal handlers, which would be this process's."""

    def __init__(self) -> None:
        self.reason, self.timed_out = None, False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children: list[Child] = []

    def start(code: str, **settings: Any) -> Child:
        settings = {"fd_variable": "PIPE", **settings}
        env = {**os.environ, **settings.pop("env", {})}
        command = [sys.executable, "-S", "-c", PIPE + code]
        children.append(Child(command, log=tmp_path / "the log", env=env, cwd=tmp_path, **settings))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.kill()


def collect(child: Child, limit_s: float = 10.0) -> list[Any]:
    """All events until the child's end."""
    found: list[Any] = []
    child.wait(lambda event: bool(found.append(event)), limit_s, Quiet())
    return found


def test_events_in_order_however_they_are_cut(start: Start) -> None:
    child = start("""
text = '{"n": 0}\\n{"n": 1}\\n{"n": 2}\\n'
for c in text: say(c); time.sleep(0.002)
""")
    assert collect(child) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert child.process.returncode == 0


def test_what_came_behind_the_awaited_event_is_the_next_waits(start: Start) -> None:
    child = start("""say('{"e": "clock"}\\n{"e": "step"}\\n{"e": "saved"}\\n{"e": "late"}\\n')""")
    assert child.wait(lambda event: event["e"] == "clock", 10, Quiet())
    child.process.wait()
    seen: list[str] = []
    assert child.wait(lambda event: (seen.append(event["e"]), event["e"] == "saved")[1], 10, Quiet())
    assert seen == ["step", "saved"]
    assert collect(child) == [{"e": "late"}]


def test_the_last_words_of_a_child_are_heard(start: Start) -> None:
    child = start("""
import fcntl; fcntl.fcntl(pipe, 1031, 1 << 20)
for n in range(9000): say('{"n": %d, "pad": "%s"}\\n' % (n, "x" * 80))
""")
    child.process.wait()
    assert [event["n"] for event in collect(child)] == list(range(9000))


def test_noise_is_skipped_and_memory_bounded(start: Start) -> None:
    child = start("""
say('{"n": 1}\\n'); os.write(pipe, b'\\xff\\xfe\\n\\n[1]\\n3\\nnull\\n"x"\\n')
for _ in range(200): os.write(pipe, b'y' * 65536)
say('\\n{"n": 2}\\n'); say('[' * 30000 + '\\n'); say('{"n": 3}\\n{"torn": ')
""")
    assert collect(child) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert len(child._partial) < 200_000


def test_a_line_that_never_ends_takes_no_memory(start: Start) -> None:
    child = start("for _ in range(400): os.write(pipe, b'y' * 65536)")
    assert collect(child) == []
    assert len(child._partial) < 200_000


def test_a_wait_ends_in_time(start: Start) -> None:
    child = start("time.sleep(60)")
    begun = time.monotonic()
    assert not child.wait(lambda event: True, 0.2, Quiet())
    assert 0.2 <= time.monotonic() - begun < 1
    assert child.running


def test_a_child_that_closed_its_pipe_is_still_waited_for_without_spinning(start: Start) -> None:
    child = start("os.close(pipe); time.sleep(0.5)")
    cpu = time.process_time()
    assert not child.wait(lambda event: True, 10, Quiet())
    assert child.process.returncode == 0
    assert time.process_time() - cpu < 0.25


def test_a_child_is_gone_though_what_it_left_holds_the_pipe_and_floods_it(start: Start) -> None:
    child = start("""
if os.fork() == 0:
    try:
        while True: os.write(pipe, b'{}\\n' * 1000)
    except OSError: os._exit(0)
""")
    begun = time.monotonic()
    assert not child.wait(lambda event: False, 20, Quiet())
    assert time.monotonic() - begun < 5


def test_a_stop_is_noticed_while_waiting(start: Start) -> None:
    child, stop = start("say('{}\\n'); time.sleep(60)"), Quiet()

    def until(event: dict[str, Any]) -> bool:
        stop.reason = "told so"
        return False

    begun = time.monotonic()
    with pytest.raises(Stopped, match="told so"):
        child.wait(until, 20, stop)
    assert time.monotonic() - begun < 2


def test_a_line_for_the_child(start: Start, tmp_path: Path) -> None:
    child = start("print(sys.stdin.readline().upper(), sys.stdin.read() == '')", stdin=True)
    child.tell("go")
    assert child.process.stdin
    child.process.stdin.close()
    child.wait(lambda event: True, 10, Quiet())
    assert (tmp_path / "the log").read_text() == "GO\n True\n"


def test_a_child_that_is_gone_hears_nothing(start: Start) -> None:
    child = start("pass", stdin=True)
    child.process.wait()
    child.tell("go")
    child.tell("go")


def test_the_pipe_may_travel_as_an_argument(start: Start) -> None:
    child = start(
        """os.write(int(sys.argv[2]), b'{"as": "%s"}\\n' % sys.argv[1].encode())""",
        fd_variable=None,
        fd_argument="--fd",
        env={"PIPE": "0"},
    )
    assert collect(child) == [{"as": "--fd"}]


def test_no_descriptor_is_left(start: Start) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        child = start("time.sleep(60)", stdin=True)
        child.kill()
        assert child.process.returncode == -9
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_output_of_two_children_is_kept(start: Start, tmp_path: Path) -> None:
    for word in ("one", "two"):
        child = start(f"print({word!r}); print('error', file=sys.stderr)")
        child.process.wait()
        child.kill()  # who ends a child has its whole log
    assert sorted((tmp_path / "the log").read_text().split()) == ["error", "error", "one", "two"]
