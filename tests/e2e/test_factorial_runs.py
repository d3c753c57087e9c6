"""Designed waves in a whole search on this machine, killed and resumed on the way."""

import contextlib
import csv
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import scenarios
from toy import Toy

from autoresearch_hpc.report.__main__ import main as make_report

pytestmark = pytest.mark.usefixtures("no_slurm")

DRIVER = """\
import runpy, sys
try: runpy.run_module("autoresearch_hpc", run_name="__main__", alter_sys=True)
finally: print("imported", *sys.modules)
"""
SCRIPT = """\
import math, os, random
RATE = 0.1
WIDTH = 8
BATCH = 16
KIND = "a"
luck = random.Random(int(os.environ["AUTORESEARCH_SEED"])).gauss(0, 0.002)
rate, batch = math.log2(RATE / 0.1), math.log2(BATCH / 16)
print("loss:", 1 + 0.02 * (rate - 0.7 - batch) ** 2 - 0.01 * (WIDTH - 8) + 0.01 * batch ** 2 + luck)
"""

PLAN = """\
# @package _global_
defaults:
  - override /task: command
  - override /agent: factorial
  - override /decide: significant
plan: {{name: waves, k: 9, max_rounds: 2}}
agent: {{design: {{centre_points: 1}}}}
space:
  knobs:
    RATE: {{type: float, low: 0.025, high: 0.4, log: true}}
    WIDTH: {{type: int, low: 4, high: 12}}
    BATCH: {{type: pow2, low: 4, high: 64}}
    KIND: {{choices: [a, b]}}
task:
  script: fit.py
  editable: [fit.py]
  command: {python} -S fit.py
  train_s: 20
  grace_s: 10
  startup_limit_s: 10
  metric: {{name: loss, regex: 'loss: (\\S+)'}}
"""


@pytest.fixture
def waves(toy: Callable[..., Toy]) -> Toy:
    made = toy(cluster="local", overrides=("cluster.max_parallel=2",))
    made.write("fit.py", SCRIPT)
    made.write("conf/round/toy.yaml", PLAN.format(python=sys.executable))
    made.commit()
    return made


def test_waves_find_what_matters_and_tell_it(waves: Toy, caplog: pytest.LogCaptureFixture) -> None:
    out, _ = waves.search("waves").finish()
    run = waves.run_dir("waves")
    assert "waves/effects.csv" in out

    events = waves.journal("waves")
    proposed = [event for event in events if event["event"] == "round.proposed"]
    first = list(proposed[1]["proposals"].values())
    *corners, centre = first
    assert len(corners) == 8
    assert {p["knobs"]["RATE"] for p in corners} == {0.05, 0.2}
    assert {p["reasoning"] for p in corners} == {"two-level design 2^(4-1) IV of RATE, WIDTH, BATCH, KIND in 8 runs"}
    assert centre["knobs"] == {"RATE": 0.1, "WIDTH": 8, "BATCH": 16, "KIND": "a"}
    second = list(proposed[2]["proposals"].values())
    assert len(second) == 9
    assert all(p["origin"] == "factorial" for p in second)
    assert "where the effects say that it is better" in second[0]["reasoning"]

    rows = csv.DictReader((run / "effects.csv").read_text().splitlines())
    told = {row["effect"]: row for row in rows}
    assert float(told["WIDTH"]["estimate_high"]) < 0  # wider is better, and surely so
    assert told["WIDTH"]["term"] == "main"
    assert int(told["WIDTH"]["low"]) < 8 < int(told["WIDTH"]["high"])
    assert float(told["KIND"]["p"]) > 0.001
    analysed = [event for event in events if event["event"] == "round.analysed"]
    assert [event["round"] for event in analysed] == [1, 2]

    page = (run / "report.html").read_text()
    assert "<h2>Effects</h2>" in page
    assert "RATE:BATCH" in page
    assert page.count("data:image/png;base64,") == 2
    before = (run / "effects.csv").read_bytes(), (run / "effects.png").read_bytes()
    (run / "effects.png").unlink()
    caplog.set_level(logging.WARNING)
    assert make_report([str(run)]) == 0
    assert ((run / "effects.csv").read_bytes(), (run / "effects.png").read_bytes()) == before

    start, *_, best = [event["incumbent"]["value"] for event in events if event["event"] == "round.judged"]
    assert best < start - 0.02  # of 0.05 that there are


def test_killed_between_waves_it_goes_on_the_same(waves: Toy) -> None:
    """A controller that comes back tells the same effects and proposes what the first would have."""
    killed = ("before", "round.analysed"), ("after", "round.analysed"), ("before", "round.proposed")
    for moment, event in killed:
        scenarios.killed_at(waves, "killed", moment, event).finish(-signal.SIGKILL)
    waves.search("killed").finish()
    waves.search("whole").finish()
    told = [
        {
            event["round"]: event
            for event in waves.journal(tag)
            if event["event"] in ("round.proposed", "round.analysed")
        }
        for tag in ("killed", "whole")
    ]
    assert told[0].keys() == told[1].keys() == {0, 1, 2}
    assert told[0][2]["effects"] == told[1][2]["effects"]
    proposed = [
        [event["proposals"] for event in waves.journal(tag) if event["event"] == "round.proposed"]
        for tag in ("killed", "whole")
    ]
    assert proposed[0] == proposed[1]
    assert len(proposed[0]) == 3


def fitting(toy: Toy) -> list[int]:
    """The processes that estimate effects for this repository's controllers."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            named = b"autoresearch_hpc.effects" in (process / "cmdline").read_bytes().split(b"\0")
            if named and (process / "cwd").resolve() == toy.root.resolve():
                found.append(int(process.name))
    return found


def analysed(toy: Toy, tag: str) -> list[int]:
    return [event["round"] for event in toy.journal(tag) if event["event"] == "round.analysed"]


def test_a_controller_stays_small_and_replaces_the_process_that_died(waves: Toy) -> None:
    run = waves.start("-c", DRIVER, *waves.words("small"), module="")
    scenarios.wait(lambda: fitting(waves), run)
    [process] = fitting(waves)
    os.kill(process, signal.SIGKILL)
    out, err = run.finish()
    assert "not known this time" not in err
    assert analysed(waves, "small") == [1, 2]
    second = [e for e in waves.journal("small") if e["event"] == "round.proposed"][2]["proposals"]
    assert any("where the effects say that it is better" in p["reasoning"] for p in second.values())
    names = set(out.splitlines()[-1].split())
    assert "autoresearch_hpc.controller" in names
    assert {"torch", "pandas", "statsmodels"}.isdisjoint(names)
    assert not fitting(waves)


def test_nothing_stays_of_a_controller_that_is_killed(waves: Toy) -> None:
    run = waves.search("gone")
    scenarios.wait(lambda: fitting(waves), run)
    run.kill()
    scenarios.wait(lambda: not fitting(waves), None)
    waves.search("gone").finish()
    assert analysed(waves, "gone") == [1, 2]
    assert not fitting(waves)
