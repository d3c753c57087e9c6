"""Whole runs on a filesystem that fails: a disk that is really full, and system calls that fail at every journal event.

The disk is a small tmpfs in a mount namespace of its own, which ordinary users may make on most systems; this file is
also the program that runs there: `python test_storage.py SCENARIO FOLDER`.
"""

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
import scenarios
from toy import Toy

from autoresearch_hpc.journal import read

pytestmark = pytest.mark.usefixtures("no_slurm")

_PAGE = 4096
PLAN: dict[str, Any] = {"cluster": "local", "rounds": 0, "baseline": "joined", "k": 1}
PLAN["overrides"] = ("cluster.max_parallel=2", "cluster.max_retries=20")


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
    """Every further page of room takes the controller a little further; it says what is full, and tears nothing."""
    toy.write("runs/.gitignore", "*\n")  # a disk that is full before a run's first start is a matter of runs_dir=
    named = set()
    for free_pages in range(60):
        disk.fill(free_pages)
        run = toy.search("full")
        begun = time.monotonic()
        while run.running and not toy.trained() and time.monotonic() - begun < 4:  # workers wait for room far longer
            time.sleep(0.02)
        if run.running:
            time.sleep(1)
            disk.empty()
            break
        _, err = run.finish(3, timeout_s=30)
        last = err.splitlines()[-1]
        assert ": No space left on device; nothing was lost; make room (df, quota), then start the same" in last, err
        named.add(last.removeprefix("autoresearch_hpc: ").split(" cannot be written")[0])
        journal = toy.run_dir("full") / "journal.jsonl"
        if journal.exists():
            assert journal.read_bytes()[-1:] in (b"", b"\n"), "nothing torn"
    else:
        raise AssertionError(f"never trained: {named}")
    run.process.wait(60)
    if run.process.returncode == 3:  # the trials had taken the last room
        run = toy.search("full")
    run.finish(timeout_s=60)
    assert {str(toy.run_dir("full") / "journal.jsonl"), str(toy.root / ".git")} <= named, named
    scenarios.complete(toy, "full", interruptions=20)  # trials that found no room were lost, and followed by others
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
event, call, part, number = sys.argv[1].encode(), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sys.argv[1:] = sys.argv[6:]
from autoresearch_hpc.__main__ import main
write, fsync, met = os.write, os.fsync, False
def fail(): raise OSError(number, os.strerror(number))
def broken_write(fd, data):
    global met
    if b'"event": "%s"' % event not in bytes(data) or not os.readlink(f"/proc/self/fd/{fd}").endswith("journal.jsonl"):
        return fail() if met and call == "write" else write(fd, data)
    met = True
    return write(fd, data) if call == "fsync" else write(fd, data[:part]) if part else fail()
def broken_fsync(fd):
    return fail() if met and call == "fsync" else fsync(fd)
os.write, os.fsync = broken_write, broken_fsync
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
    """Each controller fails at its first event of a kind, and with it whatever it writes then; the next one goes on."""
    repository = toy(**PLAN)
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    journal = repository.run_dir("failing") / "journal.jsonl"
    told: list[str] = []
    started, resumed, proposed, *later = scenarios.EVENTS  # nothing is resumed before something has started
    for event in (started, proposed, resumed, *later):
        words = [event, call, str(part), str(number), "--", *repository.words("failing")]
        _, err = repository.start(str(driver), *words, module="").finish(3, timeout_s=30)
        assert f"{journal} cannot be written: {os.strerror(number)}; nothing was lost; " in err.splitlines()[-1]
        assert journal.read_bytes()[-1:] in (b"", b"\n")
        before, told = told, [line.event for line in read(journal)]
        assert told[: len(before)] == before
        assert event not in told[len(before) :], "what could not be written has not happened"
    repository.search("failing").finish(timeout_s=30)
    scenarios.complete(repository, "failing")
    assert set(repository.trained().values()) == {1}


if __name__ == "__main__":
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    repository = Toy(folder, **PLAN)
    try:
        {"controller": controller, "worker": worker}[scenario](repository, Disk(folder))
    finally:
        repository.stop()
