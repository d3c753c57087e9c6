"""Signals that ask a controller to stop."""

import os
import signal

import pytest

from autoresearch_hpc.errors import InterruptedRun
from autoresearch_hpc.stopping import StopRequest


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
