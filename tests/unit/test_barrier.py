"""autoresearch_hpc.sandbox, scratch and logs: what a process that is shut in can still do, and what it leaves."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoresearch_hpc import sandbox
from autoresearch_hpc.sandbox import Barrier
from autoresearch_hpc.trial.logs import CappedLog
from autoresearch_hpc.trial.scratch import Scratch, node_directory
from autoresearch_hpc.trial.shared_memory import ours_in_shared_memory, remove_left

needs_landlock = pytest.mark.skipif(sandbox.landlock_abi() == 0, reason="this kernel has no Landlock")
TRY = """
import os, sys
for word in sys.argv[1:]:
    what, path = word.split(":", 1)
    try:
        if what == "read": open(path).read()
        elif what == "write": open(path, "w").close()
        elif what == "list": os.listdir(path)
        elif what == "signal": os.kill(int(path), 0)
        print("did", what, path)
    except OSError as error:
        print("no", what, error.errno)
"""


def shut_in(barrier: Barrier, *words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-S", "-c", TRY, *words],
        preexec_fn=barrier.enter, pass_fds=barrier.fds, capture_output=True, text=True, check=True,
    )  # fmt: skip
    barrier.close()
    return [line.split()[0] for line in done.stdout.splitlines()]


@needs_landlock
def test_only_what_is_named_can_be_reached(tmp_path: Path) -> None:
    own, other = tmp_path / "ö'wn", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        (folder / "file").write_text("x")
    barrier = Barrier(readable=[*sandbox.software([other]), other / "file"], writable=[own], mode="require")
    words = [f"list:{path}" for path in (own, other)]
    words += [f"read:{own}/file", f"write:{own}/new", f"read:{other}/file", f"write:{other}/file", f"write:{other}/new"]
    words += [f"signal:{os.getpid()}", f"read:/proc/{os.getpid()}/environ", f"read:/proc/{os.getpid()}/maps"]
    expected = ["did", "no", "did", "did", "did", "no", "no"]
    expected += ["no" if sandbox.landlock_abi() >= 6 else "did", "no", "no"]
    assert shut_in(barrier, *words) == expected


def test_where_landlock_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for abi in (0, 1):
        monkeypatch.setattr(sandbox, "landlock_abi", lambda abi=abi: abi)
        assert [sandbox.usable(mode) for mode in ("auto", "require", "none")] == [bool(abi), bool(abi), False]


def test_without_landlock_the_rest_holds() -> None:
    barrier = Barrier(readable=[], writable=[], mode="none", max_file_bytes=1000)
    assert barrier.fds == ()
    code = (
        "import os, resource; print(resource.getrlimit(resource.RLIMIT_FSIZE)[0], oct(os.umask(0)),"
        "[line.split()[1] for line in open('/proc/self/status') if line.startswith('NoNewPrivs')])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], preexec_fn=barrier.enter, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1000 0o77 ['1']\n"


def test_software_holds_nothing_that_is_protected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib" / "data").mkdir(parents=True)
    (tmp_path / "lib" / "code").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = sandbox.software([tmp_path / "lib" / "data"])
    assert tmp_path / "lib" / "code" in found
    assert not {tmp_path, tmp_path / "lib", tmp_path / "lib" / "data", tmp_path / "home"} & set(found)
    assert Path("/usr") in found


def test_scratch_is_gone_afterwards_and_what_a_killed_worker_left_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = Scratch()
    place = first.place("trainer")
    assert {path.name for path in place.iterdir()} == {"home", "tmp", "caches", "out"}
    (place / "tmp" / "big").write_bytes(bytes(1 << 20))
    assert first.num_bytes() >= 1 << 20
    locked = place / "tmp" / "locked"
    locked.mkdir()
    (locked / "x").touch()
    locked.chmod(0)
    left = node_directory() / "trial-left"
    left.mkdir()
    (left / "owner").touch()
    os.utime(left, (0, 0))
    os.utime(first.root, (0, 0))
    second = Scratch()
    assert not left.exists()
    assert first.root.exists(), "its worker lives"
    first.remove()
    second.remove()
    assert list(node_directory().iterdir()) == []


def test_a_log_keeps_its_end(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", max_bytes=100_000)
    writer = os.dup(log.write_fd)
    log.start()
    for i in range(30_000):
        os.write(writer, b"line %d\n" % i)
    log.settle()
    text = (tmp_path / "log").read_text()
    assert len(text) <= 100_000
    assert text.startswith("[")
    assert "bytes of output were dropped here]\n" in text
    assert text.endswith("line 29999\n")
    os.write(writer, b"last words")
    os.close(writer)
    log.stop()
    assert (tmp_path / "log").read_text().endswith("last words")


def test_shared_memory_that_nobody_holds_is_removed() -> None:
    before = ours_in_shared_memory()
    held, left = (Path(f"/dev/shm/autoresearch-{kind}-{os.getpid()}") for kind in ("held", "left"))
    left.write_text("x")
    with held.open("w"):
        remove_left(before)
        assert held.exists()
        assert not left.exists()
    time.sleep(0.01)
    remove_left(before)
    assert not held.exists()
