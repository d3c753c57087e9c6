"""One controller a run: real processes that want the same lock, and other nodes as far as one machine has them."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoresearch_hpc import lock as lock_module
from autoresearch_hpc.errors import RunLockedError
from autoresearch_hpc.lock import RunLock, holder

# `holds` until its input ends; tells what became of it. NO_FLOCK makes it a process on a filesystem without flock.
CHILD = """
import errno, fcntl, os, sys, time
from pathlib import Path
from autoresearch_hpc import lock
from autoresearch_hpc.errors import RunLockedError

if os.environ.get("NO_FLOCK"):
    def flock(*_):
        raise OSError(int(os.environ["NO_FLOCK"]), "Function not implemented")
    fcntl.flock = flock
path = Path(sys.argv[1])
if len(sys.argv) > 2:
    print("ready", flush=True)
while len(sys.argv) > 2 and not Path(sys.argv[2]).exists():
    time.sleep(0.001)
try:
    with lock.RunLock(path) as held:
        print("held", flush=True)
        for line in sys.stdin:
            held.verify()
            print("still", flush=True)
except RunLockedError as error:
    print(error, flush=True)
"""
FLOCK = pytest.mark.parametrize("flock", [True, False], ids=["flock", "no-flock"])


class Other:
    """Another process with the lock, or after it."""

    def __init__(self, path: Path, *, flock: bool = True, starting_gun: Path | None = None) -> None:
        words = [sys.executable, "-c", CHILD, str(path), *([str(starting_gun)] if starting_gun else [])]
        env = {**os.environ, "NO_FLOCK": "" if flock else str(errno.ENOSYS)}
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.pid = self.process.pid

    def says(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().rstrip("\n")

    def verify(self) -> str:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.says()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "my 'run' 5% é"
    folder.mkdir()
    return folder / "controller.lock"


@pytest.fixture
def another(path: Path) -> Iterator[Callable[..., Other]]:
    made: list[Other] = []

    def start(**settings: Any) -> Other:
        made.append(Other(path, **settings))
        return made[-1]

    yield start
    for one in made:
        one.end()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats of 0.2 s: what takes a minute takes a second."""
    for name, seconds in {"_BEAT_S": 0.2, "_STALE_S": 1.2, "_WATCH_S": 0.5, "_LOOK_S": 0.05}.items():
        monkeypatch.setattr(lock_module, name, seconds)


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)


def elsewhere(path: Path, *, age_s: float = 0.0, **changes: object) -> Path:
    """A lease as if of a controller on another host."""
    who = {"host": "node7", "pid": 77, "place": "another boot", "started": 5, "token": "x", "job": "4711", "since": ""}
    path.write_text(json.dumps({**who, **changes}))
    at = time.time() - age_s
    os.utime(path, (at, at))
    return path


def residue(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir() if p.name not in (path.name, "controller.flock"))


# on this host


@FLOCK
def test_the_second_is_refused_with_the_holders_host_and_pid(
    path: Path, another: Callable[..., Other], flock: bool, request: pytest.FixtureRequest
) -> None:
    other = another(flock=flock)
    assert other.says() == "held"
    if not flock:
        request.getfixturevalue("no_flock")
    begun = time.monotonic()
    with pytest.raises(RunLockedError) as caught:
        RunLock(path)
    assert time.monotonic() - begun < 2
    who = f"pid {other.pid} on {socket.gethostname()}"
    assert str(caught.value) == f"another controller works on {path.parent}: {who}; wait for it, or stop it first"
    assert caught.value.exit_code == 2
    assert str(holder(path)) == who
    assert other.verify() == "still"


@FLOCK
def test_it_is_free_once_the_holder_is_killed(path: Path, another: Callable[..., Other], flock: bool) -> None:
    other = another(flock=flock)
    assert other.says() == "held"
    other.end()
    assert json.loads(path.read_text())["pid"] == other.pid, "its lease is still there"
    assert holder(path) is None
    begun = time.monotonic()
    with RunLock(path) as lock:
        assert time.monotonic() - begun < 1
        held = holder(path)
        assert held
        assert held.pid == os.getpid()
        lock.verify()
    assert residue(path) == []


def test_a_killed_holder_that_nobody_has_reaped_is_dead(path: Path, another: Callable[..., Other]) -> None:
    other = another(flock=False)
    assert other.says() == "held"
    os.kill(other.pid, signal.SIGKILL)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    assert holder(path) is None
    RunLock(path).release()


@FLOCK
def test_a_stopped_holder_keeps_it(
    path: Path, another: Callable[..., Other], flock: bool, quick: None, request: pytest.FixtureRequest
) -> None:
    other = another(flock=flock)
    assert other.says() == "held"
    if not flock:
        request.getfixturevalue("no_flock")
    os.kill(other.pid, signal.SIGSTOP)
    os.utime(path, (1, 1))
    with pytest.raises(RunLockedError, match=f"pid {other.pid} "):
        RunLock(path)
    os.kill(other.pid, signal.SIGCONT)
    assert other.verify() == "still"


