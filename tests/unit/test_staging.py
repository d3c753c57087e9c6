"""Training data staged on a node: once, whoever comes first, whatever dies. What stands in the way fails no trial."""

import fcntl
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_trial import FakeTrial

from autoresearch_hpc import sandbox
from autoresearch_hpc.dataset import MANIFEST, Dataset
from autoresearch_hpc.files import read_json, write_json_atomic
from autoresearch_hpc.records import Direction, Metric, Status, TrialSpec, to_json
from autoresearch_hpc.trial import staging
from autoresearch_hpc.trial.children import StopFlag, Stopped
from autoresearch_hpc.trial.memory import bytes_left
from autoresearch_hpc.trial.staging import staged

landlock = pytest.mark.skipif(not sandbox.landlock_abi(), reason="this kernel has no Landlock")
Usage = namedtuple("Usage", "total used free")


class Quiet(StopFlag):
    """A flag without signal handlers, which would be this process's."""

    def __init__(self) -> None:
        self.reason, self.timed_out = None, False


class Node:
    """A node's disk, and a trial there that reads the data set."""

    def __init__(self, root: Path, data: Path) -> None:
        self.disk, self.data = root / "node's dïsk", data
        self.disk.mkdir()
        self.spec = FakeTrial(root / "trial", {}, kind="gpt", data_dir=str(data)).spec
        self.spec = replace(self.spec, stage=str(self.disk), stage_limit_s=30.0)
        self.base = self.disk / f"autoresearch_hpc-{os.getuid()}"

    @property
    def folder(self) -> Path:
        return self.of(self.data)

    def of(self, data: Path) -> Path:
        return self.base / f"data-{Dataset(data).manifest.sha256[:16]}"

    def read(self, data: Path | None = None, **settings: Any) -> bytes | None:
        """What a trial is given to train on, from the copy; None where it is not staged."""
        with staged(replace(self.spec, data_dir=str(data or self.data), **settings), Quiet()) as copy:
            return content(copy.open_rows()) if copy else None

    def names(self) -> set[str]:
        return {path.name for path in self.base.iterdir()} - {"lock"}


def content(fds: list[int]) -> bytes:
    read = b"".join(os.pread(fd, 1 << 30, 0) for fd in fds)
    for fd in fds:
        os.close(fd)
    return read


def original(data: Path) -> bytes:
    return content(Dataset(data).open_rows("train"))


def renamed(data: Path, root: Path) -> Path:
    """The same rows as another data set."""
    shutil.copytree(data, root)
    write_json_atomic(root / MANIFEST, read_json(root / MANIFEST) | {"corpus": root.name})
    return root


@pytest.fixture
def node(tmp_path: Path, tiny_dataset: Path) -> Node:
    return Node(tmp_path, tiny_dataset)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """The one line that was logged since the last call."""
    caplog.set_level(logging.INFO)

    def line() -> str:
        (record,) = caplog.records
        caplog.clear()
        return f"{record.levelname} {record.getMessage()}"

    return line


WORKER = """
import json, sys, time
from autoresearch_hpc.records import TrialSpec, from_json
from autoresearch_hpc.trial import staging
from autoresearch_hpc.trial.children import StopFlag
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
write_all, slow_s = staging.write_all, float(sys.argv[1])
def slowly(fd, chunk):
    write_all(fd, chunk[: len(chunk) // 2])
    print("midway", flush=True)
    time.sleep(slow_s)
    write_all(fd, chunk[len(chunk) // 2 :])
staging.write_all = slowly
with staging.staged(from_json(TrialSpec, json.loads(sys.argv[2])), StopFlag()) as copy:
    print("has it" if copy else "has it not", flush=True)
    sys.stdin.read()
"""


