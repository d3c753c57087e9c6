"""What asks a controller to stop, and what does not."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from autoresearch_hpc.errors import InterruptedRun, RunLockedError
from autoresearch_hpc.stopping import StopRequest, outliving_the_terminal


def test_a_signal_is_noted_and_obeyed_when_asked() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest("resume with tag=x") as stop:
        stop.check()
        assert stop.reason == ""
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(InterruptedRun, match="stopped by SIGTERM; resume with tag=x"):
            stop.check()
        assert (stop.signal, stop.reason) == (signal.SIGTERM, "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_acts_at_once() -> None:
    with StopRequest("") as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_request_file_is_as_good_as_ctrl_c(tmp_path: Path) -> None:
    request = tmp_path / "my 'run'" / "cancel-request"
    request.parent.mkdir()
    stop = StopRequest("resume with tag=x", request=request)
    stop.check()
    request.write_text(json.dumps({"host": "login2"}))
    stop.check()  # looked at once a second at most
    time.sleep(1.05)
    with pytest.raises(InterruptedRun, match="stopped by a cancel request from login2; resume with tag=x"):
        stop.check()
    assert (stop.signal, stop.reason) == (signal.SIGINT, "a cancel request from login2")
    assert not request.exists(), "obeyed"
    with pytest.raises(InterruptedRun, match="stopped by a cancel request from login2"):
        stop.check()


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_request_that_says_nothing_is_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "request").write_text(text)
    with pytest.raises(InterruptedRun, match="stopped by a cancel request from an unknown host"):
        StopRequest("", request=tmp_path / "request").check()


def test_a_run_that_has_become_anothers_is_left(tmp_path: Path) -> None:
    def fence() -> None:
        raise RunLockedError("lost")

    with pytest.raises(RunLockedError, match="lost"):
        StopRequest("", fence=fence).check()


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_hangup_ends_nothing_and_nohup_stays_nohup(before: signal.Handlers) -> None:
    restore = signal.signal(signal.SIGHUP, before)
    try:
        with outliving_the_terminal():
            assert (signal.getsignal(signal.SIGHUP) is signal.SIG_IGN) == (before is signal.SIG_IGN)
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is before
    finally:
        signal.signal(signal.SIGHUP, restore)