@FLOCK
def test_it_is_free_once_the_holder_has_left(
    path: Path, flock: bool, quick: None, request: pytest.FixtureRequest
) -> None:
    if not flock:
        request.getfixturevalue("no_flock")
    with pytest.raises(ZeroDivisionError), RunLock(path):
        print(1 / 0)
    assert not path.exists()
    assert holder(path) is None
    with RunLock(path) as lock:
        lock.release()
        lock.release()
        assert holder(path) is None
        time.sleep(0.3)
        assert not path.exists(), "its heart beats no more"
    assert path.with_suffix(".flock").read_text() == "", "a name that stays would be taken for the next holder's"


def test_a_process_that_has_the_pid_of_a_dead_holder_is_another(path: Path, no_flock: None) -> None:
    with RunLock(path):
        assert holder(path)
        ours = json.loads(path.read_text())
    path.write_text(json.dumps({**ours, "started": ours["started"] - 1}))
    assert holder(path) is None
    RunLock(path).release()


def test_a_pid_of_another_container_says_nothing(path: Path, no_flock: None, quick: None) -> None:
    """Two containers on one host have the same boot and host name, and each its own process 1."""
    boot = lock_module._place().split(" ")[0]
    elsewhere(path, place=f"{boot} pid:[1]", host=socket.gethostname(), pid=999_999)
    assert holder(path), "not found here, but it beat a moment ago"
    begun = time.monotonic()
    with RunLock(path):
        assert time.monotonic() - begun > 1


@pytest.mark.parametrize("left", ["", '{"host": "gone", "pid": 1}', "[1, 2]", "tor"])
def test_what_is_no_lease_is_nobodys(path: Path, left: str) -> None:
    path.write_text(left)
    assert holder(path) is None
    begun = time.monotonic()
    with RunLock(path):
        assert time.monotonic() - begun < 1
        assert holder(path)


# asking


def test_nobody_holds_what_is_not_there(path: Path) -> None:
    assert holder(path) is None
    assert list(path.parent.iterdir()) == [], "asking makes nothing"


def test_asking_needs_only_the_right_to_read(path: Path) -> None:
    with RunLock(path):
        path.chmod(0o444)
        path.parent.chmod(0o555)
        before = [(p.name, p.stat().st_mtime_ns) for p in sorted(path.parent.iterdir())]
        try:
            assert str(os.getpid()) in str(holder(path))
            assert [(p.name, p.stat().st_mtime_ns) for p in sorted(path.parent.iterdir())] == before
        finally:
            path.parent.chmod(0o755)


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


# another host


def test_a_holder_elsewhere_that_beats_is_refused_as_soon_as_it_does(path: Path, quick: None) -> None:
    elsewhere(path, age_s=1000)
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.2):
            os.utime(path)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        begun = time.monotonic()
        with pytest.raises(RunLockedError, match=r"works on .*: pid 77 on node7, Slurm job 4711; wait for it"):
            RunLock(path)
        assert time.monotonic() - begun < 0.5
        assert str(holder(path)) == "pid 77 on node7, Slurm job 4711"
    finally:
        done.set()
        heart.join()
    assert residue(path) == []


@pytest.mark.parametrize(("age_s", "least_s", "most_s"), [(0.0, 1.1, 1.8), (1000, 0.5, 1.0), (-1000, 1.1, 1.8)])
def test_a_holder_elsewhere_that_beats_no_more_is_followed(
    path: Path, quick: None, caplog: pytest.LogCaptureFixture, age_s: float, least_s: float, most_s: float
) -> None:
    """After a minute without a beat; also where the other host's clock is ahead. What looks old is watched, too."""
    elsewhere(path, age_s=age_s)
    assert (holder(path) is None) == (age_s > 100)
    begun = time.monotonic()
    with caplog.at_level("INFO"), RunLock(path) as lock:
        assert least_s <= time.monotonic() - begun < most_s
        lock.verify()
        held = holder(path)
        assert held
        assert held.pid == os.getpid()
    watching, taking = [record.message for record in caplog.records]
    assert re.fullmatch(r".*: watching for a sign of life of pid 77 on node7, Slurm job 4711, \d s at most", watching)
    assert re.fullmatch(r".*: taking over from pid 77 on node7, Slurm job 4711: no sign of life for 1 s", taking)
    assert residue(path) == []


def test_a_holder_elsewhere_that_leaves_is_followed_at_once(path: Path, quick: None) -> None:
    elsewhere(path)
    threading.Timer(0.3, path.unlink).start()
    begun = time.monotonic()
    with RunLock(path):
        assert time.monotonic() - begun < 0.8


def test_who_watches_keeps_others_out(path: Path, another: Callable[..., Other]) -> None:
    elsewhere(path)
    first = another()
    time.sleep(1.5)
    assert first.process.poll() is None
    assert another().says().startswith(f"another controller works on {path.parent}: pid {first.pid} on ")