@contextmanager
def worker(spec: TrialSpec, slow_s: float, **settings: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process that stages as a worker does, each file taking `slow_s`, and reads until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(slow_s), json.dumps(to_json(spec))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **settings,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(process: "subprocess.Popen[str]", words: str) -> list[str]:
    """What it says up to the line with these words."""
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(f"it ended without {words!r}: {lines}")


def test_the_first_copies_and_the_next_finds_it(node: Node, said: Callable[[], str]) -> None:
    assert node.read() == original(node.data)
    assert said().startswith(f"INFO training data is staged: {node.folder} made, ")
    inode = node.folder.stat().st_ino
    assert node.read() == original(node.data)
    assert said().startswith(f"INFO training data is staged: {node.folder} is there, ")
    assert node.folder.stat().st_ino == inode
    assert node.names() == {node.folder.name}
    assert {p.name for p in node.folder.iterdir()} == {"train-00000.bin", "train-00001.bin", "copy.json"}, "no more"
    assert node.base.stat().st_mode & 0o777 == 0o700


def test_eight_at_once_copy_once_and_read_together(node: Node) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(node.spec, 0.3)) for _ in range(8)]
        said = ["".join(until(process, "has it")) for process in workers]
        assert sorted(text.count("midway") for text in said) == [0] * 7 + [2], said
        assert sum(" made, " in text for text in said) == 1
        assert all(text.endswith("has it\n") for text in said)
        assert node.names() == {node.folder.name}
        fd = os.open(node.folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for process in workers:
            process.kill()
            process.wait()
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)


def test_a_copier_that_is_killed_midway_leaves_nothing_that_is_read(node: Node) -> None:
    with worker(node.spec, 60.0) as first:
        until(first, "midway")
        (partial,) = node.base.glob("partial-*")
        assert 0 < (partial / "train-00000.bin").stat().st_size < Dataset(node.data).manifest.train[0].size
        with worker(node.spec, 0.0) as second:
            time.sleep(1.0)
            assert not list(node.base.glob("data-*")), "it waits"
            first.send_signal(signal.SIGKILL)
            assert " made, " in "".join(until(second, "has it"))
    assert node.names() == {node.folder.name}
    assert node.read() == original(node.data)


def test_who_waits_too_long_reads_the_shared_files(node: Node, said: Callable[[], str]) -> None:
    with worker(node.spec, 60.0) as first:
        until(first, "midway")
        begun = time.monotonic()
        assert node.read(stage_limit_s=0.5) is None
        assert 0.5 <= time.monotonic() - begun < 2
        assert said() == (
            f"WARNING training data is read from {node.data}, not staged: "
            "another worker's copying took longer than task.stage_limit_s=0.5"
        )


def test_a_slow_copy_is_given_up_and_not_begun_again_at_once(
    node: Node, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_CHUNK", 100)
    monkeypatch.setattr(staging, "write_all", lambda fd, chunk: time.sleep(0.1))
    assert node.read(stage_limit_s=0.3) is None
    assert said().endswith("not staged: copying took longer than task.stage_limit_s=0.3")
    assert node.names() == {"failed"}
    monkeypatch.undo()
    assert node.read() is None
    assert said().endswith("not staged: copying failed on this node less than 10 min ago")
    os.utime(node.base / "failed", (0, 0))
    assert node.read() == original(node.data)


def test_a_signal_ends_the_waiting(node: Node) -> None:
    stop = Quiet()
    stop.reason = "cancelled"
    with worker(node.spec, 60.0) as first:
        until(first, "midway")
        with pytest.raises(Stopped, match="cancelled"), staged(node.spec, stop):
            pytest.fail("it has begun")


def overwrite(path: Path, what: bytes = b"\1\2\3\4") -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(20)
        file.write(what)


def spoil_restoring_times(path: Path) -> None:
    before = path.stat()
    overwrite(path)
    path.chmod(0o400)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def replace_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        overwrite,
        spoil_restoring_times,
        lambda path: os.truncate(path, 10),
        Path.unlink,
        replace_by_a_link,
        replace_by_a_pipe,
        lambda path: (path.parent / "copy.json").unlink(),
        lambda path: (path.parent / "copy.json").write_text('{"train-00'),
        lambda path: (path.parent / "copy.json").write_text("{}"),
    ],
    ids=[
        "overwritten",
        "and its times restored",
        "cut",
        "missing",
        "a link",
        "a pipe",
        "no record",
        "torn",
        "another record",
    ],
)
def test_a_damaged_copy_is_made_anew(node: Node, said: Callable[[], str], damage: Callable[[Path], object]) -> None:
    node.read()
    said()
    damage(node.folder / "train-00001.bin")
    assert node.read() == original(node.data)
    assert " made, " in said()


def test_what_is_changed_while_a_trial_reads_is_told(node: Node) -> None:
    with staged(node.spec, Quiet()) as copy:
        assert copy
        assert copy.changed() is None
        overwrite(node.folder / "train-00001.bin")
        assert copy.changed() == "the staged train-00001.bin was changed while the trial ran"


