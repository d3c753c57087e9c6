"""One controller a run: real processes that want the same lock."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoresearch_hpc.errors import RunLockedError
from autoresearch_hpc.lock import RunLock, holder

HOLDER = """
import sys, time
from pathlib import Path
from autoresearch_hpc.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "my 'run'"
    folder.mkdir()
    return folder / "controller.lock"


@pytest.fixture
def other(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_with_the_holders_host_and_pid(path: Path, other: "subprocess.Popen[str]") -> None:
    with pytest.raises(RunLockedError) as caught:
        RunLock(path)
    text = str(caught.value)
    assert str(path.parent) in text
    assert socket.gethostname() in text
    assert str(other.pid) in text
    assert text.endswith("; wait for it, or stop it first")
    assert caught.value.exit_code == 2
    assert json.loads(holder(path) or "") == {"host": socket.gethostname(), "pid": other.pid}


def test_it_is_free_once_the_holder_is_killed(path: Path, other: "subprocess.Popen[str]") -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert holder(path) is None
    with RunLock(path):
        assert str(os.getpid()) in (holder(path) or "")


def test_it_is_free_once_the_holder_has_left(path: Path, other: "subprocess.Popen[str]") -> None:
    other.communicate("")
    assert path.read_text() == "", "a name that stays would be taken for the next holder's"
    with RunLock(path) as lock:
        lock.release()
        lock.release()
        assert holder(path) is None


def test_nobody_holds_what_is_not_there(path: Path) -> None:
    assert holder(path) is None
    assert not path.exists(), "asking makes nothing"


def test_asking_needs_only_the_right_to_read(path: Path) -> None:
    with RunLock(path):
        path.chmod(0o444)
        assert str(os.getpid()) in (holder(path) or "")


def test_asking_never_keeps_a_controller_from_starting(path: Path) -> None:
    path.touch()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            holder(path)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(50):
            RunLock(path).release()
    finally:
        done.set()
        for asker in askers:
            asker.join()


def test_a_refusal_does_not_take_long(path: Path) -> None:
    with RunLock(path):
        begun = time.monotonic()
        with pytest.raises(RunLockedError):
            RunLock(path)
        assert time.monotonic() - begun < 2
    RunLock(path).release()
