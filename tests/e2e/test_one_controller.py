"""Whole controllers that want the same run where the filesystem has no flock, and one that lost its run."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import scenarios
from toy import Toy

pytestmark = pytest.mark.usefixtures("no_slurm")

NO_FLOCK = """
import errno, fcntl

def flock(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

fcntl.flock = flock
"""


@pytest.fixture
def no_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python that is started: as on a Lustre that is mounted without flock."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_FLOCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)


@pytest.fixture
def local(toy: Callable[..., Toy]) -> Callable[..., Toy]:
    def make(sleep_s: float) -> Toy:
        return toy(cluster="local", k=1, rounds=0, baseline="joined", sleep_s=sleep_s)

    return make


def test_two_controllers_without_flock(no_flock: None, local: Callable[..., Toy]) -> None:
    toy = local(3)
    first = toy.search("one")
    scenarios.until_training(toy, "one", first)
    assert "no flock (Function not implemented): the lease alone says whose run it is" in first.said()[1]
    _, err = toy.search("one").finish(2)
    last = err.splitlines()[-1]
    assert last.startswith(f"autoresearch_hpc: another controller works on {toy.run_dir('one')}: pid {first.pid} on ")
    assert last.endswith("; wait for it, or stop it first")
    first.kill()
    begun = time.monotonic()
    _, err = toy.search("one").finish()
    assert f"taking over from pid {first.pid} on " in err
    assert time.monotonic() - begun < 20
    scenarios.complete(toy, "one")
    assert not (toy.run_dir("one") / "controller.lock").exists()


def test_cancel_without_flock(no_flock: None, local: Callable[..., Toy]) -> None:
    toy = local(2)
    scenarios.cancelled(toy, "cancel", lambda: scenarios.local_workers(toy))


def test_eight_at_once_are_one(no_flock: None, local: Callable[..., Toy]) -> None:
    toy = local(1)
    first = toy.search("one")
    scenarios.until_training(toy, "one", first)
    first.kill()
    eight = [toy.search("one") for _ in range(8)]
    codes = sorted(command.process.wait(120) for command in eight)
    assert codes.count(2) <= 7
    assert set(codes) <= {0, 2}
    for command in eight:
        assert "Traceback" not in command.said()[1]
    scenarios.complete(toy, "one")


def test_a_request_from_before_cancels_nothing(local: Callable[..., Toy]) -> None:
    """Asked of a controller that was killed before it could obey."""
    toy = local(1)
    first = toy.search("one")
    scenarios.until_training(toy, "one", first)
    first.kill()
    (toy.run_dir("one") / "cancel-request").write_text("{}")
    toy.search("one").finish()
    scenarios.complete(toy, "one")
    assert not (toy.run_dir("one") / "cancel-request").exists()


def test_who_lost_the_run_leaves_it_alone(local: Callable[..., Toy]) -> None:
    """Another host has taken over while this one was suspended: it writes nothing more and cancels nothing."""
    toy = local(18)
    first = toy.search("one")
    scenarios.until_training(toy, "one", first)
    lease = toy.run_dir("one") / "controller.lock"
    theirs = {**json.loads(lease.read_text()), "host": "node7", "pid": 7, "place": "elsewhere", "token": "theirs"}
    lease.with_name("theirs").write_text(json.dumps(theirs))
    lease.with_name("theirs").rename(lease)
    before = (toy.run_dir("one") / "journal.jsonl").read_bytes()
    first.process.wait(15)
    _, err = first.finish(2)
    assert err.splitlines()[-1] == (
        f"autoresearch_hpc: this controller lost {toy.run_dir('one')} to another one: pid 7 on node7; "
        "leave the run to that one"
    )
    assert (toy.run_dir("one") / "journal.jsonl").read_bytes() == before
    assert json.loads(lease.read_text()) == theirs
    assert scenarios.local_workers(toy) > 0
    os.utime(lease, (1, 1))  # and that one has died since
    second = toy.search("one")
    _, err = second.finish()
    assert "watching for a sign of life of pid 7 on node7, 15 s at most" in err
    scenarios.complete(toy, "one")
