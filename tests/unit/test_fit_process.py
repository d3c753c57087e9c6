"""Fits in a process of their own: what they answer, and what becomes of them when something dies."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_effects import FIVE, NOISE, results, space, surface

from autoresearch_hpc import effects
from autoresearch_hpc.effects import FitProcess
from autoresearch_hpc.errors import InterruptedRun, StorageError

OUTCOMES = results(FIVE, surface, seed=1)
UNKNOWN = "the effects of knobs are not known this time: "


@pytest.fixture
def fit() -> Iterator[FitProcess]:
    made = FitProcess(limit_s=60)
    yield made
    made.close()


def pid(fit: FitProcess) -> int:
    assert fit._process
    return fit._process.pid


def gone(number: int) -> bool:
    """Ended, whether or not somebody has asked for its status."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_it_answers_what_a_fit_here_would(fit: FitProcess) -> None:
    model = fit(OUTCOMES, space(), NOISE)
    assert model == effects.fit(OUTCOMES, space(), NOISE)
    assert model is not None
    first = pid(fit)
    assert fit([], space()) is None
    assert effects.worth_telling(OUTCOMES, space(), NOISE, fit) == model.effects
    assert pid(fit) == first, "one process for all"
    fit.close()
    assert gone(first)
    fit.close()


def test_its_libraries_stay_there() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_effects import *\n"
        "from autoresearch_hpc.effects import FitProcess\n"
        "fit = FitProcess()\n"
        "assert fit(results(FIVE, surface, 1), space(), NOISE)\n"
        "fit.close(); print(*sys.modules)\n"
    )
    words = [sys.executable, "-c", program, str(Path(__file__).parent)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert not done.stderr
    assert {"numpy", "scipy", "pandas", "statsmodels"}.isdisjoint(done.stdout.split())


def test_one_that_died_is_replaced(fit: FitProcess, caplog: pytest.LogCaptureFixture) -> None:
    fit.start()
    first = pid(fit)
    os.kill(first, signal.SIGKILL)
    before = fit(OUTCOMES, space(), NOISE)
    os.kill(pid(fit), signal.SIGSTOP)
    fit._check_stop = lambda: os.kill(pid(fit), signal.SIGKILL) if pid(fit) == second else None
    second = pid(fit)
    assert fit(OUTCOMES, space(), NOISE) == before is not None, "killed in the midst of a request"
    assert not caplog.records


@pytest.mark.parametrize(
    ("program", "cause"),
    [
        ("#!/bin/sh\nexit 7", "the process that estimates them ended with status 7"),
        ("#!/bin/sh\nkill -KILL $$", "the process that estimates them was ended by SIGKILL"),
        ("", "no process to estimate them: "),
    ],
)
def test_where_it_cannot_live_one_line_says_so(
    fit: FitProcess, program: str, cause: str, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    python = tmp_path / "python"
    if program:
        python.write_text(program)
        python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    fit.start()
    assert effects.worth_telling(OUTCOMES, space(), NOISE, fit) is None
    [told] = caplog.records
    assert told.levelno == logging.WARNING
    assert told.getMessage().startswith(f"{UNKNOWN}{cause}")


def test_what_goes_wrong_inside_is_told(fit: FitProcess, caplog: pytest.LogCaptureFixture) -> None:
    assert fit(OUTCOMES, space(), "loud") is None  # type: ignore[arg-type]
    assert caplog.messages == [f"{UNKNOWN}AttributeError: 'str' object has no attribute 'known'"]
    assert fit(OUTCOMES, space(), NOISE) is not None


def test_one_that_hangs_is_ended(fit: FitProcess, caplog: pytest.LogCaptureFixture) -> None:
    before = fit(OUTCOMES, space(), NOISE)
    first = pid(fit)
    os.kill(first, signal.SIGSTOP)
    fit._limit_s = 0.5
    assert fit(OUTCOMES * 1000, space(), NOISE) is None, "more than a pipe holds"
    assert caplog.messages == [f"{UNKNOWN}no answer within 0.5 s"]
    assert gone(first)
    fit._limit_s = 60
    assert fit(OUTCOMES, space(), NOISE) == before


@pytest.mark.parametrize("reason", [InterruptedRun("stopped", "resume"), StorageError("lease", errno.ENOSPC)])
def test_a_stop_is_obeyed_while_it_is_waited_for(fit: FitProcess, reason: Exception) -> None:
    fit.start()
    first = pid(fit)
    os.kill(first, signal.SIGSTOP)

    def stop() -> None:
        raise reason

    fit._check_stop = stop
    with pytest.raises(type(reason)):
        fit(OUTCOMES, space(), NOISE)
    assert gone(first)


@pytest.mark.parametrize("moment", ["idle", "importing", "at work"])
def test_it_ends_with_its_controller_however_that_ends(moment: str) -> None:
    program = (
        "import random, sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from test_effects import *\n"
        "from autoresearch_hpc.effects import FitProcess\n"
        "fit = FitProcess(); fit.start()\n"
        "if sys.argv[2] != 'importing': fit(results(FIVE, surface, 1), space(), NOISE)\n"
        "print(fit._process.pid, flush=True)\n"
        "if sys.argv[2] == 'at work':\n"  # for a minute
        "    more = {f'K{i}': KnobDomain(type=KnobType.float, low=0.0, high=1.0) for i in range(100)}\n"
        "    rows = [{name: random.random() for name in more} for _ in range(6000)]\n"
        "    fit([outcome(row, random.random(), i) for i, row in enumerate(rows)], space(0, **more))\n"
        "time.sleep(600)\n"
    )
    words = [sys.executable, "-c", program, str(Path(__file__).parent), moment]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as controller:
        assert controller.stdout
        child = int(controller.stdout.readline())
        if moment == "at work":
            used = ticks(child)
            while ticks(child) < used + 50:
                time.sleep(0.05)
        assert not gone(child)
        controller.kill()
    deadline = time.monotonic() + 10
    while not gone(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ticks(number: int) -> int:
    """Hundredths of a second that a process has computed."""
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[11])
