"""What compilers made in earlier trials of a run, for later ones to start from: a minute of compilation less on a GPU.

    <run>/compiled/<key>.tar              of the baseline: caches in trainer/ and scoring/; `root` is where it was made
    <run>/compiled/<key>/<commit>.tar     of a candidate: trainer/ alone, as it was when its clock started

A trial's caches are its own, or one could leave something there for another. So it starts with a copy: of those of its
own commit, where that was tried before, else of its parent's, else of the baseline's. The baseline is the user's own
script, which nobody has edited. A candidate's are packed before it is given any data, so that nothing that was learned
travels in them. What evaluates starts with what the baseline's evaluation left, and with nothing else.

Caches remember the directory that they were made in, in pickles and binaries too, and a later trial may not reach that
any more. So a copy has its own directory in that one's place, byte for byte: names of trials' directories are equally
long (`scratch`), as those of the places in them are. Where they are not, it is compiled anew.
"""

import contextlib
import hashlib
import io
import logging
import os
import shutil
import tarfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from autoresearch_hpc.records import TrialSpec
from autoresearch_hpc.trial.facts import torch_version
from autoresearch_hpc.trial.integrity import harness_sha256

_log = logging.getLogger(__name__)
_PLACES = ("trainer", "scoring")
_ROOT = "root"
_MAX_BYTES = 512 << 20  # children have their parent's files, too: a limit to growth
_MOST_KEPT = 16
LONG_S = 15.0  # of compilation with what the trial had: worth keeping


class Store:
    """The archives that suit one trial on this kind of node."""

    def __init__(self, folder: Path, key: str, spec: TrialSpec) -> None:
        self.baseline = folder / f"{key}.tar"
        self._candidates = folder / key
        self._own, self._parent = (self._candidates / f"{commit}.tar" for commit in (spec.commit, spec.parent))
        self._is_baseline = spec.round == 0 and spec.candidate.endswith("-c00")
        self._packed: Path | None = None

    @classmethod
    def of(cls, spec: TrialSpec, gpu_name: str | None) -> "Store | None":
        """None where nothing worth keeping is compiled."""
        if spec.inbox is None or spec.device == "cpu" or gpu_name is None:
            return None
        parts = (harness_sha256(), torch_version(), gpu_name)
        return cls(Path(spec.inbox).parent / "compiled", hashlib.sha256(repr(parts).encode()).hexdigest()[:16], spec)

    def best(self) -> Path:
        """What the trial starts from; perhaps there is no such file."""
        return next((path for path in (self._own, self._parent) if path.exists()), self.baseline)

    def complete(self, archive: Path) -> bool:
        """Whether it was made of this very commit, so that nothing is left to compile."""
        return archive.is_file() and archive == (self.baseline if self._is_baseline else self._own)

    def snapshot(self, root: Path, compile_s: float) -> None:
        """Pack what a candidate's trainer took so long to compile below root. To be called before it gets its data."""
        if self._is_baseline or self._own.exists() or compile_s < LONG_S:
            return
        try:
            pack(root / "compiled.tar", root, ["trainer"])
            self._packed = root / "compiled.tar"
        except (OSError, ValueError, RecursionError, tarfile.TarError) as error:  # its files may be anything
            _log.warning("what was compiled is not kept: %s", error)

    def keep(self, root: Path, used: Path) -> None:
        """Publish what there is for later trials; for a candidate's children what it used, where that was enough."""
        if self._is_baseline and not self.baseline.exists():
            _publish(self.baseline, lambda path: pack(path, root, _PLACES))
        elif not self._is_baseline and not self._own.exists() and (packed := self._packed):
            _publish(self._own, lambda path: shutil.copyfile(packed, path))
            self._prune()
        elif not self._is_baseline and used == self._parent:
            _publish(self._own, lambda path: os.link(used, path))

    def _prune(self) -> None:
        """Leave the newest, each of which may have several names."""
        with contextlib.suppress(OSError):
            names: dict[int, list[Path]] = {}
            for path in sorted(self._candidates.glob("*.tar"), key=lambda path: path.stat().st_mtime):
                names.setdefault(path.stat().st_ino, []).append(path)
            for old in list(names.values())[:-_MOST_KEPT]:
                for path in old:
                    path.unlink(missing_ok=True)