def test_what_is_removed_while_a_trial_reads_is_still_read(node: Node) -> None:
    with staged(node.spec, Quiet()) as copy:
        assert copy
        shutil.rmtree(node.folder)
        assert copy.changed() is None
        assert content(copy.open_rows()) == original(node.data)


def test_no_room(node: Node, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(file.size for file in Dataset(node.data).manifest.train)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: Usage(100 * size, 89 * size, 11 * size - 1))
    assert node.read() is None
    assert said().endswith(f"not staged: {node.base} has no room for 0 MiB")
    assert node.names() == set()
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: Usage(100 * size, 89 * size, 11 * size))
    assert node.read() == original(node.data), "a tenth of the disk is left free"


def test_a_place_in_memory_is_part_of_the_jobs(node: Node, said: Callable[[], str], monkeypatch: Any) -> None:
    monkeypatch.setattr(staging, "bytes_left", lambda: 1000)
    assert node.read() is not None, "a disk is not"
    shutil.rmtree(node.folder)
    said()
    monkeypatch.setattr(staging, "_in_memory", lambda _: True)
    assert node.read() is None
    assert "has no room" in said()


def test_which_places_are_in_memory() -> None:
    assert staging._in_memory(Path("/dev/shm"))
    assert not staging._in_memory(Path("/proc"))


@pytest.mark.parametrize("version", [1, 2])
def test_memory_that_is_left_is_that_of_the_narrowest_group(tmp_path: Path, version: int) -> None:
    mount, proc = tmp_path / "cgroup", tmp_path / "proc"
    step = mount / "job_1" / "step_0" / "task_0"
    step.mkdir(parents=True)
    proc.mkdir()
    limit, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    )
    unlimited = "9223372036854771712" if version == 1 else "max"
    for folder, most in ((mount / "job_1", "5000"), (step.parent, "4000"), (step, unlimited)):
        (folder / limit).write_text(f"{most}\n")
        (folder / used).write_text("1500\n")
    kind, controller = ("cgroup", "memory") if version == 1 else ("cgroup2", "")
    (proc / "cgroup").write_text(f"0:{controller}:/job_1/step_0/task_0\n")
    (proc / "mountinfo").write_text(f"1 2 0:3 / {mount} rw - {kind} none rw,{controller}\n")
    assert bytes_left(proc) == 2500
    (proc / "cgroup").write_text("")
    assert bytes_left(proc) is None


def test_a_write_that_fails_leaves_nothing(node: Node) -> None:
    limits = (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    with worker(node.spec, 0.0, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)) as process:
        said = until(process, "has it not")
    assert "not staged: [Errno 27] File too large" in said[-2]
    assert node.names() == {"failed"}


def test_shared_files_that_are_not_the_manifests_are_not_staged(node: Node, said: Callable[[], str]) -> None:
    overwrite(node.data / "train-00001.bin")
    assert node.read() is None
    assert said().endswith(f"not staged: {node.data / 'train-00001.bin'} fails its checksum")
    assert node.names() == {"failed"}


def test_data_sets_that_nobody_reads_make_way(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, held, recent = (renamed(node.data, tmp_path / name) for name in ("old", "held", "recent"))
    for data in (old, held, recent):
        node.read(data)
    long_ago = time.time() - staging._KEEP_S - 60
    (node.base / "trial-of another kind").mkdir()
    with staged(replace(node.spec, data_dir=str(held)), Quiet()):
        for data in (old, held):
            os.utime(node.of(data), (long_ago, long_ago))
        node.read()
        left = {node.of(held).name, node.of(recent).name, node.folder.name, "trial-of another kind"}
        assert node.names() == left
        shutil.rmtree(node.folder)
        size = sum(file.size for file in Dataset(node.data).manifest.train)
        monkeypatch.setattr(  # full, but for as much as each folder that is gone has left
            staging.shutil,
            "disk_usage",
            lambda _: Usage(10 * size, 8 * size, (4 - len(list(node.base.glob("data-*")))) * size - size),
        )
        assert node.read() is not None
        assert node.names() == left - {node.of(recent).name}
    assert node.read(held) is not None, "it was read meanwhile, and has stayed"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/no/such/place", "No such file or directory: '/no/such/place/"),
        ("$NO_SUCH_VARIABLE/x", "task.stage=$NO_SUCH_VARIABLE/x is no absolute path on this node"),
        ("/proc", "/proc/autoresearch_hpc-"),
        ("/etc/passwd", "Not a directory: '/etc/passwd/"),
    ],
)
def test_a_place_that_is_none(node: Node, said: Callable[[], str], place: str, words: str) -> None:
    assert node.read(stage=place, sandbox="none") is None
    line = said()
    assert line.startswith(f"WARNING training data is read from {node.data}, not staged: ")
    assert words in line


