"""A filesystem that is full, over quota, failing or gone: nothing is torn, and one line says what to do.

The kernel refuses by itself where it can be made to (a file size limit, /dev/full; tests/e2e fills whole disks), else a
system call fails as the kernel would let it.
"""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_trial import FakeTrial
from git_repo import make_repo

from autoresearch_hpc import exits, repo
from autoresearch_hpc.errors import AutoresearchError, RepoError, StorageError
from autoresearch_hpc.files import read_json, write_json_atomic
from autoresearch_hpc.journal import Journal, read
from autoresearch_hpc.records import Status
from autoresearch_hpc.repo import Repo

NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS)
Break = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / 'it\'s a "run" 5% ü'
    folder.mkdir()
    return folder


@pytest.fixture
def break_(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Lets a system call fail, from its nth use on; `part` bytes of the first failing write still reach the file."""

    def break_(call: str, number: int, *, nth: int = 1, part: int = 0) -> None:
        real, seen = getattr(os, call), 0

        def broken(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen < nth:
                return real(*args, **kwargs)
            if part and seen == nth:
                return real(args[0], args[1][:part])
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, call, broken)

    return break_


# the journal


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("call", "part"), [("write", 0), ("write", 20), ("fsync", 0)])
def test_an_event_is_written_whole_or_not_at_all(
    folder: Path, break_: Break, monkeypatch: pytest.MonkeyPatch, call: str, part: int, number: int
) -> None:
    path = folder / "journal.jsonl"
    with Journal(path) as journal:
        journal.append("one", text="x" * 100)
        before = path.read_bytes()
        break_(call, number, part=part)
        with pytest.raises(StorageError) as caught:
            journal.append("two", text="y" * 100)
        assert isinstance(caught.value, OSError)
        assert (caught.value.errno, caught.value.exit_code) == (number, 3)
        text = str(caught.value)
        assert text.startswith(f"{path} cannot be written: {os.strerror(number)}; nothing was lost; ")
        assert "start the same command again" in text
        assert "\n" not in text
        assert path.read_bytes() == before
        monkeypatch.undo()  # there is room again, but what was to follow the event has not happened
        with pytest.raises(StorageError, match=os.strerror(number)):
            journal.append("three")
    assert path.read_bytes() == before
    with Journal(path) as journal:
        assert [event.event for event in journal.events] == ["one"]
        assert journal.append("two").seq == 1


def test_a_line_that_cannot_be_taken_back_is_dropped_later(
    folder: Path, break_: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "journal.jsonl"
    with Journal(path) as journal:
        journal.append("one")
        before = path.read_bytes()
        break_("write", errno.EIO, part=20)
        break_("ftruncate", errno.EIO)
        with pytest.raises(StorageError):
            journal.append("two")
        assert len(path.read_bytes()) == len(before) + 20
    assert [event.event for event in read(path)] == ["one"]
    monkeypatch.undo()
    with Journal(path) as journal:
        journal.append("two")
    assert [event.event for event in read(path)] == ["one", "two"]


@pytest.mark.parametrize("call", ["open", "ftruncate", "fsync"])
def test_a_journal_that_cannot_be_opened(folder: Path, break_: Break, call: str) -> None:
    path = folder / "journal.jsonl"
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    break_(call, errno.EIO)
    with pytest.raises(StorageError, match=r"journal\.jsonl cannot be written: Input/output error"):
        Journal(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_short_writes_are_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = folder / "journal.jsonl", os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    with Journal(path) as journal:
        journal.append("one", text="ü" * 100)
    write_json_atomic(folder / "x.json", {"a": "ü" * 100})
    assert read(path)[0].data == {"text": "ü" * 100}
    assert read_json(folder / "x.json") == {"a": "ü" * 100}


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """The kernel writes up to so many bytes of a file, then refuses (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_the_kernel_wrote_in_part_is_taken_back(folder: Path) -> None:
    path = folder / "journal.jsonl"
    with Journal(path) as journal:
        journal.append("one")
        before = path.read_bytes()
        with file_size_limit(len(before) + 50):
            for _ in range(2):
                with pytest.raises(OSError, match="File too large") as caught:
                    journal.append("two", text="y" * 1000)
                assert not isinstance(caught.value, AutoresearchError), "not a fault of the filesystem"
            assert path.read_bytes() == before
            with pytest.raises(OSError, match="File too large"):
                write_json_atomic(folder / "x.json", {"a": "y" * 1000})
    assert [p.name for p in folder.iterdir()] == ["journal.jsonl"]


# atomic files


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_file_is_replaced_whole_or_not_at_all(folder: Path, break_: Break, call: str, number: int) -> None:
    path = folder / "x.json"
    write_json_atomic(path, {"old": "x" * 50})
    break_(call, number, part=20 if call == "write" else 0)
    with pytest.raises(StorageError) as caught:
        write_json_atomic(path, {"new": "y" * 50})
    assert str(caught.value).startswith(f"{path} cannot be written: {os.strerror(number)}; ")
    assert read_json(path) == {"old": "x" * 50}
    assert [p.name for p in folder.iterdir()] == ["x.json"]


def test_file_and_directory_are_synced_in_this_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a reader on another node, or the next boot, may see a name without its bytes, or none."""
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(fd: int) -> None:
        seen.append(f"fsync {Path(f'/proc/self/fd/{fd}').readlink().suffix or 'folder'}")
        fsync(fd)

    def note_replace(*args: Any, **kwargs: Any) -> None:
        seen.append("rename")
        replace(*args, **kwargs)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_json_atomic(folder.rename(folder.parent / "plain") / "x.json", {})
    assert seen == ["fsync .tmp", "rename", "fsync folder"]


# the command line


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a b/c"), 3, "/a b/c cannot be written: No space left"),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            3,
            "Disk quota exceeded; nothing was lost; make room (df, quota)",
        ),
        (
            OSError(errno.EIO, "Input/output error"),
            3,
            "see that the filesystem works again, then start the same command",
        ),
        (StorageError("/x", errno.ESTALE), 3, "/x cannot be written: Stale file handle"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "correct it and start again"),
    ],
)
def test_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str], error: OSError, code: int, words: str) -> None:
    def main() -> None:
        raise error

    assert exits.run(main) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


PRINTS = """
import sys
from autoresearch_hpc import exits
def main():
    print("a table" * int(sys.argv[1]))
sys.exit(exits.run(main))
"""


@pytest.mark.parametrize("count", ["1", "10000"], ids=["at the end", "in the middle"])
def test_output_onto_a_full_disk(count: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", PRINTS, count], stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 3
        assert done.stderr.count("\n") == 1
        assert "No space left on device" in done.stderr
        done = subprocess.run([sys.executable, "-c", PRINTS, count], stdout=full, stderr=full)
        assert done.returncode == 3, "the line has no place to be, the exit code tells"


# git

SAID = [
    ("error: unable to write file .git/objects/3a/tmp_obj: Disk quota exceeded", errno.EDQUOT),
    ("fatal: unable to write loose object file: Input/output error", errno.EIO),
    ("error: unable to create temporary file: Read-only file system", errno.EROFS),
    ("fatal: update_ref failed for ref 'refs/x': couldn't write '/r/.git/refs/x.lock'", errno.ENOSPC),
    ("fatal: unable to write new index file", errno.ENOSPC),
    ("fatal: not a valid object name HEAD", None),
    ("error: unable to create temporary file: Permission denied", None),
]


@pytest.mark.parametrize(("said", "number"), SAID)
def test_what_git_says(said: str, number: int | None) -> None:
    assert repo._storage_error(f"stderr: '{said}'") == number


def test_another_failure_of_git_is_one_line_in_its_own_words(tmp_path: Path) -> None:
    root = make_repo(tmp_path / "a 'repo' ü", {"train.py": "LR = 1\n"})
    with pytest.raises(RepoError, match=r"git read-tree failed in .*: fatal: .*nope.*; see git status") as caught:
        Repo(root).commit("nope", {"train.py": "LR = 2\n"}, "edit")
    assert "\n" not in str(caught.value)


@contextmanager
def transaction(root: Path, ref: str, commit: str) -> Iterator["subprocess.Popen[str]"]:
    """A git that holds the ref's lock."""
    process = subprocess.Popen(
        ["git", "update-ref", "--stdin"], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"start\nupdate {ref} {commit}\nprepare\n")
    process.stdin.flush()
    assert [process.stdout.readline() for _ in range(2)] == ["start: ok\n", "prepare: ok\n"]
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("what", ["keep", "advance"])
def test_the_lock_of_a_git_that_was_killed_is_removed_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    monkeypatch.setattr(repo, "_STALE_LOCK_S", 0.5)
    root = make_repo(tmp_path / "a 'repo' ü", {"train.py": "LR = 1\n"})
    ours = Repo(root)
    ref = "refs/autoresearch/t/r00-c00" if what == "keep" else "refs/heads/autoresearch/t"
    commit = ours.commit(ours.head, {"train.py": "LR = 2\n"}, "edit")
    with transaction(root, ref, commit) as killed:
        killed.kill()
    lock = root / ".git" / f"{ref}.lock"
    assert lock.exists()
    if what == "keep":
        ours.keep("t", "r00-c00", commit)
        assert ours.kept("t", "r00-c00") == commit
    else:
        ours.advance("t", commit)
        assert ours.branch("t") == commit
    assert not lock.exists()
    assert [r.message for r in caplog.records] == [f"removing {lock}, which a git that was killed has left"]


def test_the_lock_of_a_git_at_work_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_repo(tmp_path / "a 'repo' ü", {"train.py": "LR = 1\n"})
    ours = Repo(root)
    commit = ours.commit(ours.head, {"train.py": "LR = 2\n"}, "edit")
    ref = "refs/autoresearch/t/r00-c00"
    with transaction(root, ref, ours.head) as other:
        assert other.stdin
        later = ["sh", "-c", "sleep 1; kill -TERM $1", "sh", str(other.pid)]  # at which git drops its lock
        with subprocess.Popen(later):
            ours.keep("t", "r00-c00", commit)
        assert other.wait(10) == -signal.SIGTERM
    assert ours.kept("t", "r00-c00") == commit
    assert not caplog.records


# the worker

DRIVER = """
import os, sys
call, name, times, number, patience_s = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
del sys.argv[1:6]
from autoresearch_hpc.trial import worker
worker._PATIENCE_S = float(patience_s)
real = getattr(os, call)
def broken(target, *args, **kwargs):
    global times
    path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
    if name in path and times:
        times -= 1
        raise OSError(number, os.strerror(number))
    return real(target, *args, **kwargs)
setattr(os, call, broken)
worker.main()
"""


@pytest.fixture
def trial(tmp_path: Path) -> FakeTrial:
    trial = FakeTrial(tmp_path / "it's", {"fit.py": "open('../trained', 'a').write('x'); print('loss: 0.5')"})
    trial.command(f"'{sys.executable}' -S fit.py")
    return trial


def work(
    trial: FakeTrial, call: str, name: str, *, times: int, number: int, patience_s: float = 60.0
) -> tuple[int, str]:
    """A worker whose calls fail so many times on files of this name: its exit status and log."""
    words = [call, name, str(times), str(number), str(patience_s)]
    with trial.worker(program=["-c", DRIVER, *words]) as process:
        output, _ = process.communicate(timeout=60)
    assert trial.left() == []
    return process.returncode, output


@pytest.mark.parametrize(
    ("call", "name", "number"),
    [
        ("write", "result.json", errno.ENOSPC),
        ("fsync", "result.json", errno.EDQUOT),
        ("replace", "result.json", errno.EIO),
        ("write", "claim-0.json", errno.ENOSPC),
        ("fsync", "claim-0.json", errno.ESTALE),
        ("open", "claim-0.json", errno.EDQUOT),
    ],
)
def test_a_worker_waits_for_room(trial: FakeTrial, call: str, name: str, number: int) -> None:
    code, output = work(trial, call, name, times=1, number=number)
    assert code == 0, output
    assert output.count("trying again in") == 1
    assert trial.result().status is Status.OK
    assert (trial.paths.root / "trained").read_text() == "x", "trained once"
    assert read_json(trial.paths.claim(0))["attempt"] == 0


@pytest.mark.parametrize("name", ["result.json", "claim-0.json"])
def test_a_worker_gives_up_at_last_and_leaves_nothing_torn(trial: FakeTrial, name: str) -> None:
    code, output = work(trial, "write", name, times=-1, number=errno.ENOSPC, patience_s=1.0)
    assert code == 74
    assert f"gives up: {trial.paths.root / name} cannot be written: No space left on device" in output
    assert "Traceback" not in output
    assert not (trial.paths.root / name).exists()
    assert not list(trial.paths.root.glob(".*"))
    trained = trial.paths.root / "trained"
    assert trained.exists() == (name == "result.json"), "no training without a claim"


def test_phases_that_cannot_be_written_end_nothing(trial: FakeTrial) -> None:
    code, output = work(trial, "write", "phases.json", times=-1, number=errno.ENOSPC)
    assert code == 0, output
    assert trial.result().status is Status.OK
    assert "phases.json cannot be written" in output


def test_a_candidate_is_not_to_blame_where_its_directory_cannot_be_written(tmp_path: Path) -> None:
    """What it had to say of it may have found no room in the log either."""
    trial = FakeTrial(tmp_path / "it's", {"fit.py": "raise SystemExit(1)"})
    trial.command(f"'{sys.executable}' -S fit.py")
    code, output = work(trial, "write", ".probe-", times=-1, number=errno.EDQUOT)
    assert code == 0, output
    result = trial.result()
    assert result.status is Status.LOST
    assert result.error
    assert result.error.message == (
        f"[Errno {errno.EDQUOT}] Disk quota exceeded: {trial.paths.root} (seen: ExitStatus: exit status 1)"
    )