# without flock


def test_of_many_that_find_a_stale_lease_one_goes_on(path: Path, another: Callable[..., Other]) -> None:
    """And of many that find none. Nothing but the lease keeps them apart."""
    me = {"host": socket.gethostname(), "pid": os.getpid(), "place": lock_module._place(), "started": 1, "job": None}
    for round_ in range(20):
        if round_ % 4:
            path.write_text(json.dumps({**me, "token": f"dead {round_}"}))
        gun = path.with_name("start")
        racers = [another(flock=False, starting_gun=gun) for _ in range(8)]
        assert {racer.says() for racer in racers} == {"ready"}
        gun.touch()
        said = [racer.says() for racer in racers]
        assert said.count("held") == 1, said
        assert sum(text.startswith(f"another controller works on {path.parent}: pid ") for text in said) == 7
        winner = racers[said.index("held")]
        assert winner.verify() == "still"
        assert json.loads(path.read_text())["pid"] == winner.pid
        gun.unlink()
        for racer in racers:
            racer.end()
        assert residue(path) == []
        path.unlink()


@pytest.mark.parametrize("left", ["turn", "turns", "after"])
def test_processes_killed_while_they_took_over_are_followed(path: Path, no_flock: None, left: str) -> None:
    """One that had the right to follow but not yet the lease; two of that kind; one that had just put its lease."""
    dead = {"host": "here", "pid": os.getpid(), "place": lock_module._place(), "started": 1}
    path.write_text(json.dumps({**dead, "token": "a"}))
    second = lock_module._turn(path, lock_module._read(path))
    second.write_text(json.dumps({**dead, "token": "b"}))
    if left == "turns":
        lock_module._turn(path, lock_module._read(second)).write_text(json.dumps({**dead, "token": "c"}))
    if left == "after":
        second.rename(path)
        path.with_name(second.name).hardlink_to(path)
    assert holder(path) is None
    with RunLock(path) as lock:
        lock.verify()
        assert residue(path) == []


def test_who_slept_between_looking_and_taking_finds_another_in_place(path: Path, no_flock: None) -> None:
    """It saw a stale lease, slept, and goes on after another has taken over: the lease that it saw is not there."""
    path.write_text(json.dumps({"host": "here", "pid": 1, "place": lock_module._place(), "started": 1, "token": "a"}))
    stale = lock_module._chain(path)
    with RunLock(path) as lock:
        sleeper = object.__new__(RunLock)
        sleeper._path, sleeper._token, sleeper._text, sleeper._has_flock = path, "sleeper", "{}", False
        assert not sleeper._succeed(stale)
        lock.verify()
        assert residue(path) == []


@pytest.mark.parametrize("flock", [True, False])
def test_a_filesystem_without_hard_links(
    path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool, request: pytest.FixtureRequest
) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", no_link)
    if flock:
        RunLock(path).release()
        return
    request.getfixturevalue("no_flock")
    with pytest.raises(RunLockedError, match=r"neither flock nor hard links work in .*; set runs_dir="):
        RunLock(path)
    assert residue(path) == []


def test_no_flock_is_told_once(path: Path, no_flock: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), RunLock(path) as lock:
        lock.verify()
    assert [r.message for r in caplog.records] == [
        f"{path}: no flock (Operation not supported): the lease alone says whose run it is"
    ]


def test_an_error_of_the_disk_is_not_taken_for_a_missing_flock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        RunLock(path)


# losing it


def test_who_was_suspended_for_long_finds_that_it_has_lost_the_run(path: Path, quick: None, no_flock: None) -> None:
    lock = RunLock(path)
    lock.verify()
    elsewhere(path)
    with pytest.raises(RunLockedError) as caught:
        lock.verify()
    assert str(caught.value) == (
        f"this controller lost {path.parent} to another one: pid 77 on node7, Slurm job 4711; leave the run to that one"
    )
    lock.release()
    assert json.loads(path.read_text())["pid"] == 77, "the other one's lease stays"


def test_the_heart_notices_as_well(path: Path, quick: None, caplog: pytest.LogCaptureFixture) -> None:
    lock = RunLock(path)
    lock.raise_if_lost()
    elsewhere(path)
    time.sleep(0.5)
    with pytest.raises(RunLockedError, match=r"lost .* to another one: pid 77"):
        lock.raise_if_lost()
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1
    lock.release()


def test_a_suspended_holder_shows_a_sign_of_life_before_it_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_BEAT_S", 0.2)
    with RunLock(path) as lock:
        lock._released.set()  # no heartbeat, as if suspended
        lock._beat.join()
        os.utime(path, (1, 1))
        time.sleep(0.5)
        lock.verify()
        assert time.time() - path.stat().st_mtime < 5
        lock._released.clear()


def test_it_beats(path: Path, quick: None) -> None:
    with RunLock(path) as lock:
        os.utime(path, (1, 1))
        time.sleep(0.5)
        assert time.time() - path.stat().st_mtime < 5
        lock.verify()