def test_the_nodes_own_variables_are_put_in(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_DISK", str(node.disk))
    assert node.read(stage="$NODE_DISK") == original(node.data)
    assert node.folder.is_dir()


def test_a_lock_or_folder_that_is_a_trap_is_no_place(node: Node, said: Callable[[], str], tmp_path: Path) -> None:
    node.base.symlink_to(tmp_path)
    assert node.read() is None
    assert "belongs to somebody else" in said()
    node.base.unlink()
    node.base.mkdir()
    (node.base / "lock").symlink_to(tmp_path / "elsewhere")
    assert node.read() is None
    assert "Too many levels of symbolic links" in said()
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    folder = Path(f"/dev/shm/autoresearch-staging-{os.getpid()}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@landlock
def test_what_candidates_can_reach_is_no_place_for_their_data(
    node: Node, said: Callable[[], str], shared_memory: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(shared_memory)
    for place in (str(shared_memory), str(tmp_path / "link"), "/usr/local", sys.prefix):
        assert node.read(stage=place) is None
        assert said().endswith("is within reach of candidates; give another place as task.stage"), place
    assert list(shared_memory.iterdir()) == []
    assert node.read(stage=str(shared_memory), sandbox="none") == original(node.data)


SCRIPT = """
import array, json, os, socket, time
pipe, door = int(os.environ["AUTORESEARCH_EVENTS_FD"]), socket.socket(fileno=int(os.environ["AUTORESEARCH_DATA_FD"]))
say = lambda event: os.write(pipe, (json.dumps({"event": event}) + "\\n").encode())
say("clock")
fds = socket.recv_fds(door, 1, 64)[1]
print(*(os.readlink(f"/proc/self/fd/{fd}") for fd in fds), sep="\\n")
try:
    print("READ", os.listdir(os.path.dirname(os.readlink(f"/proc/self/fd/{fds[0]}"))))
except OSError as error:
    print("READ", error.strerror)
try:
    os.open(f"/proc/self/fd/{fds[0]}", os.O_RDWR)
    print("WRITTEN")
except OSError as error:
    print("WRITE", error.strerror)
say("diverged")
"""


def trial_of(node: Node, root: Path, **settings: Any) -> FakeTrial:
    return FakeTrial(
        root, {"train.py": SCRIPT}, kind="gpt", data_dir=str(node.data), stage=str(node.disk),
        stage_limit_s=20.0, metric=Metric(name="val_bpb", value=None, direction=Direction.min), **settings,
    )  # fmt: skip


@landlock
def test_a_worker_hands_over_the_copy_which_its_candidate_can_neither_find_nor_change(
    node: Node, tmp_path: Path
) -> None:
    trial = trial_of(node, tmp_path / "a trial")
    result = trial.run()
    assert result.status is Status.DIVERGED
    log = trial.paths.log.read_text().splitlines()
    assert log[:2] == [str(node.folder / name) for name in ("train-00000.bin", "train-00001.bin")]
    assert log[2:] == ["READ Permission denied", "WRITE Permission denied"]


def test_where_it_cannot_be_staged_a_worker_hands_over_the_shared_files(node: Node, tmp_path: Path) -> None:
    trial = trial_of(node, tmp_path / "a trial")
    trial.spec = replace(trial.spec, stage="/no/such/place")
    with trial.worker() as process:
        output, _ = process.communicate(timeout=60)
    assert output.count("not staged: [Errno 2]") == 1
    assert trial.result().status is Status.DIVERGED
    assert trial.paths.log.read_text().splitlines()[0] == str(node.data / "train-00000.bin")


def test_waiting_for_the_copy_is_start_up_and_no_part_of_its_limit(node: Node, tmp_path: Path) -> None:
    trial = trial_of(node, tmp_path / "a trial", startup_limit_s=5.0)
    with worker(node.spec, 3.0) as first:
        until(first, "midway")
        result = trial.run()
    assert result.status is Status.DIVERGED, "two files of 3 s each, and 5 s to start in"
    phases = result.phases
    assert phases.startup_s is not None
    assert phases.startup_s > 5
    assert phases.train_s is not None
    assert phases.train_s < 2
    assert phases.total_s is not None
    assert abs(phases.startup_s + phases.train_s - phases.total_s) < 0.3