def _publish(archive: Path, write: Callable[[Path], object]) -> None:
    tmp = archive.with_name(f".{archive.name}.{uuid.uuid4().hex}.tmp")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        write(tmp)
        os.utime(tmp)
        tmp.replace(archive)
    except (OSError, tarfile.TarError) as error:
        _log.warning("what was compiled is not kept: %s", error)
    finally:
        tmp.unlink(missing_ok=True)


def pack(archive: Path, root: Path, places: Sequence[str]) -> None:
    """Write the caches of these places below root, which somebody may change meanwhile: plain files, no link followed.

    Raises OSError, where they are too large, too, and tarfile.TarError.
    """
    left = _MAX_BYTES
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        name = os.fsencode(root)
        made_in = tarfile.TarInfo(_ROOT)
        made_in.size = len(name)
        tar.addfile(made_in, io.BytesIO(name))
        for place in places:
            for folder, _, files, fd in os.fwalk(root / place / "caches"):
                inside = Path(folder).relative_to(root)
                entry = tarfile.TarInfo(str(inside))
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
                for file in files:
                    try:
                        content = open(file, "rb", opener=_within(fd))
                    except OSError:
                        continue  # a link, or gone
                    with content:
                        info = tar.gettarinfo(arcname=str(inside / file), fileobj=content)
                        if info.isfile():
                            left -= info.size + tarfile.BLOCKSIZE
                            tar.addfile(info, content)
                    if left < 0:
                        raise OSError(f"more than {_MAX_BYTES >> 20} MiB")


def _within(folder: int) -> Callable[[str, int], int]:
    more = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return lambda path, flags: os.open(path, flags | more, dir_fd=folder)


def unpack(archive: Path | None, root: Path, place: str, of: str = "") -> bool:
    """Fill the caches of a place below root with those of the same place, or `of` another.

    False where there is nothing to fill them with: they stay empty. Who works there meanwhile is not trusted: files are
    written elsewhere and then moved. Some thousand small ones, which a trial waits for: TarFile's own extraction takes
    twice as long.
    """
    if archive is None or not archive.is_file():
        return False
    source, target, written = of or place, root / place, root / f"{place}-unpacked"
    try:
        with tarfile.open(archive) as tar:
            told = tar.extractfile(_ROOT)
            made_in, here = told.read() if told else b"", os.fsencode(root)
            if len(f"/{source}") + len(made_in) != len(os.fsencode(target)):
                raise ValueError(f"made in {os.fsdecode(made_in)}, whose name is not as long as that of {root}")
            for member in tar:
                folder, _, name = member.name.partition("/")
                if folder != source:
                    continue
                if ".." in name.split("/"):
                    raise ValueError(f"{member.name} lies elsewhere")
                if member.isdir():
                    (written / name).mkdir(0o700, parents=True, exist_ok=True)
                elif file := tar.extractfile(member):
                    content = file.read().replace(made_in + os.fsencode(f"/{source}"), os.fsencode(target))
                    opener = _executable if member.mode & 0o100 else _private
                    with open(f"{written}/{name}", "xb", opener=opener) as out:
                        out.write(content.replace(made_in, here))
        _move(written / "caches", target / "caches")
        return True
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        _log.warning("compiling anew: %s: %s", archive, error)
        return False


def _move(source: Path, target: Path) -> None:
    """Move what is in one folder into another, which is where it was made, whatever links there are now."""
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for path in source.iterdir():
            with contextlib.suppress(OSError):  # there is something already
                os.rename(path, path.name, dst_dir_fd=fd)
    finally:
        os.close(fd)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _executable(path: str, flags: int) -> int:
    return os.open(path, flags, 0o700)
