"""Whole runs on a filesystem that fails: a disk that is really full, and system calls that fail at every journal event.

The disk is a small tmpfs in a mount namespace of its own, which ordinary users may make on most systems; this file is also
the program that runs there: `python test_storage.py SCENARIO FOLDER`.
"""

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
import scenarios
from toy import Command, Toy

from autoresearch_hpc.journal import read

pytestmark = pytest.mark.usefixtures("no_slurm")

_PAGE = 4096
PLAN = {"cluster": "local", "rounds": 0, "baseline": "joined", "k": 1, "overrides": ("cluster.max_parallel=2",)}


class Disk:
    """A tmpfs at `root`, and a file in it that takes the room."""

    def __init__(self, root: Path) -> None:
        self.root, self._ballast = root, root / "ballast"

    def fill(self, free_pages: int = 0) -> None:
        """Leave so many pages."""
        self.empty()
        status = os.statvfs(self.root)
        with self._ballast.open("wb") as file:
            file.truncate((status.f_bavail - free_pages) * status.f_frsize)
            os.posix_fallocate(file.fileno(), 0, (status.f_bavail - free_pages) * status.f_frsize)

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)


# what happens inside of the namespace


def controller(toy: Toy, disk: Disk) -> None:
    """Every further page of room takes the controller a little further; it always says what is full, and tears nothing."""
    named = set()
    for free_pages in range(60):
        disk.fill(free_pages)
        run = toy.search("full")
        while run.running and not toy.trained():
            time.sleep(0.02)
        if run.running:
            disk.empty()  # the rest is the trials'
            run.finish()
            break
        _, err = run.finish(3)
        last = err.splitlines()[-1]
        assert ": No space left on device; nothing was lost; make room (df, quota), then start the same" in last, err
        named.add(last.removeprefix("autoresearch_hpc: ").split(" cannot be written")[0])
        journal = toy.run_dir("full") / "journal.jsonl"
        if journal.exists():
            assert journal.read_bytes()[-1:] in (b"", b"\n"), "nothing torn"
    else:
        raise AssertionError(f"never trained: {named}")
    assert {str(toy.run_dir("full") / "journal.jsonl"), str(toy.root / ".git")} <= named, named
    scenarios.complete(toy, "full")
    assert not toy.git("fsck", "--full", "--no-dangling")
    assert not [path for path in toy.root.rglob("*") if path.name.endswith((".lock", ".tmp")) and ".git" in path.parts]
    print(f"{len(named)} files found no room: {sorted(Path(name).name for name in named)}")


WAITS = """\
import os, time
from pathlib import Path
LR = 0.1  # the learning rate
with open(os.environ["TRAINED"], "a") as file:
    file.write(os.getcwd() + "\\n")
print("loss:", 1 + LR, flush=True)
while not Path(os.environ["TRAINED"] + ".go").exists():
    time.sleep(0.02)
"""


def worker(toy: Toy, disk: Disk) -> None:
    """The disk is full when two trials end: their results wait for room, and nobody trains again."""
    toy.write("fit.py", WAITS)
    toy.commit()
    run = toy.search("full")
    scenarios.wait(lambda: sum(toy.trained().values()) == 2, run)
    scenarios.wait(lambda: len(list(toy.run_dir("full").glob("rounds/*/*/trials/*/train.log"))) == 2, run)
    time.sleep(0.5)
    disk.fill()
    Path(f"{toy.trained_log}.go").touch()
    time.sleep(3)
    assert not toy.results("full"), "they found no room"
    assert not list(toy.run_dir("full").glob("rounds/*/*/trials/*/.*")), "nor left a part"
    assert scenarios.local_workers(toy) == 2
    disk.empty()
    with contextlib.suppress(AssertionError):
        run.finish(0)
    if run.process.returncode == 3:  # it may have found no room itself
        toy.search("full").finish()
    scenarios.complete(toy, "full")
    assert set(toy.trained().values()) == {1}


# outside


@pytest.fixture
def on_a_small_disk(tmp_path: Path) -> Callable[[str], str]:
    """Runs a scenario of this file in a namespace with a tmpfs of 4 MB: what it printed."""
    root = tmp_path / 'it\'s full 5% %x "é"'
    root.mkdir()
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=4m full "$1" && shift && exec "$@"', "sh", str(root)]
    try:
        done = subprocess.run([*mount, "true"], capture_output=True, text=True)
        problem = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as error:
        problem = str(error)
    if problem:
        reason = f"a user namespace with a tmpfs cannot be made here: {problem}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)

    def run(scenario: str) -> str:
        command = [*mount, sys.executable, __file__, scenario, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("scenario", ["controller", "worker"])
def test_a_full_disk(on_a_small_disk: Callable[[str], str], scenario: str) -> None:
    print(on_a_small_disk(scenario))


DRIVER = """
import os, sys
call, nth, part, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sys.argv[1:] = sys.argv[6:]
from autoresearch_hpc.__main__ import main
real, seen = getattr(os, call), 0
def broken(fd, *args):
    global seen
    if isinstance(fd, int) and os.readlink(f"/proc/self/fd/{fd}").endswith("journal.jsonl"):
        seen += 1
        if seen == nth and part:
            return real(fd, args[0][:part])
        if seen >= nth:
            raise OSError(number, os.strerror(number))
    return real(fd, *args)
setattr(os, call, broken)
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("call", "part", "number"),
    [("write", 0, errno.ENOSPC), ("write", 30, errno.EDQUOT), ("fsync", 0, errno.EIO)],
    ids=["nothing written", "written in part", "not made durable"],
)
def test_a_journal_that_fails_at_every_event(
    toy: Callable[..., Toy], tmp_path: Path, call: str, part: int, number: int
) -> None:
    """Each controller gets one event further than the one before it; at last one reaches the end."""
    repository = toy(**PLAN)
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)

    def start(nth: int) -> Command:
        words = [call, str(nth), str(part), str(number), "--", *repository.words("failing")]
        return repository.start(str(driver), *words, module="")

    journal, events, failures = repository.run_dir("failing") / "journal.jsonl", 0, 0
    while True:
        run = start(1 if failures == 0 else 2 if failures == 1 else 3)  # the first of a later controller is run.resumed
        run.process.wait(60)
        if run.process.returncode == 0:
            break
        _, err = run.finish(3)
        failures += 1
        assert f"{journal} cannot be written: {os.strerror(number)}; nothing was lost; " in err.splitlines()[-1]
        told = [event.event for event in read(journal)]
        assert journal.read_bytes()[-1:] in (b"", b"\n")
        reached = len([event for event in told if event != "run.resumed"])
        assert reached == events + (failures > 1), told
        events = reached
    assert failures > 8
    scenarios.complete(repository, "failing")
    assert set(repository.trained().values()) == {1}


if __name__ == "__main__":
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    repository = Toy(folder, **PLAN)  # type: ignore[arg-type]
    try:
        {"controller": controller, "worker": worker}[scenario](repository, Disk(folder))
    finally:
        repository.stop()
