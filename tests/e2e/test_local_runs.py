"""Whole searches on this machine, from the command line: interrupted, killed, side by side."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ladder import check, climb
from toy import Toy, finish

pytestmark = pytest.mark.usefixtures("no_slurm")


def test_run_killed_around_every_event_trains_each_candidate_once(toy: Callable[..., Toy]) -> None:
    climb(toy(cluster="local", k=3, rounds=1, sleep_s=0.3), "ladder")


def test_trials_that_outlive_their_controller_are_adopted(toy: Callable[..., Toy]) -> None:
    """Killed from outside while trials run; the journal shows that nothing was submitted again."""
    repository = toy(cluster="local", k=2, sleep_s=3)
    first = repository.search("adopt", "cluster.max_parallel=2")
    repository.wait_for("adopt", "submit.done", 2)
    while len(repository.trained()) < 3:
        assert first.poll() is None
    first.kill()
    first.wait()
    finish(repository.search("adopt", "cluster.max_parallel=2"))
    check(repository, "adopt")
    assert len([line for line in repository.journal("adopt") if line["event"] == "submit.intent"]) == 2
