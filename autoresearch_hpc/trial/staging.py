"""A copy of the training data on the node's own disk, made by the first trial there and read by those beside and after.

    <task.stage>/autoresearch_hpc-<uid>/
        data-<id>/       the training files, and copy.json: what tells each from a file that was changed since;
                         locked (shared) while a trial reads it
        partial-XXXX/    one in the making, or what a worker left that was killed at it; the next one removes it
        lock             held by the worker that copies
        failed           touched when copying failed: for a while nobody tries again

Only training rows are staged: the evaluator reads the data set itself. A place that candidates can reach is refused, as
one could change there what the next one learns from, or read it before the clock. Staging never fails a trial:
whatever stands in its way is one warning, and the trial reads the shared files.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from autoresearch_hpc.dataset import DataFile, read_manifest
from autoresearch_hpc.files import read_json, sync_directory, write_all, write_json_atomic
from autoresearch_hpc.leftovers import remove_tree
from autoresearch_hpc.records import TrialSpec
from autoresearch_hpc.sandbox import software, usable
from autoresearch_hpc.trial.children import StopFlag, Stopped
from autoresearch_hpc.trial.memory import bytes_left
from autoresearch_hpc.trial.scratch import node_directory

_RECORD = "copy.json"
_SPARE_SHARE = 0.1  # of the filesystem is left free
_KEEP_S = 86_400.0  # other data sets are removed once nobody has read them for so long, or earlier for want of room
_PAUSE_S = 600.0  # after a failure
_LOOK_S = 0.1
_CHUNK = 8 << 20  # bytes

_log = logging.getLogger(__name__)


class _Refused(Exception):
    """Why nothing is staged, in words."""


class Copy:
    """The staged training files, open, in the manifest's order. Nobody removes them until `close`.

    Raises OSError where one cannot be opened or its folder is about to be removed.
    """

    def __init__(self, folder: Path, files: tuple[DataFile, ...]) -> None:
        self._fds: list[int] = []
        try:
            for path in (folder, *(folder / file.name for file in files)):
                self._fds.append(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
            fcntl.flock(self._fds[0], fcntl.LOCK_SH | fcntl.LOCK_NB)
            self.stamps = {file.name: _stamp(fd) for file, fd in zip(files, self._fds[1:], strict=True)}
        except OSError:
            self.close()
            raise

    def open_rows(self) -> list[int]:
        """File descriptors of the training files, as `Dataset.open_rows` gives them. The caller closes them."""
        return [os.dup(fd) for fd in self._fds[1:]]

    def changed(self) -> str | None:
        """Which file is not as it was when it was opened, in words; None where all are."""
        for fd, (name, stamp) in zip(self._fds[1:], self.stamps.items(), strict=True):
            same = 3 if os.fstat(fd).st_nlink == 0 else 4  # to be removed, as /tmp is tidied, sets the last one
            if _stamp(fd)[:same] != stamp[:same]:
                return f"the staged {name} was changed while the trial ran"
        return None

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


@contextlib.contextmanager
def staged(spec: TrialSpec, stop: StopFlag) -> Iterator[Copy | None]:
    """The node's copy of the training data while a trial reads it, made if need be; None: read the shared files.

    Takes `stage_limit_s` at most, beyond what a single read or write takes. Raises Stopped on a stopping signal.
    """
    copy = None
    if spec.stage and spec.data_dir:
        try:
            copy = _Stage(spec, spec.stage, Path(spec.data_dir), stop).take()
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the shared files are there
            _log.warning("training data is read from %s, not staged: %s", spec.data_dir, error)
    try:
        yield copy
    finally:
        if copy:
            copy.close()


class _Stage:
    """One data set's place on this node."""

    def __init__(self, spec: TrialSpec, place: str, source: Path, stop: StopFlag) -> None:
        self._begun, self._limit_s, self._stop, self._source = time.monotonic(), spec.stage_limit_s, stop, source
        manifest = read_manifest(source)
        self._files, self._size = manifest.train, sum(file.size for file in manifest.train)
        parent = Path(os.path.expandvars(place))
        if not parent.is_absolute():
            raise _Refused(f"task.stage={place} is no absolute path on this node")
        if usable(spec.sandbox) and _in_reach(parent):
            raise _Refused(f"{parent} is within reach of candidates; give another place as task.stage")
        self._base = node_directory(parent)
        self._folder = self._base / f"data-{manifest.sha256[:16]}"

    def take(self) -> Copy:
        """The copy, from whoever made it, or made now."""
        how, copy = "is there", self._found()
        if copy is None:
            with self._locked():
                how, copy = "was made meanwhile", self._found()
                if copy is None:
                    how, copy = "made", self._made()
        _log.info("training data is staged: %s %s, %.1f s", self._folder, how, time.monotonic() - self._begun)
        return copy

    def _found(self) -> Copy | None:
        """The copy that is there; None where there is none, or not as it was made, or about to be removed."""
        with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as stack:
            copy = stack.enter_context(contextlib.closing(Copy(self._folder, self._files)))
            if read_json(self._folder / _RECORD) == copy.stamps:
                os.utime(self._folder)
                stack.pop_all()
                return copy
        return None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The right to change what is in this place, which one worker at a time has."""
        fd = os.open(self._base / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            while not _taken(fd):
                self._check_time("another worker's copying")
                time.sleep(_LOOK_S)
            yield
        finally:
            os.close(fd)

    def _made(self) -> Copy:
        failed = self._base / "failed"
        if failed.exists() and time.time() - failed.stat().st_mtime < _PAUSE_S:
            raise _Refused(f"copying failed on this node less than {_PAUSE_S / 60:.0f} min ago")
        self._make_room()
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=self._base))
        with contextlib.ExitStack() as stack:
            stack.callback(remove_tree, partial)
            try:
                for file in self._files:
                    self._copy(file, partial / file.name)
                copy = stack.enter_context(contextlib.closing(Copy(partial, self._files)))
                write_json_atomic(partial / _RECORD, copy.stamps)
                partial.rename(self._folder)
                sync_directory(self._base)
            except (_Refused, OSError, ValueError):
                with contextlib.suppress(OSError):
                    failed.touch()
                raise
            stack.pop_all()
        return copy

    def _copy(self, file: DataFile, target: Path) -> None:
        """Copy one file. Raises _Refused where there is no time, ValueError where it is not the manifest's."""
        digest = hashlib.sha256()
        with (self._source / file.name).open("rb", buffering=0) as source, target.open("xb", buffering=0) as copy:
            while chunk := source.read(_CHUNK):
                self._check_time("copying")
                digest.update(chunk)
                write_all(copy.fileno(), chunk)
            os.fchmod(copy.fileno(), 0o400)
            os.fsync(copy.fileno())
        if digest.hexdigest() != file.sha256:
            raise ValueError(f"{self._source / file.name} fails its checksum")

    def _check_time(self, doing: str) -> None:
        self._stop.check()
        if time.monotonic() - self._begun > self._limit_s:
            raise _Refused(f"{doing} took longer than task.stage_limit_s={self._limit_s:g}")

    def _make_room(self) -> None:
        """Remove what is left over, damaged or unused for long, and as much more of what is unused as has to go."""
        for left in (*self._base.glob("partial-*"), *self._base.glob(self._folder.name)):
            remove_tree(left)
        for other in sorted(self._base.glob("data-*"), key=lambda path: path.stat().st_mtime):
            fd = os.open(other, os.O_RDONLY | os.O_CLOEXEC)
            try:
                old = time.time() - other.stat().st_mtime > _KEEP_S
                if (old or self._room() < self._size) and _taken(fd):
                    remove_tree(other)
            finally:
                os.close(fd)
        if self._room() < self._size:
            raise _Refused(f"{self._base} has no room for {self._size / 2**20:.0f} MiB")

    def _room(self) -> float:
        """Bytes that a copy may take. In memory it counts as the job's, of which half is left to the trial."""
        disk = shutil.disk_usage(self._base)
        room = disk.free - _SPARE_SHARE * disk.total
        memory = bytes_left() if _in_memory(self._base) else None
        return room if memory is None else min(room, memory / 2)


def _stamp(fd: int) -> list[int]:
    found = os.fstat(fd)
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _taken(fd: int) -> bool:
    """Lock an open file or folder for ourselves, if nobody else has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_reach(folder: Path) -> bool:
    """Whether the barrier around a candidate leaves it this folder: software, devices, /dev/shm by another name."""
    real, shared = folder.resolve(), Path("/dev/shm")
    if any(real.is_relative_to(path.resolve()) for path in (*software([]), Path("/dev"))):
        return True
    return shared.is_mount() and shared.stat().st_dev == real.stat().st_dev


def _in_memory(folder: Path) -> bool:
    device = folder.stat().st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, source = line.partition(" - ")
        if fields.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            return source.split()[0] in ("tmpfs", "ramfs")
    return False
