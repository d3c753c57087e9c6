"""The lock between preparations: waited for while its holder lives, taken over when it does not."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autoresearch_hpc.data import claim as claims
from autoresearch_hpc.data.claim import Claim


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "da ta 'ü'.lock"


def _left_behind(lock: Path, host: str, pid: int, started: int | None = 1) -> None:
    lock.write_text(json.dumps({"host": host, "pid": pid, "started": started, "id": "x"}))


def _enter_in_thread(lock: Path) -> tuple[threading.Thread, threading.Event]:
    entered = threading.Event()

    def enter() -> None:
        with Claim(lock):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    return thread, entered


def test_released_lock_leaves_nothing(lock: Path) -> None:
    with Claim(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert list(lock.parent.iterdir()) == []


def test_second_waits_and_says_for_whom(lock: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="autoresearch_hpc")
    with Claim(lock):
        thread, entered = _enter_in_thread(lock)
        assert not entered.wait(0.7)
    thread.join(10)
    assert entered.is_set()
    told = [record for record in caplog.messages if f"process {os.getpid()} on {socket.gethostname()}" in record]
    assert len(told) == 1


def test_lock_of_a_killed_process_is_taken_over_at_once(lock: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from autoresearch_hpc.data.claim import Claim
Claim(Path({str(lock)!r})).__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert lock.exists()
    started = time.monotonic()
    with Claim(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert time.monotonic() - started < 5


def test_pid_that_another_process_has_by_now(lock: Path) -> None:
    _left_behind(lock, socket.gethostname(), os.getpid(), started=1)
    with Claim(lock):
        pass


def test_other_host_is_believed_while_it_shows_signs_of_life(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_STALE_S", 1.0)
    _left_behind(lock, "elsewhere", 1)
    thread, entered = _enter_in_thread(lock)
    for _ in range(8):
        os.utime(lock)
        assert not entered.wait(0.25)
    assert entered.wait(10), "silent for a second: taken over"
    thread.join(10)
    assert list(lock.parent.iterdir()) == []


def test_half_written_lock_becomes_stale_too(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_STALE_S", 0.5)
    lock.touch()
    with Claim(lock):
        pass


def test_holder_shows_signs_of_life(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_TOUCH_S", 0.05)
    with Claim(lock):
        os.utime(lock, (0, 0))
        time.sleep(0.4)
        assert time.time() - lock.stat().st_mtime < 60
